//! Connection tracking and NAT: `conn4_v1`, `conn6_v1`; fragments: `fragment4_v1`, `fragment6_v1`.
//!
//! One entry says: a packet with this tuple is rewritten to that tuple. A translated connection has two entries, one
//! for each direction, each keyed by the tuple that the packet has when it arrives, so that one lookup decides.
//! Connections that are not translated have no entry.

use crate::{Address, Plain};

/// Key of `conn4_v1` and `conn6_v1`: the tuple of a packet as it arrives.
///
/// ICMP echo has its identifier in `src_port_be` (request) or `dst_port_be` (reply) and 0 in the other.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct ConnKey<A> {
    pub src: A,
    pub dst: A,
    pub src_port_be: u16,
    pub dst_port_be: u16,
    /// IANA protocol number.
    pub protocol: u8,
    pub pad: [u8; 3],
}

// SAFETY: two four-byte aligned addresses, then eight bytes: no implicit padding.
unsafe impl<A: Address> Plain for ConnKey<A> {}

impl<A: Address> ConnKey<A> {
    /// The tuple of the opposite direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port_be: self.dst_port_be,
            dst_port_be: self.src_port_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

/// Value of `conn4_v1` and `conn6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Conn<A> {
    /// When the last packet passed, by `CLOCK_MONOTONIC_COARSE`, in nanoseconds.
    pub last_seen_ns: u64,
    /// The tuple that the packet gets.
    pub src: A,
    pub dst: A,
    pub src_port_be: u16,
    pub dst_port_be: u16,
    pub backend_id: u32,
    /// The backend's epoch when it was selected.
    pub backend_epoch: u32,
    /// See [`conn_flag`].
    pub flags: u32,
}

// SAFETY: one double word, two four-byte aligned addresses of together a multiple of eight bytes, four words.
unsafe impl<A: Address> Plain for Conn<A> {}

/// Bits of [`Conn::flags`]. Each direction's entry records what its own packets carried.
pub mod conn_flag {
    /// Set on the entry of the backend's answers.
    pub const REPLY: u32 = 1;
    /// A SYN of TCP, or any packet of another protocol.
    pub const OPEN: u32 = 1 << 1;
    pub const TCP_FIN: u32 = 1 << 2;
    pub const TCP_RST: u32 = 1 << 3;
    /// The source is replaced too (NodePort to another node, hairpin, masquerade).
    pub const SOURCE_NAT: u32 = 1 << 4;
    /// The destination was a service; without it the entry only replaces the source and has no backend.
    pub const SERVICE: u32 = 1 << 5;
}

/// Key of `fragment4_v1` and `fragment6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// The identification of the IP header or the fragment header, as it stands in the packet.
    pub id_be: u32,
    /// IANA protocol number.
    pub protocol: u8,
    pub pad: [u8; 3],
}

// SAFETY: two four-byte aligned addresses, a word, four bytes: no implicit padding.
unsafe impl<A: Address> Plain for FragmentKey<A> {}

/// Value of `fragment4_v1` and `fragment6_v1`: the ports that only the first fragment carries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct FragmentPorts {
    pub src_port_be: u16,
    pub dst_port_be: u16,
}

// SAFETY: two half words.
unsafe impl Plain for FragmentPorts {}
