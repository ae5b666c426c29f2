//! Direct server return: the node that is asked hands packets on, the backend's node answers.

use ebpf_abi::{
    Addr4, Address, DropReason, config_flag, conn_flag, direct_label, overlay_header, peer_flag,
};
use ebpf_packet::Verdict;

use crate::{
    fragments::fragments,
    support::{
        Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, assert_checksums, in_both_families,
        key, label, labelled,
    },
};

in_both_families! {
    a_packet_for_another_nodes_backend_is_handed_on_as_it_is
    a_client_that_goes_on_is_established_though_no_answer_comes_this_way
    a_client_whose_port_is_taken_at_the_backend_is_not_handed_on
    without_the_other_nodes_word_the_source_is_replaced
    what_is_handed_on_reaches_the_backend_and_is_answered_from_here
    a_client_keeps_its_backend_here_until_the_other_node_names_another
    a_connection_that_is_over_may_be_opened_again
    what_a_stranger_hands_on_is_dropped
    only_clients_outside_and_addresses_elsewhere_are_handed_on
    new_connections_are_taken_only_where_that_is_wanted_and_old_ones_go_on
    an_error_about_an_answer_is_handed_on_to_the_backend
    fragments_are_handed_on_together
}

const CLIENT: u16 = 45000;
const PORT: u16 = 8080;
/// Bytes before the inner packet, over IPv4.
const OUTER: usize = 14 + overlay_header::VXLAN_OVER_IPV4;

fn client<A: TestFamily>() -> (A, u16) {
    (A::outside(9), CLIENT)
}

/// The address that is asked, at this node.
fn front<A: TestFamily>(node: u8) -> (A, u16)
where
    TestNode: Has<A>,
{
    (A::node(node), Scene::<A>::NODE_PORT)
}

/// Node 1, which hands on to node 2 and takes from it.
fn scene<A: TestFamily>(backends: &[(A, u16)]) -> Scene<A>
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::with_backends(backends);
    let peer = scene.node.peers.get_mut(&2).expect("node 2");
    peer.flags = peer_flag::DIRECT_RETURN;
    let config = scene.node.config.as_mut().expect("set");
    config.flags |= config_flag::DIRECT_RETURN;
    if A::LEN != Addr4::LEN {
        // A cluster of IPv6 alone.
        config.v4.source_nat_addr = Addr4::default();
    }
    scene
}

/// What node 2 hands on.
fn handed_on<A: TestFamily>(backend: (A, u16), inner: &Frame<A>) -> Wire {
    labelled(2, 2, backend, &inner.bytes())
}

#[track_caller]
fn assert_handed_on<A: TestFamily>(
    verdict: Verdict,
    wire: &Wire,
    backend: (A, u16),
    expected: &Frame<A>,
) {
    assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
    let at = OUTER - overlay_header::VXLAN_LEN;
    assert_eq!(wire.bytes[at..at + direct_label::LEN], label(1, backend));
    let inner = expected.clone().ttl(expected.ttl - 1).ip_bytes();
    assert_eq!(wire.bytes[OUTER..], inner);
}

fn a_packet_for_another_nodes_backend_is_handed_on_as_it_is<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(2, 9), PORT);
    let scene = scene::<A>(&[backend]);
    for request in [
        Frame::udp(client(), front(1)),
        Frame::tcp(client(), front(1), Tcp::SYN),
        Frame::sctp(client(), front(1)),
    ] {
        for _ in 0..2 {
            let mut wire = request.wire();
            let verdict = scene.network_sends(&mut wire);
            assert_handed_on(verdict, &wire, backend, &request);
        }
    }
    assert_eq!(scene.conn_count(), 3);
    // A backend of this node is reached as ever, and so is one of a node that is not asked to answer.
    let mut scene = scene;
    scene.set_backends(1, &[(A::pod(1, 3), PORT)]);
    let request = Frame::tcp((A::outside(8), CLIENT), front(1), Tcp::SYN);
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    let local = request.rewritten((A::outside(8), CLIENT), (A::pod(1, 3), PORT));
    scene.assert_delivered(verdict, &wire, 3, &local);
}

fn a_client_that_goes_on_is_established_though_no_answer_comes_this_way<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(&[(A::pod(2, 9), PORT)]);
    let conn = key(client::<A>(), front(1), 6);
    let flags_after = |tcp| {
        scene.network_sends(&mut Frame::tcp(client(), front(1), tcp).wire());
        scene.flags_of(&conn).expect("tracked")
    };
    const ESTABLISHED: u32 = conn_flag::ANSWERED | conn_flag::CONFIRMED;
    const BOTH_FIN: u32 = conn_flag::CLIENT_FIN | conn_flag::BACKEND_FIN;
    assert_eq!(flags_after(Tcp::SYN) & (ESTABLISHED | BOTH_FIN), 0);
    assert_eq!(flags_after(Tcp::ACK) & ESTABLISHED, ESTABLISHED);
    assert_eq!(flags_after(Tcp::FIN | Tcp::ACK) & BOTH_FIN, BOTH_FIN);
    // The next connection from that port is a new one.
    assert_eq!(flags_after(Tcp::SYN) & (ESTABLISHED | BOTH_FIN), 0);
}

