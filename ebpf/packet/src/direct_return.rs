//! Direct server return: what arrives from outside for a backend of another node is handed on as it is, and that node
//! answers the client in the name of the address that was asked. Answers spare a hop, and the backend sees its client.
//!
//! The packet travels by VXLAN with a label ([`direct_label`]). Its record at the first node says where it goes; at the
//! backend's it is one as of any service, so that only the client's packets need a label.

use ebpf_abi::{
    Addr4, Addr6, Config, ConnKey, DropReason, Peer, config_flag, conn_flag, direct_label,
    overlay_header,
};

use crate::{
    Entry, Ip, Node, Packet, PeerEvent,
    decapsulate::{self, REFUSED, V4, V6, sent_by},
    forward::{Forward, Place, Way},
    fragment,
    icmp_error::Quote,
    ip::ETH_LEN,
    parse::{Headers, Kind, protocol},
    path::Origin,
    track::New,
    verdict::Step,
    write::{ECN_CONGESTION, Target},
};

/// Bytes that a label has for an address.
const HOST_PART: usize = direct_label::SENDER - direct_label::ADDR;
/// Bytes of a label that name the sender.
const SENDER_LEN: usize = direct_label::LEN - direct_label::SENDER;
/// Where the VNI lies, which stays.
const VNI_AT: usize = 4;

/// Whether the packets of this direction are handed on.
#[inline(always)]
pub(crate) fn is_handed_on<A: Ip>(entry: &impl Entry<A>) -> bool {
    !entry.is_reply() && entry.state().flags & conn_flag::DIRECT_RETURN != 0
}

/// Hands a packet of a tracked connection on, or an ICMP error about an answer that left in this node's name. Returns
/// the number that a [`Step`] is.
#[inline(always)]
pub fn hand_on<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N) -> u64 {
    let mut backend = ConnKey::default();
    if !find_backend(packet, node, &mut backend) {
        return Step::drop(DropReason::NoConnection).0;
    }
    send(packet, node, &backend).0
}

#[inline(never)]
fn send<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N, backend: &ConnKey<A>) -> Step {
    let mut headers = Headers::<A>::new();
    let Some(config) = node.config() else {
        return Step::drop(DropReason::NoConfig);
    };
    if let Err(reason) = headers.parse(packet) {
        return Step::drop(reason);
    }
    let forward = Forward {
        config,
        target: Some(Target(backend)),
        origin: Origin::Network,
        hands_on: true,
    };
    let way = Way::find(node, &backend.src);
    forward.send(packet, node, &mut headers, way)
}

/// With which tuple the backend would answer the packet.
#[inline(never)]
fn find_backend<A: Ip, P: Packet, N: Node<A>>(
    packet: &P,
    node: &N,
    backend: &mut ConnKey<A>,
) -> bool {
    let mut headers = Headers::<A>::new();
    if headers.parse(packet).is_err() {
        return false;
    }
    let later = matches!(headers.kind, Kind::LATER_FRAGMENT);
    let fragment_id_be = headers.fragment_id_be;
    if later && !fragment::recall(node, headers.tuple_mut(), fragment_id_be) {
        return false;
    }
    let quote_at = headers.l4_at + 8;
    if matches!(headers.kind, Kind::ICMP_ERROR)
        && !read_quote(packet, quote_at, headers.tuple_mut())
    {
        return false;
    }
    let entry = node.conn(headers.tuple()).filter(is_handed_on);
    if let Some(entry) = &entry {
        *backend = *entry.answers();
    }
    entry.is_some()
}

/// The tuple of the answers to a quoted packet.
#[inline(never)]
fn read_quote<A: Ip, P: Packet>(packet: &P, at: u32, tuple: &mut ConnKey<A>) -> bool {
    let mut quote = Quote::<A>::at(at);
    let is_read = quote.read(packet);
    *tuple = quote.tuple().reversed();
    is_read
}

