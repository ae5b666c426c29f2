//! Routes to other nodes and their precomputed headers: `route4_v1`, `route6_v1`, `peer_v3`; what they are called and what
//! went there: `peer_name_v1`, `peer_count_v1`.

use crate::{Address, Counter, Plain, text};

/// Key of `route4_v1` and `route6_v1` (LPM tries).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct RouteKey<A> {
    /// Length of the prefix in bits, host order (as `struct bpf_lpm_trie_key` wants it).
    pub prefix_len: u32,
    pub addr: A,
}

// SAFETY: a word and a four-byte aligned address.
unsafe impl<A: Address> Plain for RouteKey<A> {}

/// Value of `route4_v1` and `route6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Route {
    /// Index into `peer_v3`; 0 is never given.
    pub peer_id: u32,
}

// SAFETY: one word.
unsafe impl Plain for Route {}

/// Value of `peer_v3`, an array by peer id: everything that a packet to that node needs, computed in user space.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Peer {
    /// The outer IP header, UDP, and for VXLAN its header and the inner Ethernet header: see [`overlay_header`] for
    /// the lengths. ECN, lengths, UDP source port, IPv4 checksum and inner EtherType are zero: the program fills them
    /// in, and the UDP checksum too if [`Peer::checksum_sum`] says so.
    pub header: [u8; 72],
    /// Sum of the 16-bit words of the outer IPv4 header as it stands in `header`, words read in network order, folded
    /// once, not complemented; the sum itself in host order.
    pub header_sum: u32,
    /// Length of `header` in use, in bytes, which tells its parts too; 0 when [`Peer::mode`] is direct.
    pub header_len: u16,
    /// See [`peer_mode`].
    pub mode: u8,
    /// Family of the underlay address: 2 or 10 (`AF_INET`, `AF_INET6`).
    pub underlay_family: u8,
    /// The node's underlay address, in network byte order; an IPv4 address takes the first four bytes.
    pub underlay_addr: [u8; 16],
    /// Largest inner IP packet that fits, in bytes.
    pub mtu: u32,
    /// The kernel's VXLAN device, for what the program does not encapsulate itself: with [`peer_mode::DEVICE`]
    /// everything, with a UDP checksum the packets whose sum does not follow from their headers. 0: there is none.
    pub device_ifindex: u32,
    /// If packets get an outer UDP checksum, what the sum starts from, never 0: the words, read in network order, of
    /// `header` behind its IP header, of both addresses, and the protocol, not folded. 0: the checksum stays zero.
    pub checksum_sum: u32,
    /// See [`peer_flag`].
    pub flags: u32,
}

// SAFETY: 72 bytes, a word, four bytes, 16 bytes, four words: no implicit padding.
unsafe impl Plain for Peer {}

impl Default for Peer {
    fn default() -> Self {
        Self {
            header: [0; 72],
            header_sum: 0,
            header_len: 0,
            mode: peer_mode::NONE,
            underlay_family: 0,
            underlay_addr: [0; 16],
            mtu: 0,
            device_ifindex: 0,
            checksum_sum: 0,
            flags: 0,
        }
    }
}

/// Bytes of a node's name: names of Nodes have at most 253 (RFC 1123 subdomains).
pub const PEER_NAME_LEN: usize = 256;

/// Value of `peer_name_v1`, by peer id. No program reads it: it is there for people, also while no agent runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct PeerName {
    /// The holder of the peer's lease, UTF-8, filled up with zero bytes.
    pub name: [u8; PEER_NAME_LEN],
}

// SAFETY: bytes only.
unsafe impl Plain for PeerName {}

impl PeerName {
    /// A text that is too long is cut: no registry has one.
    pub fn new(name: &str) -> Self {
        Self {
            name: text::filled_up(name),
        }
    }

    pub fn name(&self) -> &str {
        text::read(&self.name)
    }
}

