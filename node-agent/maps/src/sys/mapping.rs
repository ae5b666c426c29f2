//! A map's values in the memory of this process (`BPF_F_MMAPABLE`).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
};

use super::Access;

/// The mapped bytes; they go with the value.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range of the process, which belongs to no thread. What is in it is shared with the kernel's
// programs anyway, so whoever uses it must count on changes at any time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of an array's values.
    pub fn new(fd: BorrowedFd<'_>, len: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory that is in use.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    /// The element `index` of those of type `T` that lie there one after the other.
    pub fn element<T>(&self, index: u32) -> Option<NonNull<T>> {
        let end = (index as usize + 1).checked_mul(size_of::<T>())?;
        // SAFETY: within the mapping, by the comparison.
        (end <= self.len).then(|| unsafe { self.start.add(end - size_of::<T>()).cast() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped; nothing that borrows from `self` is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
