//! What only passes through this node, at the device: a NodePort's packet whose backend is on another node, and the
//! answer. It goes on before the kernel makes a socket buffer of it.
//!
//! Everything else, and every packet about which there is any doubt, goes on unchanged to `from_network`: this stage
//! decides nothing that the other would decide differently, so it may come and go while packets flow. Both keep their
//! connections in the same table.

use ebpf_abi::{Addr4, Addr6, Config, ConnKey, DropReason, Family, Peer, conn_flag, peer_mode};

use crate::{
    Device, Entry, Ip, Neighbour, Node, PeerEvent,
    decapsulate::{self, Outer},
    encapsulate,
    forward::{self, Place, Way},
    icmp_error::Quote,
    ip::ETH_LEN,
    open,
    parse::{Headers, Kind, protocol},
    path::Origin,
    track,
    verdict::{Next, Step, Verdict},
    write::{ECN_CONGESTION, Target},
};

/// A packet as it arrives at the uplink, before `from_network`.
#[inline(always)]
pub fn from_device<P: Device, N: Node<Addr4> + Node<Addr6>>(packet: &mut P, node: &N) -> Verdict {
    if !is_for_this_machine(packet, node) {
        return Verdict::Pass;
    }
    let ethertype = packet.ethertype();
    let step = if ethertype == Addr4::ETHERTYPE {
        arrive::<Addr4, P, N>(packet, node)
    } else if ethertype == Addr6::ETHERTYPE {
        arrive::<Addr6, P, N>(packet, node)
    } else {
        return Verdict::Pass;
    };
    let inner = match step.next() {
        Next::Inner4 => pass_on::<Addr4, P, N>(packet, node),
        Next::Inner6 => pass_on::<Addr6, P, N>(packet, node),
        _ => step,
    };
    inner.verdict()
}

/// Whether the frame is addressed to the uplink: a bridge's port and a promiscuous device show what others are sent.
#[inline(always)]
fn is_for_this_machine<P: Device, N: Node<Addr4>>(packet: &P, node: &N) -> bool {
    let mut destination = [0; 6];
    let (Some(config), Ok(())) = (node.config(), packet.load(0, &mut destination)) else {
        return false;
    };
    destination == config.uplink_mac
}

#[inline(always)]
fn arrive<A, P, N>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Device,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let step = pass_on::<A, P, N>(packet, node);
    match step.next() {
        // Whatever fails, and whatever must be refused, `from_network` says.
        Next::OpenService
            if open::service::<A, P, N>(packet, node, Origin::Network as u8) == open::OPENED =>
        {
            pass_on::<A, P, N>(packet, node)
        }
        Next::OpenService => Step::PASS,
        Next::Overlay => leave_overlay::<A, P, N>(packet, node),
        _ => step,
    }
}

/// Sends a tracked packet on, if its way leads to another machine.
#[inline(never)]
fn pass_on<A: Ip, P: Device, N: Node<A>>(packet: &mut P, node: &N) -> Step {
    let mut headers = Headers::<A>::new();
    let Some(config) = node.config() else {
        return Step::PASS;
    };
    if headers.parse(packet).is_err() || !has_ports(&headers) {
        return Step::PASS;
    }
    if decapsulate::is_overlay(config, &headers) {
        return Step::OVERLAY;
    }
    let Some(entry) = node.conn(headers.tuple()) else {
        return match open::frontend(node, headers.tuple(), Origin::Network) {
            Some(_) => Step::OPEN_SERVICE,
            None => Step::PASS,
        };
    };
    let state = entry.state();
    let (target, is_reply) = (Target(entry.answers()), entry.is_reply());
    let is_handed_on = state.flags & conn_flag::DIRECT_RETURN != 0;
    if headers.ttl() <= 1 || is_handed_on || track::is_stale(node, &headers, &state, is_reply) {
        return Step::PASS;
    }
    let way = Way::find(node, target.dst());
    let mut neighbour = Neighbour::default();
    let peer = match way.place {
        Place::Peer => match next_node(packet, node, &headers, way.peer_id, &mut neighbour) {
            Some(peer) => Some(peer),
            None => return Step::PASS,
        },
        Place::Outside if leads_out(packet, config, &headers, target.0, &mut neighbour) => None,
        _ => return Step::PASS,
    };
    let flags = track::flags_of(&headers, state.flags, is_reply);
    entry.record(&state, node.now_ns(), flags);
    if let Err(reason) = headers.write(packet, Some(target), true) {
        return Step::drop(reason);
    }
    if packet.store_ethernet(neighbour.macs, A::ETHERTYPE).is_err() {
        return Step::drop(DropReason::RewriteFailed);
    }
    if let Some(peer) = peer.filter(|peer| peer.mode != peer_mode::DIRECT)
        && let Err(reason) = encapsulate::encapsulate(packet, &headers, peer)
    {
        return Step::drop(reason);
    }
    if matches!(way.place, Place::Peer) {
        let bytes = headers.end - ETH_LEN as u32;
        node.count_peer(way.peer_id, PeerEvent::Sent, bytes);
    }
    Step::transmit(neighbour.ifindex)
}