/// Value of `peer_count_v1`, an array per CPU by peer id: inner packets, and their bytes without Ethernet. What a device
/// cuts into segments counts as one packet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct PeerCount {
    /// On their way to the peer.
    pub sent: Counter,
    /// Encapsulated, from the peer; what is routed plainly comes without a word of whose it is.
    pub received: Counter,
    /// Of both, those that were dropped here.
    pub dropped: Counter,
}

// SAFETY: six double words.
unsafe impl Plain for PeerCount {}

/// Values of [`Peer::mode`].
pub mod peer_mode {
    /// The id is not in use.
    pub const NONE: u8 = 0;
    /// VXLAN (RFC 7348) as flannel lays it on the wire.
    pub const VXLAN: u8 = 1;
    /// Plain routing to the node's underlay address on a shared link (flannel's host-gw).
    pub const DIRECT: u8 = 2;
    /// As [`VXLAN`], to a node on the uplink's own link: its underlay address is the next hop, so that the kernel need
    /// not look for the route of each packet.
    pub const VXLAN_ON_LINK: u8 = 3;
    /// The bare inner packet in UDP, as flannel's `udp` backend lays it on the wire.
    pub const UDP: u8 = 4;
    /// As [`UDP`], to a node on the uplink's own link.
    pub const UDP_ON_LINK: u8 = 5;
    /// By the kernel's VXLAN device, addressed with the MAC addresses at the end of [`Peer::header`](super::Peer).
    pub const DEVICE: u8 = 6;
}

/// Bits of [`Peer::flags`].
pub mod peer_flag {
    /// It takes connections from outside as they are, labelled ([`direct_label`](super::direct_label)), and answers
    /// their clients itself.
    pub const DIRECT_RETURN: u32 = 1;
}

/// The VXLAN header and the inner MAC addresses of a packet that is handed on as it arrived, for the backend's node to
/// answer: offsets there. They say what that node must know, so that such a packet is no longer than any other.
pub mod direct_label {
    /// Of the label in bytes: what is left of [`overlay_header::VXLAN_LEN`](super::overlay_header::VXLAN_LEN) is the inner
    /// EtherType.
    pub const LEN: usize = 20;
    /// The flags: the VNI is valid, and a bit that RFC 7348 reserves. Who does not know it drops the packet.
    pub const FLAGS: u8 = 0x48;
    /// The backend's port, in network byte order. The byte behind it is zero, and the VNI follows.
    pub const PORT: usize = 1;
    /// The last eight bytes of the backend's address; the first four of them are zero for IPv4. The rest of an IPv6
    /// address is that of the receiver's podCIDR.
    pub const ADDR: usize = 8;
    /// Which node sent it: its address for source NAT, or without IPv4 the second four bytes of the IPv6 one.
    pub const SENDER: usize = 16;
}

/// Lengths of [`Peer::header`] and offsets in it. RFC 791, RFC 8200, RFC 768, RFC 7348 section 5.
pub mod overlay_header {
    pub const IPV4_LEN: usize = 20;
    pub const IPV6_LEN: usize = 40;
    pub const UDP_LEN: usize = 8;
    /// VXLAN and the inner Ethernet header.
    pub const VXLAN_LEN: usize = 22;

    pub const UDP_OVER_IPV4: usize = IPV4_LEN + UDP_LEN;
    pub const UDP_OVER_IPV6: usize = IPV6_LEN + UDP_LEN;
    pub const VXLAN_OVER_IPV4: usize = UDP_OVER_IPV4 + VXLAN_LEN;
    pub const VXLAN_OVER_IPV6: usize = UDP_OVER_IPV6 + VXLAN_LEN;

    pub const IPV4_TOTAL_LEN: usize = 2;
    pub const IPV4_CHECKSUM: usize = 10;
    pub const IPV6_PAYLOAD_LEN: usize = 4;
    /// In the UDP header.
    pub const UDP_CHECKSUM: usize = 6;
}
