//! The overlay: what is accepted from whom, what is too long, what the answer to that looks like.

use std::collections::BTreeSet;

use ebpf_abi::{Addr4, DropReason, peer_mode};
use ebpf_packet::Verdict;

use crate::fragments::fragments;
use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, assert_checksums, in_both_families,
};

in_both_families! {
    an_inner_packet_reaches_its_pod
    an_inner_packet_reaches_the_host
    an_inner_packet_for_elsewhere_is_dropped
    an_inner_packet_must_come_from_its_own_node
    a_wrong_vxlan_header_is_dropped_and_never_passed
    too_long_a_packet_is_answered_with_the_mtu
    the_answer_quotes_what_the_sender_sent
    a_client_outside_is_answered_too
    an_answer_too_long_for_the_way_out_is_answered_by_the_overlay
    the_longest_packet_that_fits_passes
    segments_count_and_not_the_whole
    a_packet_too_long_for_the_outer_header_is_dropped
    a_packet_whose_length_does_not_fit_its_field_is_delivered
    a_fragment_or_an_error_is_dropped_without_an_answer
    the_host_is_not_answered
    an_unknown_peer_drops
    a_peer_on_the_uplinks_own_link_is_its_own_next_hop
    flows_spread_over_source_ports_and_fragments_stay_together
}

fn an_inner_packet_reaches_its_pod<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let inner = Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK);
    let mut wire = scene.overlay(2, &inner);
    // The outer EtherType says IPv4 whatever is inside.
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &inner);
}

fn an_inner_packet_reaches_the_host<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let inner = Frame::udp((A::pod(2, 9), 1), (A::pod(1, 1), 2));
    let mut wire = scene.overlay(2, &inner);
    assert_eq!(scene.network_sends(&mut wire), Verdict::ToHost);
    assert_eq!(wire.bytes[14..], inner.ip_bytes());
    assert_eq!(wire.bytes[12..14], A::ETHERTYPE.to_ne_bytes());
}

fn an_inner_packet_for_elsewhere_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 80)]);
    for dst in [A::pod(1, 77), A::pod(3, 1), A::outside(1), A::service(1)] {
        let mut wire = scene.overlay(2, &Frame::udp((A::pod(2, 9), 1), (dst, 80)));
        let verdict = scene.network_sends(&mut wire);
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::OverlayNotLocal),
            "{dst:?}"
        );
    }
}

fn an_inner_packet_must_come_from_its_own_node<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    for (node, src) in [
        (3, A::pod(2, 9)),
        (9, A::pod(2, 9)),
        (2, A::pod(3, 9)),
        (2, A::pod(1, 2)),
        (2, A::outside(1)),
    ] {
        let mut wire = scene.overlay(node, &Frame::udp((src, 1), (A::pod(1, 3), 2)));
        let verdict = scene.network_sends(&mut wire);
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::OverlayUnknownPeer),
            "{src:?} by node {node}"
        );
    }
}

fn a_wrong_vxlan_header_is_dropped_and_never_passed<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let good = scene.overlay(2, &Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2)));
    let vxlan = 14 + 20 + 8;
    // Flags, each byte of the VNI, the inner EtherType.
    for (at, value) in [(0, 0), (4, 1), (5, 1), (6, 2), (20, 0x12)] {
        let mut wire = good.clone();
        wire.bytes[vxlan + at] = value;
        assert_eq!(
            scene.network_sends(&mut wire),
            Verdict::Drop(DropReason::OverlayBadHeader)
        );
    }
    // The same without overlay is the stack's.
    let mut scene = scene;
    scene.node.config.as_mut().expect("set").flags = 0;
    assert_eq!(scene.network_sends(&mut good.clone()), Verdict::Pass);
}

fn too_long_a_packet_is_answered_with_the_mtu<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let over = Scene::<A>::OVERLAY_MTU as usize + 1 - A::HEADER_LEN - 8;
    let sent = Frame::udp_with((A::pod(1, 2), 1), (A::pod(2, 3), 2), &vec![7; over]);
    let mut wire = sent.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    assert_checksums::<A>(&wire.bytes);
    assert_eq!(wire.bytes[..6], [2, 0, 0, 0, 0, 0xaa], "back to its sender");
    assert_eq!(A::read(&wire.bytes, 14 + A::DST_AT), A::pod(1, 2));
    assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), A::node(1));
    let icmp = &wire.bytes[14 + A::HEADER_LEN..];
    match A::LEN {
        4 => assert_eq!(
            (&icmp[..2], &icmp[4..8]),
            (&[3, 4][..], &[0, 0, 0x05, 0xaa][..])
        ),
        _ => assert_eq!(
            (&icmp[..2], &icmp[4..8]),
            (&[2, 0][..], &[0, 0, 0x05, 0xaa][..])
        ),
    }
    assert_eq!(icmp[8..], sent.ip_bytes()[..A::HEADER_LEN + 20]);
}