fn a_client_whose_port_is_taken_at_the_backend_is_not_handed_on<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(2, 9), PORT);
    let mut scene = scene::<A>(&[backend]);
    scene.frontend(A::outside(77), 80, 1, ebpf_abi::frontend_flag::EXTERNAL);
    scene.network_sends(&mut Frame::udp(client(), front(1)).wire());
    let request = Frame::udp(client(), (A::outside(77), 80));
    let mut wire = request.wire();
    scene.network_sends(&mut wire);
    assert_eq!(wire.bytes[OUTER - overlay_header::VXLAN_LEN], 8, "no label");
    let flags = scene.flags_of(&key(client::<A>(), (A::outside(77), 80), 17));
    let nat = conn_flag::SOURCE_NAT | conn_flag::DIRECT_RETURN;
    assert_eq!(flags.expect("tracked") & nat, conn_flag::SOURCE_NAT);
}

fn without_the_other_nodes_word_the_source_is_replaced<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(2, 9), PORT);
    let mut scene = scene::<A>(&[backend]);
    scene.node.peers.get_mut(&2).expect("node 2").flags = 0;
    let request = Frame::udp(client(), front(1));
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    let replaced = request.rewritten((A::pod(1, 0), CLIENT), backend);
    scene.assert_encapsulated(verdict, &wire, &replaced);
}

fn what_is_handed_on_reaches_the_backend_and_is_answered_from_here<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(1, 3), PORT);
    let scene = scene::<A>(&[]);
    for (request, answer) in [
        (
            Frame::udp(client(), front(2)),
            Frame::udp(backend, client()),
        ),
        (
            Frame::tcp(client(), front(2), Tcp::SYN),
            Frame::tcp(backend, client(), Tcp::SYN | Tcp::ACK),
        ),
        (
            Frame::sctp(client(), front(2)),
            Frame::sctp(backend, client()),
        ),
    ] {
        for _ in 0..2 {
            let mut wire = handed_on(backend, &request);
            let verdict = scene.network_sends(&mut wire);
            scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client(), backend));
            let mut wire = answer.wire();
            let verdict = scene.pod_sends(&mut wire);
            assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
            let expected = answer.rewritten(front(2), client()).ttl(63);
            assert_eq!(wire.bytes[14..], expected.ip_bytes());
        }
    }
    assert_eq!(scene.conn_count(), 3);
}

fn a_client_keeps_its_backend_here_until_the_other_node_names_another<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(&[]);
    let request = Frame::udp(client(), front(2));
    for pod in [2, 3, 3, 2] {
        let backend = (A::pod(1, pod), PORT);
        let mut wire = handed_on(backend, &request);
        let verdict = scene.network_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, pod, &request.rewritten(client(), backend));
    }
    assert_eq!(scene.conn_count(), 1);
}

fn a_connection_that_is_over_may_be_opened_again<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(1, 3), PORT);
    let scene = scene::<A>(&[]);
    for flags in [Tcp::SYN, Tcp::RST, Tcp::SYN, Tcp::ACK] {
        let request = Frame::tcp(client(), front(2), flags);
        let mut wire = handed_on(backend, &request);
        let verdict = scene.network_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client(), backend));
    }
}

fn what_a_stranger_hands_on_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(1, 3), PORT);
    let scene = scene::<A>(&[]);
    let request = Frame::udp(client(), front(2));
    // Nobody's underlay address; another node's label; a node that nobody knows.
    for (outer, named) in [(9, 2), (2, 3), (3, 2), (9, 9)] {
        assert_eq!(
            scene.network_sends(&mut labelled(outer, named, backend, &request.bytes())),
            Verdict::Drop(DropReason::OverlayUnknownPeer),
            "from {outer}, in the name of {named}"
        );
    }
    assert_eq!(scene.conn_count(), 0);
}

