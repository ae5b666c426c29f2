//! The few uses of bpf(2) that a packet generator needs: an array map, raw instructions, a tcx link, a test run.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};

/// One instruction (RFC 9669 section 3).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Insn {
    pub opcode: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// `enum bpf_prog_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum ProgramType {
    SchedCls = 3,
    Xdp = 6,
}

/// A map with one value of eight bytes.
#[derive(Debug)]
pub struct CounterMap {
    fd: OwnedFd,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

/// A program attached to a device; closing it detaches.
#[derive(Debug)]
pub struct Link {
    _fd: OwnedFd,
}

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

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;

const MAP_TYPE_ARRAY: u32 = 2;
/// `enum bpf_attach_type`.
const XDP: u32 = 37;
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`.
const BEFORE: u32 = 1 << 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

impl CounterMap {
    pub fn new() -> Result<Self> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
        }
        let mut attr = Attr {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
        };
        Ok(Self {
            fd: bpf_fd(MAP_CREATE, &mut attr).context("create the counter map")?,
        })
    }

    pub fn get(&self) -> Result<u64> {
        #[repr(C)]
        struct Attr {
            map_fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let key = 0_u32;
        let mut value = 0_u64;
        let mut attr = Attr {
            map_fd: fd_number(&self.fd),
            pad: 0,
            key: &raw const key as u64,
            value: &raw mut value as u64,
            flags: 0,
        };
        bpf(MAP_LOOKUP_ELEM, &mut attr).context("read the counter map")?;
        Ok(value)
    }

    /// The descriptor's number, for an instruction that loads the value's address.
    pub fn fd_number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Program {
    pub fn load(program_type: ProgramType, instructions: &[Insn]) -> Result<Self> {
        #[repr(C)]
        struct Attr {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
        }
        let mut log = vec![0_u8; 1 << 16];
        let mut attr = Attr {
            prog_type: program_type as u32,
            insn_cnt: u32::try_from(instructions.len())?,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log_buf: log.as_mut_ptr() as u64,
        };
        let fd = bpf_fd(PROG_LOAD, &mut attr).with_context(|| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            format!("load a program: {}", String::from_utf8_lossy(&log[..end]))
        })?;
        Ok(Self { fd })
    }

    /// Attaches at the tcx ingress of a device of this thread's namespace, before the programs that are there.
    pub fn attach_tcx_ingress(&self, ifindex: u32) -> Result<Link> {
        self.attach(ifindex, TCX_INGRESS, BEFORE)
            .context("attach at tcx ingress (needs Linux 6.6)")
    }

    /// Attaches as native XDP to a device of this thread's namespace.
    pub fn attach_xdp(&self, ifindex: u32) -> Result<Link> {
        self.attach(ifindex, XDP, XDP_FLAGS_DRV_MODE)
            .context("attach as native XDP")
    }

    fn attach(&self, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<Link> {
        #[repr(C)]
        struct Attr {
            prog_fd: u32,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
            relative_fd: u32,
            pad: u32,
            expected_revision: u64,
        }
        let mut attr = Attr {
            prog_fd: fd_number(&self.fd),
            target_ifindex: ifindex,
            attach_type,
            flags,
            relative_fd: 0,
            pad: 0,
            expected_revision: 0,
        };
        Ok(Link {
            _fd: bpf_fd(LINK_CREATE, &mut attr)?,
        })
    }

    /// Injects `count` copies of `frame` as if the device of this thread's namespace had received them, by
    /// `BPF_F_TEST_XDP_LIVE_FRAMES` (Documentation/bpf/bpf_prog_run.rst); the program returns `XDP_PASS`.
    pub fn inject(&self, ifindex: u32, frame: &[u8], count: u32) -> Result<()> {
        /// `struct xdp_md`.
        #[repr(C)]
        struct Context {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress_ifindex: u32,
            rx_queue_index: u32,
            egress_ifindex: u32,
        }
        #[repr(C)]
        struct Attr {
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
        let length = u32::try_from(frame.len())?;
        let context = Context {
            data: 0,
            data_end: length,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let mut attr = Attr {
            prog_fd: fd_number(&self.fd),
            retval: 0,
            data_size_in: length,
            data_size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: count,
            duration: 0,
            ctx_size_in: size_of::<Context>() as u32,
            ctx_size_out: 0,
            ctx_in: &raw const context as u64,
            ctx_out: 0,
            flags: TEST_XDP_LIVE_FRAMES,
            cpu: 0,
            batch_size: 64,
            pad: 0,
        };
        bpf(PROG_TEST_RUN, &mut attr).context("inject live frames")?;
        Ok(())
    }
}

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

fn program_info(fd: &OwnedFd) -> Result<ProgramInfo> {
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

fn fd_number(fd: &impl AsRawFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the commands that come through here return a new descriptor, which nobody else owns yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a repr(C) prefix of `union bpf_attr` for this command, its size is passed, and every pointer
    // in it leads to memory of the caller that lives longer than this call and has the length given beside it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
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
