//! The path of a packet: connection, service, way. One function for each hook.

use ebpf_abi::{Addr4, Addr6, Config, DropReason};

use crate::{
    Entry, Ip, Node, Packet, PeerEvent, decapsulate, direct_return,
    forward::{Forward, Place, Way, masquerades},
    fragment, icmp_answer, icmp_error,
    ip::ETH_LEN,
    open,
    parse::{Headers, Kind, protocol},
    refuse, track,
    verdict::{Next, Step, Verdict},
    write::{ECN_CONGESTION, Target},
};

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Origin {
    Pod = 0,
    Host = 1,
    Network = 2,
    /// Out of the overlay, decapsulated.
    Overlay = 3,
}

const POD: u8 = Origin::Pod as u8;
const HOST: u8 = Origin::Host as u8;
const NETWORK: u8 = Origin::Network as u8;

impl Origin {
    #[inline(always)]
    pub(crate) const fn of(number: u8) -> Self {
        match number {
            POD => Self::Pod,
            HOST => Self::Host,
            NETWORK => Self::Network,
            _ => Self::Overlay,
        }
    }
}

/// A packet that a pod sent, at the host side of its veth.
#[inline(always)]
pub fn from_pod<P: Packet, N: Node<Addr4> + Node<Addr6>>(packet: &mut P, node: &N) -> Verdict {
    from::<P, N, POD>(packet, node)
}

/// A packet that a process of the host sent to a pod or a service, leaving by `fairlead0`.
#[inline(always)]
pub fn from_host<P: Packet, N: Node<Addr4> + Node<Addr6>>(packet: &mut P, node: &N) -> Verdict {
    from::<P, N, HOST>(packet, node)
}

/// A packet that arrived on the uplink.
#[inline(always)]
pub fn from_network<P: Packet, N: Node<Addr4> + Node<Addr6>>(packet: &mut P, node: &N) -> Verdict {
    from::<P, N, NETWORK>(packet, node)
}

/// A packet that the kernel's VXLAN device took out of the overlay.
#[inline(always)]
pub fn from_vxlan<P: Packet, N: Node<Addr4> + Node<Addr6>>(packet: &mut P, node: &N) -> Verdict {
    let ethertype = packet.ethertype();
    if ethertype == Addr4::ETHERTYPE {
        let step = leave_device::<Addr4, P, N>(packet, node);
        finish::<Addr4, P, N>(packet, node, step, Origin::Overlay)
    } else if ethertype == Addr6::ETHERTYPE {
        let step = leave_device::<Addr6, P, N>(packet, node);
        finish::<Addr6, P, N>(packet, node, step, Origin::Overlay)
    } else {
        Verdict::Drop(DropReason::OverlayBadHeader)
    }
}

#[inline(always)]
fn from<P: Packet, N: Node<Addr4> + Node<Addr6>, const ORIGIN: u8>(
    packet: &mut P,
    node: &N,
) -> Verdict {
    let mut origin = Origin::of(ORIGIN);
    let ethertype = packet.ethertype();
    let (mut step, mut ipv6) = if ethertype == Addr4::ETHERTYPE {
        (enter::<Addr4, P, N, ORIGIN>(packet, node), false)
    } else if ethertype == Addr6::ETHERTYPE {
        (enter::<Addr6, P, N, ORIGIN>(packet, node), true)
    } else {
        return Verdict::Pass;
    };
    if ORIGIN == NETWORK && !step.is_verdict() {
        // Plain or overlay, labelled or not: all ways go on as one, which the verifier follows once.
        step = step.forgotten(packet);
        ipv6 = packet.forget_range(ipv6 as u32) != 0;
    }
    let arrived = step;
    if ORIGIN == NETWORK && !step.is_verdict() {
        let outer_ecn = step.outer_ecn();
        match step.next() {
            Next::Inner4 => {
                (origin, ipv6) = (Origin::Overlay, false);
                step = leave_overlay::<Addr4, P, N>(packet, node, outer_ecn);
            }
            Next::Inner6 => {
                (origin, ipv6) = (Origin::Overlay, true);
                step = leave_overlay::<Addr6, P, N>(packet, node, outer_ecn);
            }
            _ => {}
        }
    }
    let verdict = if ipv6 {
        finish::<Addr6, P, N>(packet, node, step, origin)
    } else {
        finish::<Addr4, P, N>(packet, node, step, origin)
    };
    if ORIGIN == NETWORK && matches!(origin, Origin::Overlay) && matches!(verdict, Verdict::Drop(_))
    {
        let bytes = packet.length() - ETH_LEN as u32;
        Node::<Addr4>::count_peer(node, arrived.sender(), PeerEvent::Dropped, bytes);
    }
    verdict
}

