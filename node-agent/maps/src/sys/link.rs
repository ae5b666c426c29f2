//! Links: tcx and XDP by interface index, cgroup by descriptor.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{Command, bpf, bpf_fd, object_info};

/// `enum bpf_attach_type`.
pub(crate) mod attach_type {
    pub const CGROUP_INET4_CONNECT: u32 = 10;
    pub const CGROUP_INET6_CONNECT: u32 = 11;
    pub const CGROUP_INET4_GETPEERNAME: u32 = 29;
    pub const CGROUP_INET6_GETPEERNAME: u32 = 30;
    pub const CGROUP_INET_SOCK_RELEASE: u32 = 34;
    pub const XDP: u32 = 37;
    pub const TCX_INGRESS: u32 = 46;
    pub const TCX_EGRESS: u32 = 47;
}

/// `enum bpf_link_type`.
const LINK_TYPE_CGROUP: u32 = 3;
const LINK_TYPE_XDP: u32 = 6;
const LINK_TYPE_TCX: u32 = 11;

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    /// A descriptor or an interface index, as the attach type says.
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `struct bpf_link_info`, the leading part and as much of its union as is used here.
#[derive(Default)]
#[repr(C)]
struct RawLinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    union: [u32; 4],
}

/// What the kernel knows of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkInfo {
    pub id: u32,
    pub prog_id: u32,
    pub kind: LinkKind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LinkKind {
    /// The index is 0 when the interface is gone.
    Tcx {
        ifindex: u32,
        attach_type: u32,
    },
    /// The index is 0 when the interface is gone.
    Xdp {
        ifindex: u32,
    },
    /// The id is 0 when the cgroup is gone.
    Cgroup {
        cgroup_id: u64,
        attach_type: u32,
    },
    Other,
}

/// `target` is an interface index of the calling thread's network namespace, or a cgroup's descriptor; `flags` are the
/// hook's own.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags,
    };
    // SAFETY: no address in the argument; the command answers a descriptor.
    unsafe { bpf_fd(Command::LinkCreate, &mut attr) }
}

/// Replaces the link's program in one step: every packet meets the old or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: no address in the argument.
    unsafe { bpf(Command::LinkUpdate, &mut attr)? };
    Ok(())
}

/// Takes the link's program from its hook now. Without it the kernel does so some time after the last pin and
/// descriptor are gone, and until then refuses another program there.
///
/// # Errors
///
/// `ENOLINK` when the hook is gone already.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd() as u32;
    // SAFETY: the argument is one descriptor; no address in it.
    unsafe { bpf(Command::LinkDetach, &mut attr)? };
    Ok(())
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    // SAFETY: `RawLinkInfo` is the leading part of `struct bpf_link_info`: integers only. The union holds an address
    // for other types of link alone, where zero means that the caller wants no name.
    unsafe { object_info(link.as_raw_fd(), &mut info)? };
    let [first, second, third, _] = info.union;
    let kind = match info.link_type {
        LINK_TYPE_TCX => LinkKind::Tcx {
            ifindex: first,
            attach_type: second,
        },
        LINK_TYPE_XDP => LinkKind::Xdp { ifindex: first },
        LINK_TYPE_CGROUP => {
            let mut id = [0; 8];
            id[..4].copy_from_slice(&first.to_ne_bytes());
            id[4..].copy_from_slice(&second.to_ne_bytes());
            LinkKind::Cgroup {
                cgroup_id: u64::from_ne_bytes(id),
                attach_type: third,
            }
        }
        _ => LinkKind::Other,
    };
    Ok(LinkInfo {
        id: info.id,
        prog_id: info.prog_id,
        kind,
    })
}
