//! ICMP errors about translated packets.

use ebpf_packet::Verdict;

use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, assert_checksums, in_both_families,
};

in_both_families! {
    an_error_about_a_request_names_the_cluster_ip
    an_error_about_an_answer_names_the_backend
    an_error_about_a_masqueraded_packet_finds_its_pod
    an_error_about_a_masqueraded_echo_finds_its_pod
    a_routers_error_about_another_nodes_answer_comes_in_this_nodes_name
    an_error_about_a_short_quote_is_translated_too
    an_error_about_plain_traffic_is_untouched
    an_error_that_quotes_too_little_is_forwarded_as_it_is
}

/// A code of 'destination unreachable'.
fn unreachable<A: TestFamily>() -> u8 {
    if A::LEN == 4 { 3 } else { 1 }
}

/// The quoted packet of an ICMP error, as a frame that checksums can be verified of.
fn quoted<A: TestFamily>(wire: &[u8]) -> Vec<u8> {
    let mut frame = wire[..14].to_vec();
    frame.extend(&wire[14 + A::HEADER_LEN + 8..]);
    frame
}

fn an_error_about_a_request_names_the_cluster_ip<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 45000),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    scene.pod_sends(&mut wire);
    // The backend's pod refuses what it got.
    let error = Frame::error(
        backend.0,
        client.0,
        unreachable::<A>(),
        1,
        &wire.bytes[14..],
    );
    let mut wire = error.wire();
    let verdict = scene.pod_sends(&mut wire);
    let expected = Frame::error(
        vip.0,
        client.0,
        unreachable::<A>(),
        1,
        &request.clone().ttl(63).ip_bytes(),
    );
    scene.assert_delivered(verdict, &wire, 2, &expected);
    assert_checksums::<A>(&quoted::<A>(&wire.bytes));

    // A router on the way does so in its own name.
    let mut wire = Frame::error(
        A::pod(1, 1),
        client.0,
        unreachable::<A>(),
        1,
        &error.transport[8..],
    )
    .wire();
    let verdict = scene.host_sends(&mut wire);
    let expected = Frame::error(
        A::pod(1, 1),
        client.0,
        unreachable::<A>(),
        1,
        &request.ttl(63).ip_bytes(),
    );
    scene.assert_delivered(verdict, &wire, 2, &expected.ttl(65));
}

fn an_error_about_an_answer_names_the_backend<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 45000),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    scene.pod_sends(&mut Frame::udp(client, vip).wire());
    let answer = Frame::udp(backend, client);
    let mut wire = answer.wire();
    scene.pod_sends(&mut wire);
    let mut wire = Frame::error(client.0, vip.0, unreachable::<A>(), 3, &wire.bytes[14..]).wire();
    let verdict = scene.pod_sends(&mut wire);
    let expected = Frame::error(
        client.0,
        backend.0,
        unreachable::<A>(),
        3,
        &answer.ttl(63).ip_bytes(),
    );
    scene.assert_delivered(verdict, &wire, 3, &expected);
    assert_checksums::<A>(&quoted::<A>(&wire.bytes));
}

fn an_error_about_a_masqueraded_packet_finds_its_pod<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let request = Frame::udp((A::pod(1, 2), 45000), (A::outside(8), 53));
    let mut wire = request.wire();
    scene.pod_sends(&mut wire);
    let router = A::outside(1);
    let mut wire =
        Frame::error(router, A::node(1), unreachable::<A>(), 0, &wire.bytes[14..]).wire();
    let verdict = scene.network_sends(&mut wire);
    let expected = Frame::error(
        router,
        A::pod(1, 2),
        unreachable::<A>(),
        0,
        &request.ttl(63).ip_bytes(),
    );
    scene.assert_delivered(verdict, &wire, 2, &expected);
    assert_checksums::<A>(&quoted::<A>(&wire.bytes));
}

fn an_error_about_a_masqueraded_echo_finds_its_pod<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let request = Frame::echo(A::pod(1, 2), A::outside(8), true, 77);
    let mut wire = request.wire();
    scene.pod_sends(&mut wire);
    let mut wire = Frame::error(
        A::outside(1),
        A::node(1),
        unreachable::<A>(),
        1,
        &wire.bytes[14..],
    )
    .wire();
    let verdict = scene.network_sends(&mut wire);
    let expected = Frame::error(
        A::outside(1),
        A::pod(1, 2),
        unreachable::<A>(),
        1,
        &request.ttl(63).ip_bytes(),
    );
    scene.assert_delivered(verdict, &wire, 2, &expected);
    assert_checksums::<A>(&quoted::<A>(&wire.bytes));
}

fn a_routers_error_about_another_nodes_answer_comes_in_this_nodes_name<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(2, 9), 8080);
    let scene = Scene::<A>::with_backends(&[backend]);
    let (client, vip) = ((A::outside(9), 45000), (A::node(1), Scene::<A>::NODE_PORT));
    scene.network_sends(&mut Frame::udp(client, vip).wire());
    let own = (A::pod(1, 0), client.1);
    let answer = Frame::udp(backend, own);
    // One router outside, one that is another node: each would be a stranger to the backend's.
    for (router, from) in [(A::outside(1), None), (A::pod(3, 1), Some(3))] {
        let mut wire = scene.overlay(2, &answer);
        let verdict = scene.network_sends(&mut wire);
        assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
        let error = Frame::error(router, vip.0, unreachable::<A>(), 0, &wire.bytes[14..]);
        let mut wire = match from {
            None => error.wire(),
            Some(node) => scene.overlay(node, &error),
        };
        let verdict = scene.network_sends(&mut wire);
        let quoted = answer.clone().ttl(63).ip_bytes();
        let expected = Frame::error(own.0, backend.0, unreachable::<A>(), 0, &quoted);
        scene.assert_encapsulated(verdict, &wire, &expected);
    }
}

fn an_error_about_a_short_quote_is_translated_too<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 45000),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    scene.pod_sends(&mut wire);
    // RFC 792: the header and eight bytes; so the TCP checksum is not there to be updated.
    let quote = &wire.bytes[14..14 + A::HEADER_LEN + 8];
    let mut wire = Frame::error(backend.0, client.0, unreachable::<A>(), 1, quote).wire();
    let verdict = scene.pod_sends(&mut wire);
    let original = &request.ttl(63).ip_bytes()[..A::HEADER_LEN + 8];
    scene.assert_delivered(
        verdict,
        &wire,
        2,
        &Frame::error(vip.0, client.0, unreachable::<A>(), 1, original),
    );
}

fn an_error_about_plain_traffic_is_untouched<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let quote = Frame::udp((A::pod(1, 2), 1), (A::pod(1, 3), 2)).ip_bytes();
    let error = Frame::error(A::pod(1, 3), A::pod(1, 2), unreachable::<A>(), 3, &quote);
    let mut wire = error.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &error);
}

fn an_error_that_quotes_too_little_is_forwarded_as_it_is<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let quote = Frame::udp((A::pod(1, 2), 1), (A::pod(1, 3), 2)).ip_bytes();
    for len in 0..A::HEADER_LEN + 8 {
        let error = Frame::error(
            A::pod(1, 3),
            A::pod(1, 2),
            unreachable::<A>(),
            3,
            &quote[..len],
        );
        let mut wire = error.wire();
        assert!(matches!(
            scene.pod_sends(&mut wire),
            Verdict::DeliverToPod { .. }
        ));
        assert_checksums::<A>(&wire.bytes);
    }
}