/// What comes from the network may be the overlay's.
#[inline(always)]
fn enter<A, P, N, const ORIGIN: u8>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Packet,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    if ORIGIN == NETWORK {
        let step = decapsulate::decapsulate::<A, P, N>(packet, node);
        if step.next() == Next::Labelled {
            return Step(packet.receive_handed_on(node, step.payload()));
        }
        if step != decapsulate::NOT_OVERLAY {
            return step;
        }
    }
    through::<A, P, N, ORIGIN>(packet, node)
}

/// A packet on its way; a connection's first packet goes it twice, the second time as a tracked one.
#[inline(always)]
fn through<A, P, N, const ORIGIN: u8>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Packet,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let mut opened = false;
    loop {
        let step = arrive::<A, P, N, ORIGIN>(packet, node);
        let code = match step.next() {
            _ if opened || step.is_verdict() => return step,
            Next::OpenService => open::service::<A, P, N>(packet, node, ORIGIN),
            Next::OpenMasquerade => open::masquerade::<A, P, N>(packet, node),
            Next::OpenDirect => open::direct::<A, P, N>(packet, node),
            _ => return step,
        };
        if code != open::OPENED {
            return open::failed(code);
        }
        opened = true;
    }
}

/// The stages that few packets need.
#[inline(always)]
fn finish<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    mut step: Step,
    origin: Origin,
) -> Verdict {
    if step.is_verdict() {
        return step.verdict();
    }
    if step.next() == Next::IcmpError {
        step = icmp_error::translate::<A, P, N>(packet, node, origin);
    }
    if matches!(origin, Origin::Network) && step.next() == Next::HandOn {
        step = Step(packet.hand_on::<A, N>(node));
    }
    if step.next() == Next::TimeExceeded {
        step = icmp_answer::time_exceeded::<A, P, N>(packet, node, origin);
    }
    if step.next() == Next::Refuse {
        step = refuse::answer::<A, P, N>(packet, node, origin);
    }
    if step.next() == Next::TooBig {
        step = match origin {
            // The host's own stack knows the MTU of `fairlead0`.
            Origin::Host => Step::drop(DropReason::TooBig),
            _ => icmp_answer::too_big::<A, P, N>(packet, node, step.payload(), origin),
        };
    }
    step.verdict()
}

/// A packet as it arrives at a hook.
#[inline(never)]
fn arrive<A, P, N, const ORIGIN: u8>(packet: &mut P, node: &N) -> Step
where
    A: Ip,
    P: Packet,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let mut headers = Headers::<A>::new();
    if let Err(reason) = headers.parse(packet) {
        return Step::drop(reason);
    }
    route_in::<A, P, N>(packet, node, &mut headers, Origin::of(ORIGIN))
}

/// A packet out of the overlay. `outer_ecn`: the ECN field that the underlay's routers may have changed (RFC 6040
/// section 4.2).
#[inline(never)]
fn leave_overlay<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N, outer_ecn: u32) -> Step {
    let mut headers = Headers::<A>::new();
    if let Err(reason) = headers.parse(packet) {
        return Step::drop(reason);
    }
    if outer_ecn == ECN_CONGESTION as u32 {
        match headers.mark_congestion(packet) {
            Ok(true) => {}
            Ok(false) => return Step::drop(DropReason::OverlayCongestion),
            Err(reason) => return Step::drop(reason),
        }
    }
    route_in(packet, node, &mut headers, Origin::Overlay)
}

/// A packet out of the kernel's device. It does not tell which node sent it, so all that can be asked is that some node
/// has the source.
#[inline(never)]
fn leave_device<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N) -> Step {
    let mut headers = Headers::<A>::new();
    if let Err(reason) = headers.parse(packet) {
        return Step::drop(reason);
    }
    if node.route(&headers.tuple().src).is_none() {
        return Step::drop(DropReason::OverlayUnknownPeer);
    }
    route_in(packet, node, &mut headers, Origin::Overlay)
}

