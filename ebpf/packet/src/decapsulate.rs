//! Out of the overlay: what is accepted from whom, and the outer headers taken off.

use ebpf_abi::{
    Addr4, Addr6, Config, DropReason, Family, config_flag, direct_label, overlay_header as outer,
};

use crate::{
    Ip, Node, Packet, PeerEvent,
    ip::{ETH_LEN, Header},
    parse::{self, Headers, Kind, Payload, protocol},
    verdict::Step,
    write::ECN_CONGESTION,
};

/// What [`decapsulate`] says of a packet that is to be looked at as any other.
pub(crate) const NOT_OVERLAY: Step = Step::PASS;

/// What of the outer headers decides.
#[derive(Clone, Copy)]
pub(crate) struct Outer<A> {
    pub(crate) src: A,
    /// Where the UDP payload starts, and where the IP packet ends.
    at: u32,
    end: u32,
    whole: bool,
}

impl<A: Ip> Outer<A> {
    #[inline(always)]
    pub(crate) fn of(headers: &Headers<A>) -> Self {
        Self {
            src: headers.tuple().src,
            at: headers.l4_at + outer::UDP_LEN as u32,
            end: headers.end,
            whole: matches!(headers.kind, Kind::WHOLE),
        }
    }
}

/// Whether a packet from the network is the overlay's: then nothing of it may reach the host's stack.
#[inline(always)]
pub(crate) fn is_overlay<A: Ip>(config: &Config, headers: &Headers<A>) -> bool {
    config.flags & config_flag::OVERLAY != 0
        && headers.tuple().protocol == protocol::UDP
        && headers.tuple().dst_port_be == config.overlay_port_be
        && headers.tuple().dst == A::settings(config).node_addr
}

/// If a packet from the network is the overlay's, takes the outer headers off: the IP header with options, UDP, with VXLAN
/// its header and the inner Ethernet header. Then nothing of it may reach the host's stack; it is unchanged if it is
/// refused.
///
/// The first thing that such packets meet, and all that is read of their outer headers; what is labelled is left as it is.
#[inline(never)]
pub(crate) fn decapsulate<A, P, N>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Packet,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let Some(config) = Node::<A>::config(node) else {
        return NOT_OVERLAY;
    };
    let mut header = A::Header::ZERO;
    let header = header.ip_mut();
    if config.flags & config_flag::OVERLAY == 0
        || packet.load_words(ETH_LEN as u32, header).is_err()
        || A::read(header, A::DST_AT) != A::settings(config).node_addr
    {
        return NOT_OVERLAY;
    }
    let Ok(payload) = A::locate(packet, header, ETH_LEN as u32, false) else {
        return NOT_OVERLAY;
    };
    let mut udp = [0u8; outer::UDP_LEN];
    if payload.protocol != protocol::UDP
        || payload.later_fragment
        || packet.load(payload.at, &mut udp).is_err()
        || u16::from_ne_bytes([udp[2], udp[3]]) != config.overlay_port_be
    {
        return NOT_OVERLAY;
    }
    let outer = Outer {
        src: A::read(header, A::SRC_AT),
        at: payload.at + outer::UDP_LEN as u32,
        end: payload.end,
        whole: is_whole(&payload, u16::from_be_bytes([udp[4], udp[5]])),
    };
    let ecn = header[1] >> A::ECN_SHIFT & ECN_CONGESTION;
    let (inside, at) = look_inside(packet, config, &outer);
    let inner = inside & !LABELLED;
    if inside != inner {
        return Step::labelled(at, inner == V6);
    }
    let sender = check_inside(packet, node, inner, at, &outer.src);
    if sender & REFUSED != 0 {
        return Step::drop_numbered(sender & !REFUSED);
    }
    Node::<Addr4>::count_peer(node, sender, PeerEvent::Received, outer.end - at);
    take_off(packet, inner, at, ecn, sender)
}

/// Whether the packet is no fragment and holds what its UDP header says.
#[inline(always)]
fn is_whole(payload: &Payload, udp_len: u16) -> bool {
    let udp_len = udp_len as u32;
    !payload.first_fragment
        && udp_len >= outer::UDP_LEN as u32
        && payload.at + udp_len <= payload.end
}

/// What is inside, and where.
#[inline(always)]
pub(crate) fn look_inside<A: Ip, P: Packet>(
    packet: &P,
    config: &Config,
    outer: &Outer<A>,
) -> (Inside, u32) {
    if config.flags & config_flag::OVERLAY_UDP == 0 {
        let at = outer.at + outer::VXLAN_LEN as u32;
        (inside_vxlan(packet, config, outer), at)
    } else {
        (inside_udp(packet, outer), outer.at)
    }
}

