//! Programs: what the kernel knows of them, and running one on a packet.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{Command, bpf, object_by_id, object_info};

/// `struct bpf_prog_info`, the leading part.
#[derive(Default)]
#[repr(C)]
struct RawProgInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
}

/// What the kernel knows of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgInfo {
    pub id: u32,
    /// Hash of the instructions, map references left out.
    pub tag: [u8; 8],
    map_count: u32,
}

#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Arguments of `BPF_PROG_TEST_RUN`. Empty slices stand for no buffer.
pub(crate) struct TestRunArgs<'a> {
    pub data_in: &'a [u8],
    pub data_out: &'a mut [u8],
    pub ctx_in: &'a [u8],
    pub repeat: u32,
    pub flags: u32,
    pub batch_size: u32,
}

/// What `BPF_PROG_TEST_RUN` answered.
#[derive(Debug)]
pub(crate) struct TestRunAnswer {
    pub retval: u32,
    pub data_size_out: u32,
    /// Mean of the repetitions, in nanoseconds.
    pub duration: u32,
}

pub(crate) fn prog_info(program: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    let mut info = RawProgInfo::default();
    // SAFETY: `RawProgInfo` is the leading part of `struct bpf_prog_info`; its lengths are zero, so the kernel writes
    // to none of its addresses.
    unsafe { object_info(program.as_raw_fd(), &mut info)? };
    Ok(ProgInfo {
        id: info.id,
        tag: info.tag,
        map_count: info.nr_map_ids,
    })
}

/// The ids of the maps that a program uses.
pub(crate) fn prog_map_ids(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; prog_info(program)?.map_count as usize];
    let mut info = RawProgInfo {
        nr_map_ids: ids.len() as u32,
        map_ids: ids.as_mut_ptr() as u64,
        ..RawProgInfo::default()
    };
    // SAFETY: `map_ids` is a live buffer of `nr_map_ids` words; the other lengths are zero.
    unsafe { object_info(program.as_raw_fd(), &mut info)? };
    Ok(ids)
}

pub(crate) fn prog_by_id(id: u32) -> io::Result<OwnedFd> {
    object_by_id(Command::ProgGetFdById, id)
}

pub(crate) fn prog_test_run(
    program: BorrowedFd<'_>,
    args: TestRunArgs<'_>,
) -> io::Result<TestRunAnswer> {
    let address = |slice: &[u8]| {
        if slice.is_empty() {
            0
        } else {
            slice.as_ptr() as u64
        }
    };
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: args.data_in.len() as u32,
        data_size_out: args.data_out.len() as u32,
        data_in: address(args.data_in),
        data_out: if args.data_out.is_empty() {
            0
        } else {
            args.data_out.as_mut_ptr() as u64
        },
        repeat: args.repeat,
        duration: 0,
        ctx_size_in: args.ctx_in.len() as u32,
        ctx_size_out: 0,
        ctx_in: address(args.ctx_in),
        ctx_out: 0,
        flags: args.flags,
        cpu: 0,
        batch_size: args.batch_size,
        pad: 0,
    };
    // SAFETY: every address is null or a live slice of the length beside it, the output a mutable one.
    unsafe { bpf(Command::ProgTestRun, &mut attr)? };
    Ok(TestRunAnswer {
        retval: attr.retval,
        data_size_out: attr.data_size_out,
        duration: attr.duration,
    })
}
