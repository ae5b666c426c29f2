//! Elements of maps, one by one and in batches. Sizes are the caller's duty: it knows the map's layout.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{Command, bpf, bpf_fd, object_by_id, object_info};
use crate::MapLayout;

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Also the next key.
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `struct bpf_map_info`, the leading part.
#[derive(Default)]
#[repr(C)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// `BPF_NOEXIST`: an update fails with EEXIST if the key is there.
pub(crate) const NOEXIST: u64 = 1;

/// What one `BPF_MAP_LOOKUP_BATCH` brought.
pub(crate) struct Batch {
    /// Elements read.
    pub count: u32,
    /// No element is left.
    pub end: bool,
}

/// Makes a map without a name, which lives as long as its descriptor.
pub(crate) fn map_create(layout: &MapLayout) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type: layout.map_type,
        key_size: layout.key_size,
        value_size: layout.value_size,
        max_entries: layout.max_entries,
        map_flags: layout.flags,
    };
    // SAFETY: no address in the argument; the command answers a descriptor.
    unsafe { bpf_fd(Command::MapCreate, &mut attr) }
}

/// The id and the layout of a map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<(u32, MapLayout)> {
    let mut info = MapInfo::default();
    // SAFETY: `MapInfo` is the leading part of `struct bpf_map_info`, all integers, no address.
    unsafe { object_info(fd.as_raw_fd(), &mut info)? };
    let layout = MapLayout {
        map_type: info.map_type,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    };
    Ok((info.id, layout))
}

/// The name of a map, at most 15 bytes.
pub(crate) fn map_name(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = MapInfo::default();
    // SAFETY: as in `map_info`.
    unsafe { object_info(fd.as_raw_fd(), &mut info)? };
    let name = info
        .name
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// The bytes that the kernel has allocated for a map, if it tells them.
pub(crate) fn map_memory(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let memory = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(memory.and_then(|bytes| bytes.trim().parse().ok()))
}

pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    object_by_id(Command::MapGetFdById, id)
}

/// # Safety
///
/// `key` has the map's key size and `value` its value size (of a per-CPU map: times the possible CPUs, rounded up
/// to eight bytes each).
pub(crate) unsafe fn lookup_elem(
    fd: BorrowedFd<'_>,
    key: &[u8],
    value: &mut [u8],
) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: fd.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both addresses are live slices of the sizes that the caller promised.
    unsafe { bpf(Command::MapLookupElem, &mut attr)? };
    Ok(())
}

/// # Safety
///
/// `key` has the map's key size and `value` its value size.
pub(crate) unsafe fn update_elem(
    fd: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: fd.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags,
    };
    // SAFETY: both addresses are live slices of the sizes that the caller promised; the kernel only reads them.
    unsafe { bpf(Command::MapUpdateElem, &mut attr)? };
    Ok(())
}

/// # Safety
///
/// `key` has the map's key size.
pub(crate) unsafe fn delete_elem(fd: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: fd.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the address is a live slice of the size that the caller promised; the kernel only reads it.
    unsafe { bpf(Command::MapDeleteElem, &mut attr)? };
    Ok(())
}

/// Writes the key that follows `key` (the first one for `None`) into `next`; `false` at the end.
///
/// # Safety
///
/// `key` and `next` have the map's key size.
pub(crate) unsafe fn next_key(
    fd: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = ElemAttr {
        map_fd: fd.as_raw_fd() as u32,
        pad: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the addresses are live slices of the size that the caller promised, or null for the first key.
    match unsafe { bpf(Command::MapGetNextKey, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads up to `count` elements. `token` carries the position from call to call; `first` begins anew.
///
/// # Safety
///
/// `keys` and `values` hold `count` elements of the map's sizes; `token` holds the larger of four bytes and the
/// key size.
pub(crate) unsafe fn lookup_batch(
    fd: BorrowedFd<'_>,
    token: &mut [u8],
    first: bool,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<Batch> {
    let mut attr = BatchAttr {
        in_batch: if first { 0 } else { token.as_ptr() as u64 },
        out_batch: token.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: fd.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the addresses are live slices of the sizes that the caller promised.
    match unsafe { bpf(Command::MapLookupBatch, &mut attr) } {
        Ok(_) => Ok(Batch {
            count: attr.count,
            end: false,
        }),
        // The end is told by ENOENT, with the last elements in place.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Batch {
            count: attr.count,
            end: true,
        }),
        Err(error) => Err(error),
    }
}

/// Writes `count` elements; an error comes with the number of elements that were written before it.
///
/// # Safety
///
/// `keys` and `values` hold `count` elements of the map's sizes.
pub(crate) unsafe fn update_batch(
    fd: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> Result<(), (u32, io::Error)> {
    // SAFETY: the caller's promise; the kernel only reads keys and values.
    unsafe {
        write_batch(
            Command::MapUpdateBatch,
            fd,
            keys,
            values.as_ptr() as u64,
            count,
        )
    }
}

/// Deletes `count` elements; an error comes with the number of elements that were deleted before it.
///
/// # Safety
///
/// `keys` holds `count` keys of the map's size.
pub(crate) unsafe fn delete_batch(
    fd: BorrowedFd<'_>,
    keys: &[u8],
    count: u32,
) -> Result<(), (u32, io::Error)> {
    // SAFETY: the caller's promise; this command has no values.
    unsafe { write_batch(Command::MapDeleteBatch, fd, keys, 0, count) }
}

/// # Safety
///
/// `keys`, and `values` unless null, hold `count` elements of the map's sizes.
unsafe fn write_batch(
    command: Command,
    fd: BorrowedFd<'_>,
    keys: &[u8],
    values: u64,
    count: u32,
) -> Result<(), (u32, io::Error)> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values,
        count,
        map_fd: fd.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller's promise.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => Ok(()),
        // An error before the first element leaves `count` as it was.
        Err(error) => Err((if attr.count < count { attr.count } else { 0 }, error)),
    }
}