/// Labels a packet that was just encapsulated for this peer: it is for this backend.
#[inline(never)]
pub(crate) fn label<A: Ip, P: Packet>(
    packet: &mut P,
    config: &Config,
    peer: Option<&Peer>,
    backend: Option<Target<'_, A>>,
) -> Result<(), DropReason> {
    let (Some(peer), Some(backend)) = (peer, backend) else {
        return Err(DropReason::NoPeer);
    };
    let at = match peer.header_len as usize {
        overlay_header::VXLAN_OVER_IPV4 => overlay_header::UDP_OVER_IPV4,
        overlay_header::VXLAN_OVER_IPV6 => overlay_header::UDP_OVER_IPV6,
        // It went over to packets that have no room for a label.
        _ => return Err(DropReason::NoPeer),
    };
    let at = (ETH_LEN + at) as u32;
    let port = backend.dst_port_be().to_ne_bytes();
    let start: [u8; VNI_AT] = [direct_label::FLAGS, port[0], port[1], 0];
    let mut rest = [0; HOST_PART + SENDER_LEN];
    let addr = backend.dst().as_bytes();
    let len = host_len::<A>();
    rest[HOST_PART - len..HOST_PART].copy_from_slice(&addr[A::LEN - len..]);
    rest[HOST_PART..].copy_from_slice(&sender(config));
    packet
        .store(at, &start)
        .and_then(|()| packet.store(at + direct_label::ADDR as u32, &rest))
        .map_err(|_| DropReason::RewriteFailed)
}

/// What of this node's podCIDR tells it from the others.
#[inline(always)]
fn sender(config: &Config) -> [u8; SENDER_LEN] {
    if config.v4.source_nat_addr.is_unset() {
        let [_, _, _, _, a, b, c, d, ..] = config.v6.source_nat_addr.bytes;
        [a, b, c, d]
    } else {
        config.v4.source_nat_addr.bytes
    }
}

/// The peer that calls itself so; 0 if there is none.
#[inline(always)]
fn peer_of<N: Node<Addr4> + Node<Addr6>>(node: &N, config: &Config, name: [u8; SENDER_LEN]) -> u32 {
    let route = if config.v4.source_nat_addr.is_unset() {
        // The cluster's podCIDRs begin alike.
        let mut addr = config.v6.source_nat_addr;
        addr.bytes[4..8].copy_from_slice(&name);
        Node::<Addr6>::route(node, &addr)
    } else {
        Node::<Addr4>::route(node, &Addr4 { bytes: name })
    };
    route.unwrap_or(0)
}

/// Takes a labelled packet out of the overlay, if a node that is known may hand it on. `labelled`: the payload of that
/// [`Step`]. Returns the number that a [`Step`] is.
#[inline(always)]
pub fn receive<P, N>(packet: &mut P, node: &N, labelled: u32) -> u64
where
    P: Packet,
    N: Node<Addr4> + Node<Addr6>,
{
    let labelled = Step::of_labelled(labelled);
    let at = labelled.inner_at();
    let over_ipv4 = packet.ethertype() == Addr4::ETHERTYPE;
    let sender = if over_ipv4 {
        sender_of::<Addr4, P, N>(packet, node, at)
    } else {
        sender_of::<Addr6, P, N>(packet, node, at)
    };
    // Both underlays go on as one.
    let sender = packet.forget_range(sender);
    if sender & REFUSED != 0 {
        return Step::drop_numbered(sender & !REFUSED).0;
    }
    let (inner, code) = if labelled.is_ipv6() {
        (V6, accept::<Addr6, P, N>(packet, node, at))
    } else {
        (V4, accept::<Addr4, P, N>(packet, node, at))
    };
    let mut start = [0; 2];
    if code != 0 || packet.load(ETH_LEN as u32, &mut start).is_err() {
        return Step::drop_numbered(code).0;
    }
    let shift = if over_ipv4 {
        Addr4::ECN_SHIFT
    } else {
        Addr6::ECN_SHIFT
    };
    Node::<Addr4>::count_peer(node, sender, PeerEvent::Received, packet.length() - at);
    let ecn = start[1] >> shift & ECN_CONGESTION;
    decapsulate::take_off(packet, inner, at, ecn, sender).0
}

/// Which node hands a labelled packet on: the client is a stranger here, that node is not. `at`: where the inner packet
/// starts. Returns the id of the peer, or [`REFUSED`] with a drop reason's number.
///
/// Here and below, functions of their own one after the other, so that their stack frames do not add up.
#[inline(never)]
fn sender_of<A, P, N>(packet: &P, node: &N, at: u32) -> u32
where
    A: Ip,
    P: Packet,
    N: Node<A> + Node<Addr4> + Node<Addr6>,
{
    let Some(config) = Node::<A>::config(node) else {
        return REFUSED | DropReason::NoConfig as u32;
    };
    let (mut from, mut name) = ([0; 16], [0; SENDER_LEN]);
    let name_at = label_at(at) + direct_label::SENDER as u32;
    if packet
        .load((ETH_LEN + A::SRC_AT) as u32, &mut from[..A::LEN])
        .is_err()
        || packet.load(name_at, &mut name).is_err()
    {
        return REFUSED | DropReason::Malformed as u32;
    }
    let peer_id = peer_of(node, config, name);
    sent_by::<A, A, N>(node, peer_id, &A::read(&from, 0))
}

