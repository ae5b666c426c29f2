//! The few uses of bpf(2) that a packet generator needs: maps of one element, raw instructions, links, pins.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

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

/// An array of one program, for `bpf_tail_call`.
#[derive(Debug)]
pub struct TailCall {
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

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
/// `enum bpf_attach_type`.
const XDP: u32 = 37;
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`.
const BEFORE: u32 = 1 << 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

impl CounterMap {
    pub fn new() -> Result<Self> {
        Ok(Self {
            fd: one_element_map(MAP_TYPE_ARRAY, 8).context("create the counter map")?,
        })
    }

    pub fn get(&self) -> Result<u64> {
        let mut value = 0_u64;
        element(MAP_LOOKUP_ELEM, &self.fd, &raw mut value as u64)
            .context("read the counter map")?;
        Ok(value)
    }

    pub fn set(&self, value: u64) -> Result<()> {
        element(MAP_UPDATE_ELEM, &self.fd, &raw const value as u64).context("write the counter map")
    }

    /// The descriptor's number, for an instruction that loads the value's address.
    pub fn fd_number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl TailCall {
    pub fn new(program: BorrowedFd<'_>) -> Result<Self> {
        let fd = one_element_map(MAP_TYPE_PROG_ARRAY, 4).context("create the program array")?;
        let number = fd_number(&program);
        element(MAP_UPDATE_ELEM, &fd, &raw const number as u64)
            .context("put a program into the program array")?;
        Ok(Self { fd })
    }

    /// The descriptor's number, for an instruction that loads the map's address.
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
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens what is pinned at a path of a bpffs.
pub fn open_pin(path: &Path) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        pathname: pathname.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    bpf_fd(OBJ_GET, &mut attr).with_context(|| format!("open the pin {}", path.display()))
}

fn one_element_map(map_type: u32, value_size: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut attr = Attr {
        map_type,
        key_size: 4,
        value_size,
        max_entries: 1,
    };
    bpf_fd(MAP_CREATE, &mut attr)
}

/// Reads the first element of a map into the memory at `value`, or writes it from there.
fn element(command: libc::c_long, map: &OwnedFd, value: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0_u32;
    let mut attr = Attr {
        map_fd: fd_number(map),
        pad: 0,
        key: &raw const key as u64,
        value,
        flags: 0,
    };
    bpf(command, &mut attr).map(drop)
}

pub fn fd_number(fd: &impl AsRawFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

pub fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the commands that come through here return a new descriptor, which nobody else owns yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
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
