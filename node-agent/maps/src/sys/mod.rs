//! Thin wrappers of bpf(2) for what aya has no call for: batches, links by interface index, test runs.
//!
//! Each command has its own argument struct: the leading part of `union bpf_attr` (linux/bpf.h) that the command
//! reads. The kernel takes any length and reads the rest as zero.

mod link;
mod map;
mod mapping;
mod object;
mod program;

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

pub(crate) use link::{LinkKind, attach_type, link_create, link_detach, link_info, link_update};
pub(crate) use map::{
    NOEXIST, delete_batch, delete_elem, lookup_batch, lookup_elem, map_by_id, map_create, map_info,
    map_memory, map_name, next_key, update_batch, update_elem,
};
pub(crate) use mapping::Mapping;
pub(crate) use object::{Access, is_bpffs, kernel_release, obj_get, obj_pin, wait_readable};
pub(crate) use program::{TestRunArgs, prog_by_id, prog_info, prog_map_ids, prog_test_run};

/// `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapDeleteElem = 3,
    MapGetNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetFdById = 13,
    MapGetFdById = 14,
    ObjGetInfoByFd = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attr` is the argument struct of `command`, without implicit padding, and every address in it is valid for what
/// the command reads and writes there.
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes at `attr`, which is a live mutable reference; the
    // addresses inside are the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<T>() as libc::c_ulong,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Calls a command that answers a file descriptor.
///
/// # Safety
///
/// As for [`bpf`], and `command` answers a new file descriptor.
unsafe fn bpf_fd<T>(command: Command, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the command succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Answers what the kernel knows of an object.
///
/// # Safety
///
/// `T` is the leading part of the info struct of the object that `fd` refers to, valid for any bytes; addresses in
/// `info` are valid for what the kernel writes there.
unsafe fn object_info<T>(fd: RawFd, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut attr = Attr {
        bpf_fd: fd as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: `info` is a live mutable reference of `info_len` bytes.
    unsafe { bpf(Command::ObjGetInfoByFd, &mut attr)? };
    Ok(())
}

/// Opens an object by its id.
fn object_by_id(command: Command, id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attr = Attr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: no address in the argument; both commands that come here answer a descriptor.
    unsafe { bpf_fd(command, &mut attr) }
}