fn only_clients_outside_and_addresses_elsewhere_are_handed_on<A: TestFamily>()
where
    TestNode: Has<A>,
{
    use DropReason::{OverlayNotLocal, OverlayUnknownPeer};
    let backend = (A::pod(1, 3), PORT);
    let scene = scene::<A>(&[]);
    let strangers = (A::pod(2, 200), PORT);
    for (client, asked, backend, reason) in [
        (
            (A::pod(2, 9), CLIENT),
            front(2),
            backend,
            OverlayUnknownPeer,
        ),
        (
            (A::pod(1, 2), CLIENT),
            front(2),
            backend,
            OverlayUnknownPeer,
        ),
        ((A::node(1), CLIENT), front(2), backend, OverlayUnknownPeer),
        ((A::service(1), 80), front(2), backend, OverlayUnknownPeer),
        (client(), backend, backend, OverlayNotLocal),
        (client(), front(1), backend, OverlayNotLocal),
        (client(), front(2), strangers, OverlayNotLocal),
        (client(), front(2), (A::pod(1, 1), 22), OverlayNotLocal),
    ] {
        let request = Frame::udp(client, asked);
        let mut wire = handed_on(backend, &request);
        let verdict = scene.network_sends(&mut wire);
        assert_eq!(verdict, Verdict::Drop(reason), "{request:?}");
    }
    assert_eq!(scene.conn_count(), 0);
}

fn new_connections_are_taken_only_where_that_is_wanted_and_old_ones_go_on<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(1, 3), PORT);
    let mut scene = scene::<A>(&[]);
    let old = Frame::udp(client(), front(2));
    scene.network_sends(&mut handed_on(backend, &old));
    scene.node.config.as_mut().expect("set").flags &= !config_flag::DIRECT_RETURN;
    let mut wire = handed_on(backend, &old);
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &old.rewritten(client(), backend));
    let new = Frame::udp((A::outside(8), CLIENT), front(2));
    assert_eq!(
        scene.network_sends(&mut handed_on(backend, &new)),
        Verdict::Drop(DropReason::OverlayNotLocal)
    );
}

fn an_error_about_an_answer_is_handed_on_to_the_backend<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let unreachable = if A::LEN == 4 { 3 } else { 1 };
    let (here, there) = ((A::pod(1, 3), PORT), (A::pod(2, 9), PORT));
    // Node 1 is the one that is asked.
    let asked = scene::<A>(&[there]);
    asked.network_sends(&mut Frame::udp(client(), front(1)).wire());
    let left = Frame::udp(front(1), client()).ttl(63).ip_bytes();
    for router in [A::outside(1), client::<A>().0] {
        let error = Frame::error(router, A::node(1), unreachable, 1, &left);
        let mut wire = error.wire();
        let verdict = asked.network_sends(&mut wire);
        assert_handed_on(verdict, &wire, there, &error);
    }

    // Node 1 is the backend's.
    let scene = scene::<A>(&[]);
    scene.network_sends(&mut handed_on(here, &Frame::udp(client(), front(2))));
    let answer = Frame::udp(here, client());
    let mut wire = answer.wire();
    scene.pod_sends(&mut wire);
    for router in [A::outside(1), client::<A>().0] {
        let error = Frame::error(router, A::node(2), unreachable, 1, &wire.bytes[14..]);
        let mut error = handed_on(here, &error);
        let verdict = scene.network_sends(&mut error);
        let quoted = answer.clone().ttl(63).ip_bytes();
        let expected = Frame::error(router, here.0, unreachable, 1, &quoted);
        scene.assert_delivered(verdict, &error, 3, &expected);
        assert_checksums::<A>(&error.bytes);
    }
}

fn fragments_are_handed_on_together<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let there = (A::pod(2, 9), PORT);
    let asked = scene::<A>(&[there]);
    for mut part in fragments(&Frame::udp_with(client(), front(1), &[7; 40])) {
        let verdict = asked.network_sends(&mut part);
        assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
        let at = OUTER - overlay_header::VXLAN_LEN;
        assert_eq!(part.bytes[at..at + direct_label::LEN], label(1, there));
    }

    let here = (A::pod(1, 3), PORT);
    let scene = scene::<A>(&[]);
    let [first, later] = fragments(&Frame::udp_with(client(), front(2), &[7; 40]));
    let [mut first, mut later] = [first, later].map(|part| labelled(2, 2, here, &part.bytes));
    assert_eq!(
        scene.network_sends(&mut later.clone()),
        Verdict::Drop(DropReason::OverlayNotLocal),
        "nobody knows where it belongs"
    );
    for part in [&mut first, &mut later] {
        let verdict = scene.network_sends(part);
        assert_eq!(verdict, Verdict::DeliverToPod { ifindex: 103 });
        assert_eq!(
            &part.bytes[14 + A::SRC_AT..][..A::LEN],
            client::<A>().0.as_bytes()
        );
        assert_eq!(&part.bytes[14 + A::DST_AT..][..A::LEN], here.0.as_bytes());
    }
}
