//! Out of the overlay: what is accepted from whom, and the outer headers taken off.

use ebpf_abi::{Addr4, Addr6, Config, DropReason, Family, config_flag, overlay_header as outer};

use crate::{
    Ip, Node, Packet,
    ip::ETH_LEN,
    parse::{self, Headers, Kind, protocol},
    verdict::Step,
};

const BAD: Step = Step::drop(DropReason::OverlayBadHeader);

/// Whether a packet from the network is the overlay's: then nothing of it may reach the host's stack.
#[inline(always)]
pub(crate) fn is_overlay<A: Ip>(config: &Config, headers: &Headers<A>) -> bool {
    config.flags & config_flag::OVERLAY != 0
        && headers.tuple.protocol == protocol::UDP
        && headers.tuple.dst_port_be == config.overlay_port_be
        && headers.tuple.dst == A::settings(config).node_addr
}

/// Takes the outer headers off: the IP header with options, UDP, with VXLAN its header and the inner Ethernet header.
/// The packet is unchanged if it is refused.
#[inline(always)]
pub(crate) fn decapsulate<A, P, N>(
    packet: &mut P,
    node: &N,
    config: &Config,
    headers: &Headers<A>,
) -> Step
where
    A: Ip,
    P: Packet,
    N: Node<Addr4> + Node<Addr6>,
{
    let payload = headers.l4_at + outer::UDP_LEN as u32;
    let (inner, at) = if config.flags & config_flag::OVERLAY_UDP == 0 {
        let at = payload + outer::VXLAN_LEN as u32;
        (inside_vxlan(packet, config, headers, payload), at)
    } else {
        (inside_udp(packet, headers, payload), payload)
    };
    let ecn = headers.ecn();
    let from = &headers.tuple.src;
    let (family, step, code) = match inner {
        V4 => (
            Family::V4,
            Step::inner4(ecn),
            check_sender::<Addr4, A, P, N>(packet, node, at, from),
        ),
        V6 => (
            Family::V6,
            Step::inner6(ecn),
            check_sender::<Addr6, A, P, N>(packet, node, at, from),
        ),
        _ => return BAD,
    };
    if code != 0 {
        return Step::drop_numbered(code);
    }
    match packet.remove_overlay(at - ETH_LEN as u32, family) {
        Ok(()) => step,
        Err(_) => Step::drop(DropReason::Malformed),
    }
}

/// What is inside: a number, as the verifier takes enums apart that travel in registers.
type Inside = u32;
const NOTHING: Inside = 0;
const V4: Inside = 4;
const V6: Inside = 6;

/// RFC 7348 section 5.
#[inline(always)]
fn inside_vxlan<A: Ip, P: Packet>(
    packet: &P,
    config: &Config,
    headers: &Headers<A>,
    at: u32,
) -> Inside {
    let mut vxlan = [0u8; outer::VXLAN_LEN];
    if !matches!(headers.kind, Kind::WHOLE)
        || at + outer::VXLAN_LEN as u32 > headers.end
        || parse::load(packet, at, &mut vxlan).is_err()
    {
        return NOTHING;
    }
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    let ethertype = u16::from_ne_bytes([vxlan[20], vxlan[21]]);
    if vxlan[0] != 0x08 || vni != config.vni {
        NOTHING
    } else if ethertype == Addr4::ETHERTYPE {
        V4
    } else if ethertype == Addr6::ETHERTYPE {
        V6
    } else {
        NOTHING
    }
}

/// A bare packet: its first four bits tell its family.
#[inline(always)]
fn inside_udp<A: Ip, P: Packet>(packet: &P, headers: &Headers<A>, at: u32) -> Inside {
    let mut start = [0u8; 2];
    if !matches!(headers.kind, Kind::WHOLE)
        || at + Addr4::HEADER_LEN as u32 > headers.end
        || parse::load(packet, at, &mut start).is_err()
    {
        return NOTHING;
    }
    (start[0] >> 4) as Inside
}

/// The node with the underlay address `from` may send the inner packet at `at` only if the route to the packet's source
/// leads to that node. Returns 0 or a drop reason's number.
#[inline(always)]
fn check_sender<I: Ip, A: Ip, P: Packet, N: Node<I>>(
    packet: &P,
    node: &N,
    at: u32,
    from: &A,
) -> u32 {
    let mut src = [0u8; 16];
    if packet
        .load(at + I::SRC_AT as u32, &mut src[..I::LEN])
        .is_err()
    {
        return DropReason::Malformed as u32;
    }
    let peer_id = node.route(&I::read(&src, 0));
    match peer_id.and_then(|peer_id| node.peer(peer_id)) {
        Some(peer)
            if peer.underlay_family == A::FAMILY as u8
                && A::read(&peer.underlay_addr, 0) == *from =>
        {
            0
        }
        _ => DropReason::OverlayUnknownPeer as u32,
    }
}
