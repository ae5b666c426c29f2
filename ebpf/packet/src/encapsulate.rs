//! The overlay: VXLAN (RFC 7348) as flannel lays it on the wire, over an IPv4 underlay.

use ebpf_abi::{Addr4, Addr6, Config, DropReason, Family, Peer, config_flag, overlay_header};

use crate::{
    Ip, Node, OutOfBounds, Packet, checksum,
    ip::ETH_LEN,
    parse::{self, Headers, Kind, protocol},
    verdict::Step,
};

/// UDP (8), VXLAN (8) and the inner Ethernet header (14).
const BEHIND_IP: u32 = 30;
/// Where the inner EtherType lies in [`Peer::header`].
const INNER_ETHERTYPE_AT: usize = overlay_header::LEN_V4 - 2;
/// First of the 16384 UDP source ports that spread flows over the receivers' queues (RFC 7348 section 5).
const FIRST_SOURCE_PORT: u16 = 49152;

/// Puts the peer's header before the inner packet.
///
/// # Errors
///
/// [`DropReason::NoPeer`] if the peer has no header for an IPv4 underlay, [`DropReason::TooBig`] if the length would
/// not fit the outer header, [`DropReason::RewriteFailed`] if the kernel refuses the room.
#[inline(always)]
pub(crate) fn encapsulate<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    peer: &Peer,
) -> Result<(), DropReason> {
    if peer.header_len as usize != overlay_header::LEN_V4 {
        return Err(DropReason::NoPeer);
    }
    let inner_len = packet.length() - ETH_LEN as u32;
    if inner_len > u16::MAX as u32 - overlay_header::LEN_V4 as u32 {
        return Err(DropReason::TooBig);
    }
    packet
        .make_room_for_overlay()
        .and_then(|()| write_header(packet, headers, peer, inner_len))
        .map_err(|_| DropReason::RewriteFailed)
}

#[inline(always)]
fn write_header<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    peer: &Peer,
    inner_len: u32,
) -> Result<(), OutOfBounds> {
    let total_len = (inner_len + overlay_header::LEN_V4 as u32) as u16;
    let check = !checksum::fold(peer.header_sum as u64 + total_len as u64);
    let source_port = FIRST_SOURCE_PORT | (flow_hash(headers) & 0x3fff) as u16;
    packet.store_words(
        ETH_LEN as u32,
        &peer.header[..overlay_header::LEN_V4],
        &[
            (overlay_header::IPV4_TOTAL_LEN, total_len),
            (overlay_header::IPV4_CHECKSUM, check),
            (overlay_header::UDP_V4, source_port),
            (overlay_header::UDP_V4 + 4, (inner_len + BEHIND_IP) as u16),
            (INNER_ETHERTYPE_AT, u16::from_be(A::ETHERTYPE)),
        ],
    )
}

/// A hash of the inner packet's flow (RFC 7348 section 5). All fragments of a packet have the same, so they go without
/// ports.
///
/// Not the kernel's: that one takes the packet apart again, unless a socket of this machine left its own.
#[inline(always)]
fn flow_hash<A: Ip>(headers: &Headers<A>) -> u32 {
    let tuple = &headers.tuple;
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

/// Whether a packet from the network is the overlay's: then nothing of it may reach the host's stack.
#[inline(always)]
pub(crate) fn is_overlay<A: Ip>(config: &Config, headers: &Headers<A>) -> bool {
    config.flags & config_flag::OVERLAY != 0
        && headers.tuple.protocol == protocol::UDP
        && headers.tuple.dst_port_be == config.vxlan_port_be
        && headers.tuple.dst == A::settings(config).node_addr
}

/// Checks the VXLAN header and says what is inside; the packet is unchanged yet.
#[inline(always)]
pub(crate) fn inspect<A: Ip, P: Packet>(packet: &P, config: &Config, headers: &Headers<A>) -> Step {
    const BAD: Step = Step::drop(DropReason::OverlayBadHeader);
    if A::FAMILY != Family::V4 || !matches!(headers.kind, Kind::WHOLE) {
        return BAD;
    }
    // VXLAN (8) and the inner Ethernet header (14).
    let mut vxlan = [0u8; 22];
    let at = headers.l4_at + 8;
    if at + 22 > headers.end || parse::load(packet, at, &mut vxlan).is_err() {
        return BAD;
    }
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    if vxlan[0] != 0x08 || vni != config.vni {
        return BAD;
    }
    let bytes = headers.tuple.src.as_bytes();
    let from = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let ethertype = u16::from_ne_bytes([vxlan[20], vxlan[21]]);
    if ethertype == Addr4::ETHERTYPE {
        Step::inner4(from)
    } else if ethertype == Addr6::ETHERTYPE {
        Step::inner6(from)
    } else {
        BAD
    }
}

/// Takes the outer headers off: the outer IP header with options, UDP, VXLAN, the inner Ethernet header.
#[inline(always)]
pub(crate) fn decapsulate<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    inner: Family,
) -> Result<(), DropReason> {
    let len = headers.l4_at - ETH_LEN as u32 + BEHIND_IP;
    packet
        .remove_overlay(len, inner)
        .map_err(|_| DropReason::Malformed)
}

/// Whether the node with this underlay address may send packets from `src`: the route to `src` leads to it.
#[inline(always)]
pub(crate) fn is_from_its_node<A: Ip, N: Node<A>>(node: &N, src: &A, underlay: u32) -> bool {
    let Some(peer) = node.route(src).and_then(|peer_id| node.peer(peer_id)) else {
        return false;
    };
    let addr = &peer.underlay_addr;
    peer.underlay_family == Family::V4 as u8
        && u32::from_ne_bytes([addr[0], addr[1], addr[2], addr[3]]) == underlay
}
