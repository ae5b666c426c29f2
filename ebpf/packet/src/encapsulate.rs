//! The overlay: VXLAN (RFC 7348) as flannel lays it on the wire, over an IPv4 underlay.

use ebpf_abi::{Addr4, Addr6, Config, DropReason, Family, Peer, config_flag, overlay_header};

use crate::{
    Ip, Node, Packet, checksum,
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

/// [`Peer::header`]'s length in whole words, so that it is copied by words.
const HEADER_BUFFER: usize = 52;

#[repr(C, align(4))]
struct Header([u8; HEADER_BUFFER]);

/// Puts the peer's header before the inner packet.
///
/// # Errors
///
/// [`DropReason::NoPeer`] if the peer has no header for an IPv4 underlay, [`DropReason::RewriteFailed`] if the kernel
/// refuses the room.
#[inline(always)]
pub(crate) fn encapsulate<A: Ip, P: Packet>(packet: &mut P, peer: &Peer) -> Result<(), DropReason> {
    if peer.header_len as usize != overlay_header::LEN_V4 {
        return Err(DropReason::NoPeer);
    }
    let inner_len = packet.length() - ETH_LEN as u32;
    let hash = packet.flow_hash();
    packet
        .make_room_for_overlay()
        .map_err(|_| DropReason::RewriteFailed)?;

    let mut header = Header([0; HEADER_BUFFER]);
    header.0.copy_from_slice(&peer.header[..HEADER_BUFFER]);
    let header = &mut header.0;
    let total_len = (inner_len + overlay_header::LEN_V4 as u32) as u16;
    put(header, overlay_header::IPV4_TOTAL_LEN, total_len);
    let sum = peer.header_sum as u64 + total_len as u64;
    put(header, overlay_header::IPV4_CHECKSUM, !checksum::fold(sum));
    put(
        header,
        overlay_header::UDP_V4,
        FIRST_SOURCE_PORT | (hash & 0x3fff) as u16,
    );
    put(
        header,
        overlay_header::UDP_V4 + 4,
        (inner_len + BEHIND_IP) as u16,
    );
    put(header, INNER_ETHERTYPE_AT, u16::from_be(A::ETHERTYPE));
    packet
        .store(ETH_LEN as u32, &header[..overlay_header::LEN_V4])
        .map_err(|_| DropReason::RewriteFailed)
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
    if A::FAMILY != Family::V4 || !matches!(headers.kind, Kind::Whole) {
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

#[inline(always)]
fn put(header: &mut [u8; HEADER_BUFFER], at: usize, value: u16) {
    let bytes = value.to_be_bytes();
    header[at] = bytes[0];
    header[at + 1] = bytes[1];
}