/// Whole packets with ports that may be rewritten at a known price.
#[inline(always)]
fn has_ports<A: Ip>(headers: &Headers<A>) -> bool {
    matches!(headers.kind, Kind::WHOLE)
        && matches!(headers.tuple().protocol, protocol::TCP | protocol::UDP)
}

/// The node behind a peer id, if the packet fits and the neighbour towards it is known.
#[inline(always)]
fn next_node<'n, A: Ip, P: Device, N: Node<A>>(
    packet: &P,
    node: &'n N,
    headers: &Headers<A>,
    peer_id: u32,
    neighbour: &mut Neighbour,
) -> Option<&'n Peer> {
    let peer = node.peer(peer_id)?;
    let usable = peer.mode != peer_mode::NONE
        && peer.mode <= peer_mode::UDP_ON_LINK
        && !forward::is_longer_than(packet, headers, peer.mtu)
        && (peer.device_ifindex == 0 || !encapsulate::needs_device(packet, headers, peer))
        && towards(packet, peer, neighbour);
    usable.then_some(peer)
}

/// The neighbour towards a node's underlay address.
#[inline(never)]
fn towards<P: Device>(packet: &P, peer: &Peer, neighbour: &mut Neighbour) -> bool {
    if peer.underlay_family == Family::V4 as u8 {
        let dst = Addr4::read(&peer.underlay_addr, 0);
        packet.neighbour(&Addr4::default(), &dst, neighbour)
    } else {
        let dst = Addr6::read(&peer.underlay_addr, 0);
        packet.neighbour(&Addr6::default(), &dst, neighbour)
    }
}

/// Whether the packet fits, and the neighbour towards its destination outside of the cluster is known.
#[inline(never)]
fn leads_out<A: Ip, P: Device>(
    packet: &P,
    config: &Config,
    headers: &Headers<A>,
    answers: &ConnKey<A>,
    neighbour: &mut Neighbour,
) -> bool {
    !forward::is_longer_than(packet, headers, config.uplink_mtu)
        && packet.neighbour(&answers.dst, &answers.src, neighbour)
}

/// Takes a packet out of the overlay, if it is an answer that leaves the cluster here; leaves it as it is if not. What
/// was marked on the way must be marked inside, which `from_network` does.
#[inline(never)]
fn leave_overlay<A, P, N>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Device,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let mut headers = Headers::<A>::new();
    let Some(config) = Node::<A>::config(node) else {
        return Step::PASS;
    };
    if headers.parse(packet).is_err() || headers.ecn() == ECN_CONGESTION {
        return Step::PASS;
    }
    let outer = Outer::of(&headers);
    let (inner, at) = decapsulate::look_inside(packet, config, &outer);
    let sender = decapsulate::check_inside(packet, node, inner, at, &outer.src);
    if sender & decapsulate::REFUSED != 0 {
        return Step::PASS;
    }
    let leaves = match inner {
        decapsulate::V4 => leaves_cluster::<Addr4, P, N>(packet, node, at),
        _ => leaves_cluster::<Addr6, P, N>(packet, node, at),
    };
    if leaves {
        let bytes = headers.end - at;
        Node::<A>::count_peer(node, sender, PeerEvent::Received, bytes);
        decapsulate::take_off(packet, inner, at, 0, sender)
    } else {
        Step::PASS
    }
}

/// Whether the packet at `at` belongs to a tracked connection with a client outside.
#[inline(never)]
fn leaves_cluster<A: Ip, P: Device, N: Node<A>>(packet: &P, node: &N, at: u32) -> bool {
    let mut inner = Quote::<A>::at(at);
    if !inner.read(packet) {
        return false;
    }
    let Some(entry) = node.conn(inner.tuple()) else {
        return false;
    };
    let dst = Target(entry.answers()).dst();
    matches!(Way::find(node, dst).place, Place::Outside)
}
