//! Services: balancing, answers, NodePort, hairpin, what happens when backends change.

use ebpf_abi::{DropReason, conn_flag};
use ebpf_packet::Verdict;

use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, assert_checksums, in_both_families, key,
};

in_both_families! {
    a_local_backend_gets_the_packet_and_its_answer_comes_from_the_cluster_ip
    udp_is_translated_too_and_a_missing_checksum_stays_missing
    a_remote_backend_is_reached_by_the_overlay_and_its_answer_translated_back
    a_remote_backend_is_reached_by_plain_routing
    backends_take_turns_strictly
    a_full_table_refuses_the_new_and_keeps_the_old
    the_host_reaches_a_service_and_gets_the_answer
    a_pod_that_is_its_own_backend_gets_its_packets_back
    udp_leaves_a_withdrawn_backend_at_once
    tcp_stays_with_a_withdrawn_backend_until_it_opens_anew
    a_finished_tcp_connection_makes_room_for_a_new_one
    a_retransmitted_syn_keeps_its_backend
    a_direct_connection_is_not_taken_for_the_services
    a_direct_connection_beside_a_living_one_of_the_same_port_disturbs_neither
    two_services_with_one_backend_do_not_mix_up_one_clients_ports
    a_node_port_with_a_local_backend_keeps_the_client
    a_node_port_with_a_remote_backend_brings_the_answer_back_through_this_node
    a_cluster_ip_is_not_served_to_the_outside
    plain_pod_traffic_is_not_tracked
}

const CLIENT: u16 = 45000;

fn a_local_backend_gets_the_packet_and_its_answer_comes_from_the_cluster_ip<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    for flags in [Tcp::SYN, Tcp::ACK] {
        let request = Frame::tcp(client, vip, flags);
        let mut wire = request.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client, backend));
        let answer = Frame::tcp(backend, client, flags | Tcp::ACK);
        let mut wire = answer.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
    }
    assert_eq!(scene.conn_count(), 1);
    let flags = scene.flags_of(&key(client, vip, 6)).expect("tracked");
    let handshake = conn_flag::OPEN | conn_flag::ANSWERED | conn_flag::CONFIRMED;
    assert_eq!(flags, conn_flag::SERVICE | handshake);
}

fn udp_is_translated_too_and_a_missing_checksum_stays_missing<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::udp(client, vip);
    let mut wire = request.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client, backend));

    let mut wire = request.wire();
    let checksum = 14 + A::HEADER_LEN + 6;
    wire.bytes[checksum..checksum + 2].fill(0);
    scene.pod_sends(&mut wire);
    assert_eq!(wire.bytes[checksum..checksum + 2], [0, 0]);
}

fn a_remote_backend_is_reached_by_the_overlay_and_its_answer_translated_back<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(2, 9), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::udp(client, vip);
    let mut wire = request.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &request.rewritten(client, backend));
    let answer = Frame::udp(backend, client);
    let mut wire = scene.overlay(2, &answer);
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
}

fn a_remote_backend_is_reached_by_plain_routing<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(3, 9), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 3 }
    );
    assert_eq!(
        wire.bytes[14..],
        request.rewritten(client, backend).ttl(63).ip_bytes()
    );
    let answer = Frame::tcp(backend, client, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
}

fn backends_take_turns_strictly<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backends = [(A::pod(1, 3), 1), (A::pod(1, 3), 2), (A::pod(1, 3), 3)];
    let scene = Scene::<A>::with_backends(&backends);
    let port_at = 14 + A::HEADER_LEN + 3;
    let turns: Vec<u8> = (0..9)
        .map(|n| {
            let mut wire =
                Frame::tcp((A::pod(1, 2), 1000 + n), (A::service(1), 80), Tcp::SYN).wire();
            scene.pod_sends(&mut wire);
            assert_checksums::<A>(&wire.bytes);
            wire.bytes[port_at]
        })
        .collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

fn a_full_table_refuses_the_new_and_keeps_the_old<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (vip, backend) = ((A::service(1), 80), (A::pod(1, 3), 8080));
    let mut scene = Scene::<A>::with_backends(&[backend]);
    scene.limit_conns(1);
    let first = Frame::udp((A::pod(1, 2), 1), vip);
    scene.pod_sends(&mut first.wire());
    let answer = Frame::udp(backend, (A::pod(1, 2), 1));
    scene.pod_sends(&mut answer.wire());
    let mut wire = Frame::udp((A::pod(1, 2), 2), vip).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::Drop(DropReason::ConnTableFull)
    );
    let mut wire = first.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(
        verdict,
        &wire,
        3,
        &first.rewritten((A::pod(1, 2), 1), backend),
    );
}

