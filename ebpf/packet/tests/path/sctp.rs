//! SCTP: a checksum over everything that is not the internet's.

use ebpf_abi::DropReason;
use ebpf_packet::Verdict;

use crate::support::{Frame, Has, Scene, TestFamily, TestNode, in_both_families};

in_both_families! {
    an_association_is_translated_both_ways_with_a_right_checksum
    a_checksum_that_a_device_will_make_is_left_to_it
    an_answer_comes_back_through_source_nat
    an_association_to_a_service_without_backends_is_refused
    a_header_that_is_cut_short_is_malformed
}

const CLIENT: u16 = 45000;

fn an_association_is_translated_both_ways_with_a_right_checksum<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip) = ((A::pod(1, 2), CLIENT), (A::service(1), 80));
    for backend in [(A::pod(1, 3), 80), (A::pod(1, 3), 38412)] {
        let scene = Scene::<A>::with_backends(&[backend]);
        for length in [0, 1, 2, 700] {
            let mut request = Frame::sctp(client, vip);
            request.transport.extend(vec![0x5a; length]);
            let mut wire = request.wire();
            let verdict = scene.pod_sends(&mut wire);
            scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client, backend));
        }
        let answer = Frame::sctp(backend, client);
        let mut wire = answer.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
    }
}

fn a_checksum_that_a_device_will_make_is_left_to_it<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 38412)]);
    let mut wire = Frame::sctp((A::pod(1, 2), CLIENT), (A::service(1), 80)).wire();
    let at = 14 + A::HEADER_LEN + 8;
    wire.bytes[at..at + 4].fill(0);
    scene.pod_sends(&mut wire);
    assert_eq!(wire.bytes[at..at + 4], [0; 4]);
    assert_eq!(wire.bytes[at - 6..at - 4], 38412_u16.to_be_bytes());
}

fn an_answer_comes_back_through_source_nat<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let backend = (A::pod(2, 9), 38412);
    let scene = Scene::<A>::with_backends(&[backend]);
    let (client, node) = ((A::outside(9), CLIENT), (A::node(1), Scene::<A>::NODE_PORT));
    let request = Frame::sctp(client, node);
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    let source = (A::pod(1, 0), CLIENT);
    scene.assert_encapsulated(verdict, &wire, &request.rewritten(source, backend));
    let answer = Frame::sctp(backend, source);
    let mut wire = scene.overlay(2, &answer);
    assert_eq!(
        scene.network_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    let expected = answer.rewritten(node, client).ttl(63);
    assert_eq!(wire.bytes[14..], expected.ip_bytes());
}

fn an_association_to_a_service_without_backends_is_refused<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let request = Frame::sctp((A::pod(1, 2), CLIENT), (A::service(1), 80));
    let mut wire = request.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    // With the initiate tag, by which a sender knows the association.
    let (at, quoted) = (14 + A::HEADER_LEN, A::HEADER_LEN + 20);
    assert_eq!(wire.bytes[at + 8..], request.ip_bytes()[..quoted]);
    let (kind, code) = if A::LEN == 4 { (3, 3) } else { (1, 4) };
    assert_eq!(wire.bytes[at..at + 2], [kind, code]);
}

fn a_header_that_is_cut_short_is_malformed<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut wire = Frame::new(A::pod(1, 2), A::service(1), 47, vec![0; 11]).wire();
    wire.bytes[14 + if A::LEN == 4 { 9 } else { 6 }] = 132;
    let malformed = Verdict::Drop(DropReason::Malformed);
    assert_eq!(scene.pod_sends(&mut wire), malformed);
}
