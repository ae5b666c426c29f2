//! Into the overlay: VXLAN (RFC 7348) or bare packets in UDP, both as flannel lays them on the wire, over IPv4 and IPv6.

use ebpf_abi::{DropReason, Family, Peer, overlay_header as outer, peer_mode};

use crate::{
    Ip, OutOfBounds, Packet, checksum,
    ip::ETH_LEN,
    outer_checksum,
    parse::{Headers, Kind},
};

/// First of the 16384 UDP source ports that spread flows over the receivers' queues (RFC 7348 section 5).
const FIRST_SOURCE_PORT: u16 = 49152;

/// Puts the peer's header before the inner packet.
///
/// # Errors
///
/// [`DropReason::NoPeer`] if the peer has no header, [`DropReason::TooBig`] if the length would not fit the outer
/// header, [`DropReason::RewriteFailed`] if the kernel refuses the room.
#[inline(always)]
pub(crate) fn encapsulate<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    peer: &Peer,
) -> Result<(), DropReason> {
    let source_port = FIRST_SOURCE_PORT | (flow_hash(headers) & 0x3fff) as u16;
    let inner = Inner {
        len: packet.length() - ETH_LEN as u32,
        source_port,
        udp_checksum: if peer.checksum_sum == 0 {
            0
        } else {
            outer_checksum::compute(headers, peer, source_port) as u16
        },
        ecn: headers.ecn(),
        ethertype: u16::from_be(A::ETHERTYPE),
    };
    if inner.len + peer.header_len as u32 > u16::MAX as u32 {
        return Err(DropReason::TooBig);
    }
    let written = match peer.header_len as usize {
        outer::VXLAN_OVER_IPV4 => inner.put::<P, { outer::VXLAN_OVER_IPV4 }>(packet, peer),
        outer::VXLAN_OVER_IPV6 => inner.put_apart::<P, { outer::VXLAN_OVER_IPV6 }>(packet, peer),
        outer::UDP_OVER_IPV4 => inner.put::<P, { outer::UDP_OVER_IPV4 }>(packet, peer),
        outer::UDP_OVER_IPV6 => inner.put_apart::<P, { outer::UDP_OVER_IPV6 }>(packet, peer),
        _ => return Err(DropReason::NoPeer),
    };
    written.map_err(|_| DropReason::RewriteFailed)
}

/// Whether the packet goes to this peer by the kernel's device: all do, or this one's outer checksum is to be computed
/// over every byte, or for each segment that is yet to be cut.
#[inline(never)]
pub(crate) fn needs_device<A: Ip, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    peer: &Peer,
) -> bool {
    peer.mode == peer_mode::DEVICE
        || (peer.checksum_sum != 0 && !outer_checksum::follows_from_headers(packet, headers))
}

/// Destination and source MAC address of what goes by the device, as they lie in the Ethernet header: the end of the
/// peer's header.
#[inline(always)]
pub(crate) fn device_macs(peer: &Peer) -> [u32; 3] {
    const OVER_IPV4: usize = outer::VXLAN_OVER_IPV4 - ETH_LEN;
    const OVER_IPV6: usize = outer::VXLAN_OVER_IPV6 - ETH_LEN;
    if peer.header_len as usize == outer::VXLAN_OVER_IPV6 {
        words::<OVER_IPV6>(&peer.header)
    } else {
        words::<OVER_IPV4>(&peer.header)
    }
}

#[inline(always)]
fn words<const AT: usize>(header: &[u8; 72]) -> [u32; 3] {
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    [word(AT), word(AT + 4), word(AT + 8)]
}

/// What the outer header must say of the packet.
struct Inner {
    /// Of the inner IP packet, in bytes.
    len: u32,
    source_port: u16,
    /// 0: none.
    udp_checksum: u16,
    /// The inner ECN field, which the outer header repeats (RFC 6040 section 4.1).
    ecn: u8,
    ethertype: u16,
}

impl Inner {
    /// [`Inner::put`] as a function of its own: it leaves the most travelled way short.
    #[inline(never)]
    fn put_apart<P: Packet, const LEN: usize>(
        &self,
        packet: &mut P,
        peer: &Peer,
    ) -> Result<(), OutOfBounds> {
        self.put::<P, LEN>(packet, peer)
    }

    /// Writes the peer's header, which is `LEN` bytes long.
    #[inline(always)]
    fn put<P: Packet, const LEN: usize>(
        &self,
        packet: &mut P,
        peer: &Peer,
    ) -> Result<(), OutOfBounds> {
        let ipv6 = LEN == outer::UDP_OVER_IPV6 || LEN == outer::VXLAN_OVER_IPV6;
        let ethernet = LEN == outer::VXLAN_OVER_IPV4 || LEN == outer::VXLAN_OVER_IPV6;
        let (underlay, ip_len) = if ipv6 {
            (Family::V6, outer::IPV6_LEN)
        } else {
            (Family::V4, outer::IPV4_LEN)
        };
        packet.make_room_for_overlay(LEN, underlay, ethernet)?;
        let total_len = self.len + LEN as u32;
        let udp_len = (total_len - ip_len as u32) as u16;
        let (first, length, check) = if ipv6 {
            // The payload's length; the header has no checksum.
            let first = 0x6000 | (self.ecn as u16) << 4;
            (first, (outer::IPV6_PAYLOAD_LEN, udp_len), (LEN, 0))
        } else {
            let sum = peer.header_sum as u64 + self.ecn as u64 + total_len as u64;
            let check = (outer::IPV4_CHECKSUM, !checksum::fold(sum));
            let length = (outer::IPV4_TOTAL_LEN, total_len as u16);
            (0x4500 | self.ecn as u16, length, check)
        };
        let ethertype_at = if ethernet { LEN - 2 } else { LEN };
        packet.store_words(
            ETH_LEN as u32,
            &peer.header[..LEN],
            &[
                (0, first),
                length,
                check,
                (ip_len, self.source_port),
                (ip_len + 4, udp_len),
                (ip_len + outer::UDP_CHECKSUM, self.udp_checksum),
                (ethertype_at, self.ethertype),
            ],
        )
    }
}

/// A hash of the inner packet's flow (RFC 7348 section 5). All fragments of a packet have the same, so they go without
/// ports.
///
/// Not the kernel's: that one takes the packet apart again, unless a socket of this machine left its own.
#[inline(always)]
fn flow_hash<A: Ip>(headers: &Headers<A>) -> u32 {
    let tuple = headers.tuple();
    let mut hash = tuple.protocol as u32;
    if matches!(headers.kind, Kind::WHOLE) {
        hash |= (tuple.src_port_be as u32) << 16;
        hash ^= (tuple.dst_port_be as u32) << 8;
    }
    for word in tuple
        .src
        .as_bytes()
        .chunks_exact(4)
        .chain(tuple.dst.as_bytes().chunks_exact(4))
    {
        // Knuth's multiplier, the golden ratio of 32 bits.
        hash = hash.wrapping_mul(0x9e37_79b1).rotate_left(13);
        hash ^= u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
    }
    hash = hash.wrapping_mul(0x9e37_79b1);
    hash ^ (hash >> 15)
}