fn the_answer_quotes_what_the_sender_sent<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(2, 9), 8080)]);
    let mut sent = Frame::tcp((A::pod(1, 2), 45000), (A::service(1), 80), Tcp::SYN);
    sent.transport.extend([1; 1500]);
    let mut wire = sent.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    assert_eq!(
        wire.bytes[14 + A::HEADER_LEN + 8..],
        sent.ip_bytes()[..A::HEADER_LEN + 20]
    );
    assert_checksums::<A>(&wire.bytes);
}

fn a_client_outside_is_answered_too<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(2, 9), 8080)]);
    let (client, node_port) = ((A::outside(9), 45000), (A::node(1), Scene::<A>::NODE_PORT));
    let too_big = if A::LEN == 4 { [3, 4] } else { [2, 0] };
    let mut syn = Frame::tcp(client, node_port, Tcp::SYN);
    syn.transport.extend([1; 1500]);
    let datagram = Frame::udp_with(client, node_port, &[7; 1440]);
    // The second packet meets the connection of the first.
    for sent in [&syn, &datagram, &datagram] {
        let mut wire = sent.wire();
        assert_eq!(scene.network_sends(&mut wire), Verdict::Reflect);
        assert_checksums::<A>(&wire.bytes);
        assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), A::node(1));
        assert_eq!(A::read(&wire.bytes, 14 + A::DST_AT), client.0);
        let icmp = &wire.bytes[14 + A::HEADER_LEN..];
        let mtu = Scene::<A>::OVERLAY_MTU.to_be_bytes();
        assert_eq!((&icmp[..2], &icmp[4..8]), (&too_big[..], &mtu[..]));
        assert_eq!(icmp[8..], sent.ip_bytes()[..A::HEADER_LEN + 20]);
    }
}

fn an_answer_too_long_for_the_way_out_is_answered_by_the_overlay<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::with_backends(&[(A::pod(2, 9), 8080)]);
    let (client, node_port) = ((A::outside(9), 45000), (A::node(1), Scene::<A>::NODE_PORT));
    let mut wire = Frame::udp(client, node_port).wire();
    let verdict = scene.network_sends(&mut wire);
    assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
    let port_at = 64 + A::HEADER_LEN;
    let port = u16::from_be_bytes([wire.bytes[port_at], wire.bytes[port_at + 1]]);
    scene.node.config.as_mut().expect("set").uplink_mtu = 1300;
    let answer = Frame::udp_with((A::pod(2, 9), 8080), (A::pod(1, 0), port), &[7; 1350]);
    let mut wire = scene.overlay(2, &answer);
    let verdict = scene.network_sends(&mut wire);
    assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
    let inner = &wire.bytes[64..];
    assert_eq!(A::read(inner, A::SRC_AT), A::pod(1, 0));
    assert_eq!(A::read(inner, A::DST_AT), A::pod(2, 9));
    let icmp = &inner[A::HEADER_LEN..];
    assert_eq!(icmp[4..8], 1300_u32.to_be_bytes());
    assert_eq!(icmp[8..], answer.ip_bytes()[..A::HEADER_LEN + 20]);
}

fn the_longest_packet_that_fits_passes<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let room = Scene::<A>::OVERLAY_MTU as usize - A::HEADER_LEN - 8;
    let sent = Frame::udp_with((A::pod(1, 2), 1), (A::pod(2, 3), 2), &vec![7; room]);
    let mut wire = sent.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &sent);
    assert_eq!(wire.bytes.len(), 14 + Scene::<A>::UPLINK_MTU as usize);
}

fn segments_count_and_not_the_whole<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut sent = Frame::tcp((A::pod(1, 2), 1), (A::pod(2, 3), 2), Tcp::ACK);
    sent.transport.extend([1; 8000]);
    let headers = A::HEADER_LEN as u32 + 20;
    let mut wire = Wire {
        segment: Scene::<A>::OVERLAY_MTU - headers,
        ..sent.wire()
    };
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &sent);
    let mut wire = Wire {
        segment: Scene::<A>::OVERLAY_MTU - headers + 1,
        ..sent.wire()
    };
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
}

