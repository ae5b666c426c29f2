//! The programs of the object and where each belongs.

use std::fmt;

use crate::sys::attach_type;

/// A program of the eBPF object. [`Program::name`] is its function's name, its pin's and its hook's.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Program {
    /// tcx ingress at the host side of each pod's veth.
    FromPod,
    /// tcx ingress on the uplink.
    FromNetwork,
    /// tcx ingress on the kernel's VXLAN device, where there is one.
    FromVxlan,
    /// tcx egress on `fairlead0`.
    FromHost,
    /// XDP on the uplink, where it is asked for.
    FromDevice,
    Connect4,
    Connect6,
    GetPeerName4,
    GetPeerName6,
    SockRelease,
}

impl Program {
    pub const ALL: [Self; 10] = [
        Self::FromPod,
        Self::FromNetwork,
        Self::FromVxlan,
        Self::FromHost,
        Self::FromDevice,
        Self::Connect4,
        Self::Connect6,
        Self::GetPeerName4,
        Self::GetPeerName6,
        Self::SockRelease,
    ];
    /// Those that belong to the node's cgroup.
    pub const CGROUP: [Self; 5] = [
        // First: a connection that is noted must also be forgotten.
        Self::SockRelease,
        Self::Connect4,
        Self::Connect6,
        Self::GetPeerName4,
        Self::GetPeerName6,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromNetwork => "from_network",
            Self::FromVxlan => "from_vxlan",
            Self::FromHost => "from_host",
            Self::FromDevice => "from_device",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
            Self::SockRelease => "sock_release",
        }
    }

    /// `enum bpf_attach_type` of its hook.
    pub(crate) const fn attach_type(self) -> u32 {
        match self {
            Self::FromPod | Self::FromNetwork | Self::FromVxlan => attach_type::TCX_INGRESS,
            Self::FromHost => attach_type::TCX_EGRESS,
            Self::FromDevice => attach_type::XDP,
            Self::Connect4 => attach_type::CGROUP_INET4_CONNECT,
            Self::Connect6 => attach_type::CGROUP_INET6_CONNECT,
            Self::GetPeerName4 => attach_type::CGROUP_INET4_GETPEERNAME,
            Self::GetPeerName6 => attach_type::CGROUP_INET6_GETPEERNAME,
            Self::SockRelease => attach_type::CGROUP_INET_SOCK_RELEASE,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