fn the_host_reaches_a_service_and_gets_the_answer<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 1), CLIENT),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    let verdict = scene.host_sends(&mut wire);
    // The host sent it itself: no hop.
    scene.assert_delivered(
        verdict,
        &wire,
        3,
        &request.rewritten(client, backend).ttl(65),
    );
    let answer = Frame::tcp(backend, client, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::ToHost);
    assert_eq!(wire.bytes[..6], [2, 0, 0, 0, 0, 1]);
    assert_eq!(wire.bytes[14..], answer.rewritten(vip, client).ip_bytes());
}

fn a_pod_that_is_its_own_backend_gets_its_packets_back<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(1, 2), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    let verdict = scene.pod_sends(&mut wire);
    let source = (A::pod(1, 0), CLIENT);
    scene.assert_delivered(verdict, &wire, 2, &request.rewritten(source, backend));
    let answer = Frame::tcp(backend, source, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
}

fn udp_leaves_a_withdrawn_backend_at_once<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    let mut scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 1)]);
    let request = Frame::udp(client, vip);
    scene.pod_sends(&mut request.wire());
    scene.set_backends(1, &[(A::pod(1, 3), 2)]);
    let mut wire = request.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(
        verdict,
        &wire,
        3,
        &request.rewritten(client, (A::pod(1, 3), 2)),
    );
    assert_eq!(scene.conn_count(), 1, "the old one is gone");
    scene.set_backends(1, &[]);
    assert_eq!(scene.pod_sends(&mut request.wire()), Verdict::Reflect);
    assert_eq!(scene.conn_count(), 0);
}

fn tcp_stays_with_a_withdrawn_backend_until_it_opens_anew<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    let mut scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 1)]);
    scene.pod_sends(&mut Frame::tcp(client, vip, Tcp::SYN).wire());
    scene.set_backends(1, &[(A::pod(1, 3), 2)]);
    for (flags, port) in [(Tcp::ACK, 1), (Tcp::FIN | Tcp::ACK, 1), (Tcp::SYN, 2)] {
        let packet = Frame::tcp(client, vip, flags);
        let mut wire = packet.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(
            verdict,
            &wire,
            3,
            &packet.rewritten(client, (A::pod(1, 3), port)),
        );
    }
}

fn a_finished_tcp_connection_makes_room_for_a_new_one<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    // By whom and how the first connection ends.
    for (from_client, end) in [
        (true, Tcp::FIN | Tcp::ACK),
        (false, Tcp::FIN | Tcp::ACK),
        (false, Tcp::RST),
    ] {
        let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 1), (A::pod(1, 3), 2)]);
        scene.pod_sends(&mut Frame::tcp(client, vip, Tcp::SYN).wire());
        let last = if from_client {
            Frame::tcp(client, vip, end)
        } else {
            Frame::tcp((A::pod(1, 3), 1), client, end)
        };
        scene.pod_sends(&mut last.wire());
        let open = Frame::tcp(client, vip, Tcp::SYN);
        let mut wire = open.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(
            verdict,
            &wire,
            3,
            &open.rewritten(client, (A::pod(1, 3), 2)),
        );
        assert_eq!(scene.conn_count(), 1);
    }
}

fn a_retransmitted_syn_keeps_its_backend<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 1), (A::pod(1, 3), 2)]);
    let open = Frame::tcp(client, vip, Tcp::SYN);
    for _ in 0..3 {
        let mut wire = open.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(
            verdict,
            &wire,
            3,
            &open.rewritten(client, (A::pod(1, 3), 1)),
        );
    }
}

fn a_direct_connection_is_not_taken_for_the_services<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), CLIENT),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    for protocol in [6, 17] {
        let scene = Scene::<A>::with_backends(&[backend]);
        let frame = |src, dst, flags| {
            if protocol == 6 {
                Frame::tcp(src, dst, flags)
            } else {
                Frame::udp(src, dst)
            }
        };
        scene.pod_sends(&mut frame(client, vip, Tcp::SYN).wire());
        let direct = frame(client, backend, Tcp::SYN);
        let mut wire = direct.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 3, &direct);
        let answer = frame(backend, client, Tcp::SYN | Tcp::ACK);
        let mut wire = answer.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 2, &answer);
        assert_eq!(scene.conn_count(), 0);
    }
}

