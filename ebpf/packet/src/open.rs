//! The first packet of a connection that must be tracked: which backend, which source, and the connection's record.

use ebpf_abi::{Config, ConnKey, DropReason, Frontend, FrontendKey, conn_flag, peer_flag};

use crate::{
    Ip, Node, Packet,
    forward::{Place, Way, masquerades},
    parse::{Headers, protocol},
    path::Origin,
    select,
    track::{self, New},
    verdict::Step,
};

/// Result of the functions here, beside the numbers of drop reasons: the connection is tracked now.
pub(crate) const OPENED: u32 = 0;

/// The frontend that a packet is for, if it may be reached from there.
#[inline(always)]
pub(crate) fn frontend<A: Ip, N: Node<A>>(
    node: &N,
    tuple: &ConnKey<A>,
    origin: Origin,
) -> Option<Frontend> {
    if !matches!(
        tuple.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    ) {
        return None;
    }
    let key = FrontendKey {
        addr: tuple.dst,
        port_be: tuple.dst_port_be,
        protocol: tuple.protocol,
        pad: 0,
    };
    let frontend = node.frontend(&key)?;
    select::service_of(&frontend, origin).map(|_| frontend)
}

/// What becomes of a packet whose connection could not be opened: where no backend is, the client learns it at once.
#[inline(always)]
pub(crate) fn failed(code: u32) -> Step {
    if code == DropReason::NoBackend as u32 {
        Step::REFUSE
    } else {
        Step::drop_numbered(code)
    }
}

/// Selects a backend for a connection to a service and tracks it. Returns [`OPENED`] or a drop reason's number.
///
/// Here and below, functions of their own one after the other, so that their stack frames do not add up.
#[inline(never)]
pub(crate) fn service<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N, origin: u8) -> u32 {
    let mut tuple = ConnKey::<A>::default();
    let seen = read(packet, &mut tuple);
    if seen & READ == 0 {
        return seen;
    }
    let mut new = New::keeping_source(&tuple);
    let code = balance(node, &mut new, origin);
    if code != OPENED {
        return code;
    }
    new.insert(node, &tuple, seen & !READ)
}

/// Tracks a pod's connection that leaves the cluster: the node's address, a port of the reserved range. Returns
/// [`OPENED`] or a drop reason's number.
#[inline(never)]
pub(crate) fn masquerade<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N) -> u32 {
    let mut tuple = ConnKey::<A>::default();
    let seen = read(packet, &mut tuple);
    if seen & READ == 0 {
        return seen;
    }
    let Some(config) = node.config() else {
        return DropReason::NoConfig as u32;
    };
    let mut new = New::keeping_source(&tuple);
    new.use_node_ports(config);
    new.take_source();
    if new.target.src.is_unset() {
        return DropReason::NoConfig as u32;
    }
    new.insert(node, &tuple, seen & !READ)
}

/// Tracks a connection to a pod whose answers would be taken for those of another one, under another source port.
/// Returns [`OPENED`] or a drop reason's number.
#[inline(never)]
pub(crate) fn direct<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N) -> u32 {
    let mut tuple = ConnKey::<A>::default();
    let seen = read(packet, &mut tuple);
    if seen & READ == 0 {
        return seen;
    }
    let mut new = New::keeping_source(&tuple);
    new.use_clients_ports();
    new.insert(node, &tuple, seen & !READ)
}

/// Set in what [`read`] returns when it could read.
const READ: u32 = 1 << 31;

/// The packet's tuple; returns [`READ`] with the flags that its entry notes, or a drop reason's number.
#[inline(never)]
fn read<A: Ip, P: Packet>(packet: &P, tuple: &mut ConnKey<A>) -> u32 {
    let mut headers = Headers::<A>::new();
    if let Err(reason) = headers.parse(packet) {
        return reason as u32;
    }
    *tuple = *headers.tuple();
    READ | track::flags_of(&headers, 0, false)
}

/// Gives a connection to a service its backend and its source. Returns [`OPENED`] or a drop reason's number.
#[inline(never)]
fn balance<A: Ip, N: Node<A>>(node: &N, new: &mut New<A>, origin: u8) -> u32 {
    let origin = Origin::of(origin);
    let (Some(config), Some(frontend)) = (node.config(), frontend(node, &new.target, origin))
    else {
        return DropReason::NoConnection as u32;
    };
    let Some(service_id) = select::service_of(&frontend, origin) else {
        return DropReason::NoConnection as u32;
    };
    if !select::admits(node, &frontend, &new.target.src) {
        return DropReason::SourceNotAllowed as u32;
    }
    let Some((backend_id, backend)) =
        select::select(node, service_id, &select::Sender(&new.target))
    else {
        return select::why_none(node, service_id) as u32;
    };
    new.target.dst = backend.addr;
    new.target.dst_port_be = backend.port_be;
    new.backend_id = backend_id;
    new.backend_epoch = backend.epoch;
    new.flags = conn_flag::SERVICE;
    new.use_own_ports(config);
    match source(node, config, &new.target, origin) {
        Source::Kept => {}
        Source::HandedOn => new.flags |= conn_flag::DIRECT_RETURN,
        Source::Own => new.take_source(),
        Source::Node => {
            new.use_node_ports(config);
            new.take_source();
        }
    }
    if new.target.src.is_unset() {
        DropReason::NoConfig as u32
    } else {
        OPENED
    }
}

/// Which source address a new connection to a service shows to the backend.
enum Source {
    /// The client's.
    Kept,
    /// The client's: the backend's node gets the packets as they are, and answers itself.
    HandedOn,
    /// The node's address for source NAT, so that the answer comes back to this node.
    Own,
    /// The node's address on the uplink: the backend is outside of the cluster.
    Node,
}

#[inline(always)]
fn source<A: Ip, N: Node<A>>(
    node: &N,
    config: &Config,
    wanted: &ConnKey<A>,
    origin: Origin,
) -> Source {
    let from_network = matches!(origin, Origin::Network);
    let way = Way::find(node, &wanted.dst);
    match way.place {
        // Hairpin: the pod would take an answer from itself for its own packet.
        Place::Pod if wanted.src == wanted.dst => Source::Own,
        Place::Pod | Place::SourceNat => Source::Kept,
        Place::Peer if from_network && answers_directly(node, way.peer_id) => Source::HandedOn,
        Place::Host | Place::Peer if from_network => Source::Own,
        Place::Host | Place::Peer => Source::Kept,
        Place::Outside if from_network || masquerades(node, config, &wanted.dst) => Source::Node,
        Place::Outside => Source::Kept,
    }
}

/// Whether a node answers clients outside itself.
#[inline(always)]
fn answers_directly<A: Ip, N: Node<A>>(node: &N, peer_id: u32) -> bool {
    node.peer(peer_id)
        .is_some_and(|peer| peer.flags & peer_flag::DIRECT_RETURN != 0)
}