/// Where the label of an inner packet lies.
#[inline(always)]
fn label_at(inner_at: u32) -> u32 {
    inner_at - overlay_header::VXLAN_LEN as u32
}

/// Sees to it that a packet which is handed on belongs to a connection of its client to the backend of the label, so
/// that it goes on as any tracked one. Returns 0 or the number of a drop reason.
///
/// ICMP errors and later fragments are looked for among the connections as all are.
#[inline(never)]
fn accept<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N, at: u32) -> u32 {
    let mut tuple = ConnKey::<A>::default();
    let has_ports = read(packet, at, &mut tuple);
    let code = check(node, &tuple);
    if code != 0 || !has_ports {
        return code;
    }
    let mut new = New::keeping_source(&tuple);
    if !choose(packet, node, at, &mut new.target) {
        return DropReason::Malformed as u32;
    }
    if goes_on(node, &tuple, &new.target) {
        return 0;
    }
    if !may_begin(node, &new.target) {
        return DropReason::OverlayNotLocal as u32;
    }
    new.use_clients_ports();
    new.insert(node, &tuple, 0)
}

/// Reads the inner tuple; `false` if it has no ports, of which the addresses are read all the same.
#[inline(never)]
fn read<A: Ip, P: Packet>(packet: &P, at: u32, tuple: &mut ConnKey<A>) -> bool {
    let mut inner = Quote::<A>::at(at);
    let has_ports = inner.read(packet);
    *tuple = *inner.tuple();
    has_ports
        && matches!(
            tuple.protocol,
            protocol::TCP | protocol::UDP | protocol::SCTP
        )
}

/// Only clients outside are handed on, and only what they ask of an address that is not here. Returns 0 or the number of
/// a drop reason.
#[inline(never)]
fn check<A: Ip, N: Node<A>>(node: &N, tuple: &ConnKey<A>) -> u32 {
    let client = Way::find(node, &tuple.src);
    if !matches!(client.place, Place::Outside) || client.is_service() {
        DropReason::OverlayUnknownPeer as u32
    } else if !matches!(Way::find(node, &tuple.dst).place, Place::Outside) {
        DropReason::OverlayNotLocal as u32
    } else {
        0
    }
}

/// Gives the tuple the backend of the label: the rest of an IPv6 address is that of all pods here.
#[inline(never)]
fn choose<A: Ip, P: Packet, N: Node<A>>(
    packet: &P,
    node: &N,
    at: u32,
    target: &mut ConnKey<A>,
) -> bool {
    let (mut start, mut part) = ([0; VNI_AT], [0; HOST_PART]);
    let label = label_at(at);
    let Some(config) = node.config() else {
        return false;
    };
    if packet.load(label, &mut start).is_err()
        || packet
            .load(label + direct_label::ADDR as u32, &mut part)
            .is_err()
    {
        return false;
    }
    let mut bytes = [0; 16];
    A::settings(config).source_nat_addr.write(&mut bytes, 0);
    bytes[A::LEN - host_len::<A>()..A::LEN].copy_from_slice(&part[HOST_PART - host_len::<A>()..]);
    target.dst = A::read(&bytes, 0);
    target.dst_port_be =
        u16::from_ne_bytes([start[direct_label::PORT], start[direct_label::PORT + 1]]);
    true
}

/// Bytes of an address that a label has.
#[inline(always)]
const fn host_len<A: Ip>() -> usize {
    if A::LEN < HOST_PART {
        A::LEN
    } else {
        HOST_PART
    }
}

/// Whether the client's connection leads to this backend. One that leads elsewhere, or is over, makes room.
#[inline(never)]
fn goes_on<A: Ip, N: Node<A>>(node: &N, tuple: &ConnKey<A>, target: &ConnKey<A>) -> bool {
    let Some(entry) = node.conn(tuple) else {
        return false;
    };
    let answers = entry.answers();
    let same = !entry.is_reply()
        && answers.src == target.dst
        && answers.src_port_be == target.dst_port_be
        && !entry.state().has_ended();
    if !same {
        entry.forget();
    }
    same
}

#[inline(never)]
fn may_begin<A: Ip, N: Node<A>>(node: &N, target: &ConnKey<A>) -> bool {
    let wanted = node
        .config()
        .is_some_and(|config| config.flags & config_flag::DIRECT_RETURN != 0);
    wanted && matches!(Way::find(node, &target.dst).place, Place::Pod)
}
