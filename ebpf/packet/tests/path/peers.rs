//! What is counted of each peer, and destinations outside to which pods keep their address.

use ebpf_abi::{Counter, DropReason, KEEPS_SOURCE, PeerCount, RangeKey};
use ebpf_packet::Verdict;

use crate::support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, in_both_families};

in_both_families! {
    what_goes_to_a_peer_and_comes_from_it_is_counted
    what_is_dropped_on_the_way_is_the_peers_too
    pods_keep_their_address_towards_named_destinations
    a_backend_at_a_named_destination_sees_the_pod
}

fn counted<A: TestFamily>(scene: &Scene<A>, peer_id: u32) -> PeerCount
where
    TestNode: Has<A>,
{
    let counts = scene.node.peer_counts.borrow();
    counts.get(&peer_id).copied().unwrap_or_default()
}

fn counter(packets: u64, frame_bytes: usize) -> Counter {
    Counter {
        packets,
        bytes: packets * (frame_bytes as u64 - 14),
    }
}

fn what_goes_to_a_peer_and_comes_from_it_is_counted<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    // Node 2 is reached by VXLAN, node 3 by plain routing.
    for (node, packets) in [(2, 3), (3, 2)] {
        let frame = Frame::udp((A::pod(1, 2), 5000), (A::pod(node, 2), 53));
        for _ in 0..packets {
            assert!(matches!(
                scene.pod_sends(&mut frame.wire()),
                Verdict::ToNetwork { .. }
            ));
        }
        let sent = counter(packets, frame.bytes().len());
        let expected = PeerCount {
            sent,
            ..PeerCount::default()
        };
        assert_eq!(counted(&scene, node.into()), expected);
    }
    let answer = Frame::udp((A::pod(2, 2), 53), (A::pod(1, 2), 5000));
    scene.network_sends(&mut scene.overlay(2, &answer));
    assert_eq!(
        counted(&scene, 2).received,
        counter(1, answer.bytes().len())
    );
    // What goes elsewhere is nobody's.
    let (inside, outside) = (A::pod(1, 3), A::outside(1));
    for to in [inside, outside] {
        scene.pod_sends(&mut Frame::udp((A::pod(1, 2), 5000), (to, 53)).wire());
    }
    assert_eq!(scene.node.peer_counts.borrow().len(), 2);
}

fn what_is_dropped_on_the_way_is_the_peers_too<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let old = Frame::udp((A::pod(1, 2), 5000), (A::pod(2, 2), 53)).ttl(1);
    let elsewhere = Frame::tcp((A::pod(2, 2), 1), (A::pod(1, 77), 2), Tcp::SYN);
    let forged = Frame::tcp((A::pod(3, 2), 1), (A::pod(1, 2), 2), Tcp::SYN);
    assert_eq!(
        scene.network_sends(&mut scene.overlay(2, &elsewhere)),
        Verdict::Drop(DropReason::OverlayNotLocal)
    );
    let count = counted(&scene, 2);
    assert_eq!((count.received.packets, count.dropped.packets), (1, 1));
    assert_eq!(count.dropped.bytes, count.received.bytes);
    // Whose it is cannot be known.
    scene.network_sends(&mut scene.overlay(2, &forged));
    assert_eq!(
        (counted(&scene, 2), counted(&scene, 3)),
        (count, PeerCount::default())
    );
    if let Verdict::Drop(_) = scene.pod_sends(&mut old.wire()) {
        assert_eq!(counted(&scene, 2).dropped.packets, 2);
    }
    assert_eq!(counted(&scene, 2).sent, Counter::default());
}

fn keep<A: TestFamily>(scene: &mut Scene<A>, destination: A)
where
    TestNode: Has<A>,
{
    let bits = A::LEN as u32 * 8 - 4;
    let key = RangeKey::new(KEEPS_SOURCE, destination, bits);
    scene.node.tables_mut().ranges.push(key);
}

fn pods_keep_their_address_towards_named_destinations<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    keep(&mut scene, A::outside(1));
    let to = |host| Frame::udp((A::pod(1, 2), 5000), (A::outside(host), 53));
    // The host's stack routes it as it is.
    for frame in [
        to(2),
        to(2),
        Frame::echo(A::pod(1, 2), A::outside(2), true, 7),
    ] {
        let mut wire = frame.wire();
        assert_eq!(scene.pod_sends(&mut wire), Verdict::Pass);
        assert_eq!(wire.bytes, frame.bytes());
    }
    assert_eq!(scene.conn_count(), 0);
    // Another one beside it sees the node.
    let mut wire = to(17).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), A::node(1));
    // The way back is that of every packet to a pod.
    let answer = Frame::udp((A::outside(2), 53), (A::pod(1, 2), 5000));
    let mut wire = answer.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &answer);
}

fn a_backend_at_a_named_destination_sees_the_pod<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::with_backends(&[(A::outside(2), 8080)]);
    keep(&mut scene, A::outside(1));
    let client = (A::pod(1, 2), 5000);
    let mut wire = Frame::tcp(client, (A::service(1), 80), Tcp::SYN).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), client.0);
    let mut wire = Frame::tcp((A::outside(2), 8080), client, Tcp::ACK).wire();
    assert!(matches!(
        scene.network_sends(&mut wire),
        Verdict::DeliverToPod { .. }
    ));
    assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), A::service(1));
}