fn a_direct_connection_beside_a_living_one_of_the_same_port_disturbs_neither<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    for (protocol, backend) in [6, 17]
        .into_iter()
        .flat_map(|p| [(p, (A::pod(1, 3), 8080)), (p, (A::pod(3, 2), 8080))])
    {
        let scene = Scene::<A>::with_backends(&[backend]);
        let frame = |src, dst, flags| {
            if protocol == 6 {
                Frame::tcp(src, dst, flags)
            } else {
                Frame::udp(src, dst)
            }
        };
        let answer = |mut wire: Wire| {
            if backend.0 == A::pod(1, 3) {
                scene.pod_sends(&mut wire);
            } else {
                scene.network_sends(&mut wire);
            }
            wire.bytes
        };
        let answered = |from, to| answer(frame(from, to, Tcp::SYN | Tcp::ACK).wire());
        scene.pod_sends(&mut frame(client, vip, Tcp::SYN).wire());
        let to_service = answered(backend, client);
        for _ in 0..2 {
            let mut wire = frame(client, backend, Tcp::SYN).wire();
            scene.pod_sends(&mut wire);
            assert_checksums::<A>(&wire.bytes);
            let transport = 14 + A::HEADER_LEN;
            let port = u16::from_be_bytes([wire.bytes[transport], wire.bytes[transport + 1]]);
            assert_ne!(port, CLIENT, "the living connection has that one");
            let source = (A::read(&wire.bytes, 14 + A::SRC_AT), port);
            assert_eq!(source.0, client.0, "no other address");
            let direct = frame(backend, source, Tcp::SYN | Tcp::ACK);
            assert_eq!(
                answer(direct.wire())[14..],
                direct.rewritten(backend, client).ttl(63).ip_bytes()
            );
            assert_eq!(answered(backend, client), to_service, "as before");
        }
        assert_eq!(scene.conn_count(), 2);
    }
}

fn two_services_with_one_backend_do_not_mix_up_one_clients_ports<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, backend) = ((A::pod(1, 2), CLIENT), (A::pod(1, 3), 8080));
    let vips = [(A::service(1), 80), (A::service(2), 80)];
    let mut scene = Scene::<A>::with_backends(&[backend]);
    scene.frontend(A::service(2), 80, 2, 0);
    scene.set_backends(2, &[backend]);
    let mut sources = Vec::new();
    for vip in vips {
        let mut wire = Frame::udp(client, vip).wire();
        assert_eq!(
            scene.pod_sends(&mut wire),
            Verdict::DeliverToPod { ifindex: 103 }
        );
        assert_checksums::<A>(&wire.bytes);
        let transport = 14 + A::HEADER_LEN;
        let port = u16::from_be_bytes([wire.bytes[transport], wire.bytes[transport + 1]]);
        sources.push((A::read(&wire.bytes, 14 + A::SRC_AT), port));
    }
    assert_eq!(sources[0], client);
    assert_eq!(
        sources[1].0,
        A::pod(1, 0),
        "the second gets a source of the node"
    );
    for (vip, source) in vips.into_iter().zip(sources) {
        let answer = Frame::udp(backend, source);
        let mut wire = answer.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
    }
}

fn a_node_port_with_a_local_backend_keeps_the_client<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, backend) = ((A::outside(9), CLIENT), (A::pod(1, 3), 8080));
    let front = (A::node(1), Scene::<A>::NODE_PORT);
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, front, Tcp::SYN);
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client, backend));
    let answer = Frame::tcp(backend, client, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    assert_eq!(
        wire.bytes[14..],
        answer.rewritten(front, client).ttl(63).ip_bytes()
    );
}

fn a_node_port_with_a_remote_backend_brings_the_answer_back_through_this_node<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, backend) = ((A::outside(9), CLIENT), (A::pod(2, 9), 8080));
    let front = (A::node(1), Scene::<A>::NODE_PORT);
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::udp(client, front);
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    let source = (A::pod(1, 0), CLIENT);
    scene.assert_encapsulated(verdict, &wire, &request.rewritten(source, backend));
    let answer = Frame::udp(backend, source);
    let mut wire = scene.overlay(2, &answer);
    assert_eq!(
        scene.network_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    assert_eq!(
        wire.bytes[14..],
        answer.rewritten(front, client).ttl(63).ip_bytes()
    );
}

fn a_cluster_ip_is_not_served_to_the_outside<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    let mut wire = Frame::udp((A::outside(9), CLIENT), (A::service(1), 80)).wire();
    let before = wire.clone();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Pass);
    assert_eq!(wire, before);
}

fn plain_pod_traffic_is_not_tracked<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let here = Frame::tcp((A::pod(1, 2), 1), (A::pod(1, 3), 2), Tcp::SYN);
    let mut wire = here.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 3, &here);
    let there = Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2));
    let mut wire = there.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &there);
    assert_eq!(scene.conn_count(), 0);
}
