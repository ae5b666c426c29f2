//! What the kernel tells of programs and maps that are loaded: sizes, run times, memory.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::bpf::{bpf, bpf_fd, fd_number, open_pin};

/// While it lives, the kernel sums each program's run time and count (`kernel.bpf_stats_enabled`).
#[derive(Debug)]
pub struct Stats {
    _fd: OwnedFd,
}

/// What the kernel tells of a loaded program.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramInfo {
    pub id: u32,
    pub name: String,
    /// Bytes of native code.
    pub jited_len: u32,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Instructions that the verifier walked through.
    pub verified: u32,
    pub run_time_ns: u64,
    pub run_count: u64,
}

const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const ENABLE_STATS: libc::c_long = 32;

impl Stats {
    pub fn enable() -> Result<Self> {
        let mut run_time_type = 0_u32;
        Ok(Self {
            _fd: bpf_fd(ENABLE_STATS, &mut run_time_type)
                .context("enable the programs' statistics")?,
        })
    }
}

/// Every program that is loaded on this machine.
pub fn programs() -> Result<Vec<ProgramInfo>> {
    #[repr(C)]
    struct NextId {
        start_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    #[repr(C)]
    struct FdById {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut found = Vec::new();
    let mut next = NextId {
        start_id: 0,
        next_id: 0,
        open_flags: 0,
    };
    loop {
        match bpf(PROG_GET_NEXT_ID, &mut next) {
            Ok(_) => next.start_id = next.next_id,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error).context("list the loaded programs"),
        }
        // A program that went in between is none of ours.
        if let Ok(fd) = bpf_fd(
            PROG_GET_FD_BY_ID,
            &mut FdById {
                id: next.next_id,
                next_id: 0,
                open_flags: 0,
            },
        ) {
            found.push(program_info(&fd)?);
        }
    }
}

pub fn program_info(fd: &OwnedFd) -> Result<ProgramInfo> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    // `struct bpf_prog_info`: 232 bytes in Linux 6.18; the kernel writes what it has and what fits.
    const LEN: usize = 232;
    let mut info = [0_u64; LEN / 8];
    let mut attr = Attr {
        fd: fd_number(fd),
        info_len: LEN as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).context("ask for a program's statistics")?;
    if (attr.info_len as usize) < 216 {
        bail!("the kernel does not tell a program's statistics");
    }
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let word = |offset: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[offset + i]));
    let name = bytes[64..80]
        .iter()
        .take_while(|&&byte| byte != 0)
        .map(|&byte| byte as char)
        .collect();
    Ok(ProgramInfo {
        id: word(4),
        name,
        jited_len: word(16),
        instructions: word(20) / 8,
        verified: word(216),
        run_time_ns: info[192 / 8],
        run_count: info[200 / 8],
    })
}

/// Bytes of kernel memory that the maps pinned in a directory take, by the kernel's own account (`memlock` in the
/// descriptor's fdinfo; Documentation/filesystems/proc.rst).
pub fn pinned_map_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("list the pins in {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            bytes += map_bytes(&open_pin(&path)?).with_context(|| path.display().to_string())?;
        }
    }
    Ok(bytes)
}

fn map_bytes(map: &OwnedFd) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let number = line.context("the kernel does not tell a map's memory")?;
    Ok(number.trim().parse()?)
}

/// Warns nothing and changes nothing: true if the kernel's own run-time statistics are on, which costs 2 %.
pub fn stats_are_on() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
        .is_ok_and(|value| value.trim() == "1")
}

/// The JIT must be on: the interpreter's cost says nothing.
pub fn require_jit() -> Result<()> {
    if File::open("/proc/sys/net/core/bpf_jit_enable").is_ok()
        && std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")?.trim() == "0"
    {
        bail!("net.core.bpf_jit_enable is 0: set it to 1");
    }
    Ok(())
}