fn a_packet_whose_length_does_not_fit_its_field_is_delivered<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let sent = Frame::tcp((A::pod(1, 2), 1), (A::pod(1, 3), 2), Tcp::ACK);
    let mut wire = Wire {
        segment: 1448,
        ..sent.wire()
    };
    let length_at = if A::LEN == 4 { 16 } else { 18 };
    wire.bytes[length_at..length_at + 2].fill(0);
    let mut not_cut = Wire::new(wire.bytes.clone());
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::DeliverToPod { ifindex: 103 }
    );
    // Without segments it is a lie.
    assert_eq!(
        scene.pod_sends(&mut not_cut),
        Verdict::Drop(DropReason::Malformed)
    );
}

fn a_packet_too_long_for_the_outer_header_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut sent = Frame::tcp((A::pod(1, 2), 1), (A::pod(2, 3), 2), Tcp::ACK);
    let room = usize::from(u16::MAX) - 50 - A::HEADER_LEN;
    sent.transport.resize(room, 1);
    let segmented = |frame: &Frame<A>| Wire {
        segment: 1000,
        ..frame.wire()
    };
    let mut wire = segmented(&sent);
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &sent);
    sent.transport.push(1);
    assert_eq!(
        scene.pod_sends(&mut segmented(&sent)),
        Verdict::Drop(DropReason::TooBig)
    );
}

fn a_fragment_or_an_error_is_dropped_without_an_answer<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let kind = if A::LEN == 4 { 3 } else { 1 };
    let mut wire = Frame::error(A::pod(1, 2), A::pod(2, 3), kind, 0, &[0; 1500]).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::Drop(DropReason::TooBig)
    );
}

fn the_host_is_not_answered<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut wire = Frame::udp_with((A::pod(1, 1), 1), (A::pod(2, 3), 2), &[7; 1500]).wire();
    assert_eq!(
        scene.host_sends(&mut wire),
        Verdict::Drop(DropReason::TooBig)
    );
}

fn an_unknown_peer_drops<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    let frame = Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2));
    scene.node.peers.get_mut(&2).expect("set").mode = 0;
    assert_eq!(
        scene.pod_sends(&mut frame.wire()),
        Verdict::Drop(DropReason::NoPeer)
    );
    scene.node.peers.remove(&2);
    assert_eq!(
        scene.pod_sends(&mut frame.wire()),
        Verdict::Drop(DropReason::NoPeer)
    );
}

fn a_peer_on_the_uplinks_own_link_is_its_own_next_hop<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    let frame = Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2));
    let mut routed = frame.wire();
    assert_eq!(
        scene.pod_sends(&mut routed),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    scene.node.peers.get_mut(&2).expect("set").mode = peer_mode::VXLAN_ON_LINK;
    let mut on_link = frame.wire();
    assert_eq!(
        scene.pod_sends(&mut on_link),
        Verdict::ToNetwork { next_hop_peer: 2 }
    );
    assert_eq!(on_link, routed);
}

fn flows_spread_over_source_ports_and_fragments_stay_together<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let source_port = |wire: &mut Wire| {
        assert!(matches!(scene.pod_sends(wire), Verdict::ToNetwork { .. }));
        u16::from_be_bytes([wire.bytes[34], wire.bytes[35]])
    };
    let ports: BTreeSet<u16> = (0..256)
        .map(|port| source_port(&mut Frame::udp((A::pod(1, 2), port), (A::pod(2, 3), 53)).wire()))
        .collect();
    // 256 flows on 16384 ports: two of them meet now and then.
    assert!(ports.len() > 240, "{} of 256 ports differ", ports.len());
    let [mut first, mut later] = fragments(&Frame::udp_with(
        (A::pod(1, 2), 7),
        (A::pod(2, 3), 53),
        &[7; 40],
    ));
    assert_eq!(source_port(&mut first), source_port(&mut later));
}

#[test]
fn a_fragmented_outer_packet_is_dropped() {
    let scene = Scene::<Addr4>::new();
    let mut wire = scene.overlay(2, &Frame::udp((Addr4::pod(2, 9), 1), (Addr4::pod(1, 3), 2)));
    wire.bytes[14 + 6] = 0x20;
    assert_eq!(
        scene.network_sends(&mut wire),
        Verdict::Drop(DropReason::OverlayBadHeader)
    );
}

#[test]
fn outer_options_come_off_too() {
    let scene = Scene::<Addr4>::new();
    let inner = Frame::udp((Addr4::pod(2, 9), 1), (Addr4::pod(1, 3), 2));
    let plain = scene.overlay(2, &inner);
    let mut outer = Frame::udp_with(
        (Addr4::node(2), 50000),
        (Addr4::node(1), 8472),
        &plain.bytes[42..],
    );
    outer.options = vec![1; 8];
    let mut wire = outer.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &inner);
}