#[inline(always)]
fn route_in<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    headers: &mut Headers<A>,
    origin: Origin,
) -> Step {
    let overlay = matches!(origin, Origin::Overlay);
    let Some(config) = node.config() else {
        return if overlay {
            Step::drop(DropReason::NoConfig)
        } else {
            Step::PASS
        };
    };
    if headers.tuple().dst.stays_on_link()
        || headers.tuple().src.stays_on_link()
        || matches!(headers.kind, Kind::NEIGHBOUR_DISCOVERY)
    {
        return if overlay {
            Step::drop(DropReason::OverlayNotLocal)
        } else {
            Step::PASS
        };
    }
    if matches!(headers.kind, Kind::ICMP_ERROR) {
        return Step::ICMP_ERROR;
    }
    let fragment_id_be = headers.fragment_id_be;
    let known = !matches!(headers.kind, Kind::LATER_FRAGMENT)
        || fragment::recall(node, headers.tuple_mut(), fragment_id_be);
    let entry = if known && !matches!(headers.kind, Kind::ICMP_OTHER) {
        follow_connection(node, headers)
    } else {
        None
    };
    let target = entry.as_ref().map(|entry| Target(entry.answers()));
    let way = match target {
        Some(target) => Way::find(node, target.dst()),
        None => Way::find(node, &headers.tuple().dst),
    };
    if target.is_some() {
        if matches!(headers.kind, Kind::FIRST_FRAGMENT) {
            fragment::remember(node, headers.tuple(), fragment_id_be);
        }
    } else if !overlay && known {
        if way.is_pod() {
            if may_follow_a_service(headers, origin)
                && track::answers_are_anothers(node, headers.tuple_mut())
            {
                return Step::OPEN_DIRECT;
            }
            if matches!(origin, Origin::Network)
                && matches!(way.place, Place::Pod)
                && asks_a_pod_itself(node, config, headers)
            {
                return Step::OPEN_DIRECT;
            }
        } else if open::frontend(node, headers.tuple(), origin).is_some() {
            return Step::OPEN_SERVICE;
        } else if way.is_service() && refuse::concerns(headers, &way, origin) {
            return Step::REFUSE;
        }
    }
    if matches!(origin, Origin::Network)
        && matches!(way.place, Place::Peer)
        && entry.as_ref().is_some_and(direct_return::is_handed_on)
    {
        return Step::HAND_ON;
    }
    Forward {
        config,
        target,
        origin,
        hands_on: false,
    }
    .send(packet, node, headers, way)
}

/// The connection of a packet, on which it leaves its mark; `None` if there is none, or it had to be forgotten.
#[inline(always)]
fn follow_connection<'n, A: Ip, N: Node<A>>(
    node: &'n N,
    headers: &Headers<A>,
) -> Option<N::Entry<'n>> {
    let entry = node.conn(headers.tuple())?;
    let state = entry.state();
    let is_reply = entry.is_reply();
    if track::is_stale(node, headers, &state, is_reply) {
        entry.forget();
        return None;
    }
    let flags = track::flags_of(headers, state.flags, is_reply);
    entry.record(&state, node.now_ns(), flags);
    Some(entry)
}

/// Whether a client outside of the cluster begins to talk to a pod by the pod's own address: whatever goes to the client
/// without a connection is taken for something that the pod begins, and gets the node's address.
#[inline(always)]
fn asks_a_pod_itself<A: Ip, N: Node<A>>(node: &N, config: &Config, headers: &Headers<A>) -> bool {
    let begins = match headers.kind {
        Kind::WHOLE | Kind::FIRST_FRAGMENT => headers.is_tcp_open() || !headers.is_tcp(),
        _ => false,
    };
    let src = &headers.tuple().src;
    begins && node.route(src).is_none() && masquerades(node, config, src)
}

/// Whether a packet to a pod without connection may belong to a client that reached the same pod through a service
/// before, from the same port. Every UDP packet may; of those from the network only TCP's opening ones are looked at,
/// since it takes a client outside that turns from a NodePort to the pod's own address.
#[inline(always)]
fn may_follow_a_service<A: Ip>(headers: &Headers<A>, origin: Origin) -> bool {
    headers.is_tcp_open()
        || (headers.tuple().protocol == protocol::UDP && !matches!(origin, Origin::Network))
}