/// Set in what [`check_inside`] returns beside the number of a drop reason; ids of peers are far smaller.
pub(crate) const REFUSED: u32 = 1 << 31;

/// Whether the outer sender may send what is inside. Returns the id of the peer that it is, or [`REFUSED`] with a drop
/// reason's number: the verifier takes enums apart that travel in registers.
#[inline(always)]
pub(crate) fn check_inside<A, P, N>(packet: &P, node: &N, inner: Inside, at: u32, from: &A) -> u32
where
    A: Ip,
    P: Packet,
    N: Node<Addr4> + Node<Addr6>,
{
    match inner {
        V4 => sender::<Addr4, A, P, N>(packet, node, at, from),
        V6 => sender::<Addr6, A, P, N>(packet, node, at, from),
        _ => REFUSED | DropReason::OverlayBadHeader as u32,
    }
}

/// Takes the outer headers off.
#[inline(always)]
pub(crate) fn take_off<P: Packet>(
    packet: &mut P,
    inner: Inside,
    at: u32,
    ecn: u8,
    peer_id: u32,
) -> Step {
    let (family, step) = match inner {
        V4 => (Family::V4, Step::inner4(ecn, peer_id)),
        _ => (Family::V6, Step::inner6(ecn, peer_id)),
    };
    match packet.remove_overlay(at - ETH_LEN as u32, family) {
        Ok(()) => step,
        Err(_) => Step::drop(DropReason::Malformed),
    }
}

/// What is inside: a number, as the verifier takes enums apart that travel in registers.
pub(crate) type Inside = u32;
const NOTHING: Inside = 0;
pub(crate) const V4: Inside = 4;
pub(crate) const V6: Inside = 6;
/// Set where another node hands on what arrived there: see [`crate::direct_return`].
pub(crate) const LABELLED: Inside = 1 << 8;

/// RFC 7348 section 5.
#[inline(always)]
fn inside_vxlan<A: Ip, P: Packet>(packet: &P, config: &Config, outer: &Outer<A>) -> Inside {
    let mut vxlan = [0u8; outer::VXLAN_LEN];
    if !outer.whole
        || outer.at + outer::VXLAN_LEN as u32 > outer.end
        || parse::load(packet, outer.at, &mut vxlan).is_err()
    {
        return NOTHING;
    }
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    let ethertype = u16::from_ne_bytes([vxlan[20], vxlan[21]]);
    let labelled = match vxlan[0] {
        0x08 => 0,
        direct_label::FLAGS => LABELLED,
        _ => return NOTHING,
    };
    if vni != config.vni {
        NOTHING
    } else if ethertype == Addr4::ETHERTYPE {
        V4 | labelled
    } else if ethertype == Addr6::ETHERTYPE {
        V6 | labelled
    } else {
        NOTHING
    }
}

/// A bare packet: its first four bits tell its family.
#[inline(always)]
fn inside_udp<A: Ip, P: Packet>(packet: &P, outer: &Outer<A>) -> Inside {
    let mut start = [0u8; 2];
    if !outer.whole
        || outer.at + Addr4::HEADER_LEN as u32 > outer.end
        || parse::load(packet, outer.at, &mut start).is_err()
    {
        return NOTHING;
    }
    (start[0] >> 4) as Inside
}

/// The id of the peer with the underlay address `from`, if the route to the source of the inner packet at `at` leads to
/// it; else [`REFUSED`] with a drop reason's number.
#[inline(always)]
fn sender<I: Ip, A: Ip, P: Packet, N: Node<I>>(packet: &P, node: &N, at: u32, from: &A) -> u32 {
    let mut src = [0u8; 16];
    if packet
        .load(at + I::SRC_AT as u32, &mut src[..I::LEN])
        .is_err()
    {
        return REFUSED | DropReason::Malformed as u32;
    }
    // No route leads to the id 0, and no peer has it.
    let peer_id = node.route(&I::read(&src, 0)).unwrap_or(0);
    sent_by::<I, A, N>(node, peer_id, from)
}

/// The id of a peer, if its underlay address is `from`; else [`REFUSED`] with a drop reason's number.
#[inline(always)]
pub(crate) fn sent_by<I: Ip, A: Ip, N: Node<I>>(node: &N, peer_id: u32, from: &A) -> u32 {
    match node.peer(peer_id) {
        Some(peer)
            if peer.underlay_family == A::FAMILY as u8
                && A::read(&peer.underlay_addr, 0) == *from =>
        {
            peer_id
        }
        _ => REFUSED | DropReason::OverlayUnknownPeer as u32,
    }
}
