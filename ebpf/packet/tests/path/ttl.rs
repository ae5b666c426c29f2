//! The TTL or hop limit that ends on this node: who hears of it, in whose name, and how often.

use ebpf_abi::DropReason;
use ebpf_packet::Verdict;

use crate::fragments::fragments;
use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, assert_checksums, in_both_families,
    internet_checksum,
};

in_both_families! {
    the_sender_hears_where_its_packet_ended
    a_sender_on_another_node_hears_it_through_the_overlay
    nobody_hears_more_than_six_at_once_and_one_a_second
    an_error_or_a_stranger_fragment_ends_without_a_word
}

const UNANSWERED: Verdict = Verdict::Drop(DropReason::TtlExceeded);

/// Asserts that `icmp`, which starts at its header, says 'time exceeded' and quotes what was sent.
#[track_caller]
fn assert_tells<A: TestFamily>(icmp: &[u8], sent: &Frame<A>, quoted: usize) {
    let kind = if A::LEN == 4 { [11, 0] } else { [3, 0] };
    assert_eq!(icmp[..2], kind);
    assert_eq!(icmp[4..8], [0; 4]);
    assert_eq!(icmp[8..], sent.ip_bytes()[..A::HEADER_LEN + quoted]);
}

fn the_sender_hears_where_its_packet_ended<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(2, 9), 8080)]);
    let from = A::pod(1, 2);
    let everywhere = [
        A::pod(1, 3),
        A::pod(2, 3),
        A::pod(3, 3),
        A::outside(8),
        A::service(1),
    ];
    for dst in everywhere {
        let sent = [
            (Frame::udp_with((from, 1), (dst, 80), b""), 8),
            (Frame::echo(from, dst, true, 7), 8),
            (Frame::tcp((from, 1), (dst, 80), Tcp::SYN), 20),
        ];
        for (sent, quoted) in sent {
            if dst == A::service(1) && quoted == 8 && sent.protocol != 17 {
                // A service's address answers a ping itself.
                continue;
            }
            for ttl in [0, 1] {
                let sent = sent.clone().ttl(ttl);
                let mut wire = sent.wire();
                scene.node.icmp_full_at.borrow_mut().clear();
                assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect, "{dst:?}");
                assert_checksums::<A>(&wire.bytes);
                assert_eq!(wire.bytes[..6], [2, 0, 0, 0, 0, 0xaa], "back to its sender");
                assert_eq!(A::read(&wire.bytes, 14 + A::DST_AT), from);
                assert_eq!(A::read(&wire.bytes, 14 + A::SRC_AT), A::node(1));
                assert_tells(&wire.bytes[14 + A::HEADER_LEN..], &sent, quoted);
            }
            let verdict = scene.pod_sends(&mut sent.ttl(2).wire());
            assert!(
                !matches!(verdict, Verdict::Drop(_) | Verdict::Reflect),
                "{verdict:?}"
            );
        }
    }
}

fn a_sender_on_another_node_hears_it_through_the_overlay<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let from = A::pod(2, 9);
    let sent = Frame::udp((from, 1), (A::pod(1, 3), 2)).ttl(1);
    let mut wire = scene.overlay(2, &sent);
    let verdict = scene.network_sends(&mut wire);
    // Its node takes it only from an address of this node's podCIDR.
    let own = A::pod(1, 0);
    let quoted = &sent.ip_bytes()[..A::HEADER_LEN + 8];
    let [kind, code] = if A::LEN == 4 { [11, 0] } else { [3, 0] };
    let mut answer = Frame::error(own, from, kind, code, quoted).ttl(65);
    if A::LEN == 4 {
        // Neither an identification nor DF.
        let inner = &wire.bytes[64..];
        assert_eq!(inner[4..8], [0; 4]);
        answer.transport = inner[A::HEADER_LEN..].to_vec();
        let mut expected = answer.clone().ttl(64).ip_bytes();
        expected[4..8].fill(0);
        expected[10..12].fill(0);
        let check = internet_checksum(&expected[..20]);
        expected[10..12].copy_from_slice(&check.to_be_bytes());
        assert_eq!(inner, expected);
        assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
    } else {
        scene.assert_encapsulated(verdict, &wire, &answer);
    }
    assert_tells(&wire.bytes[64 + A::HEADER_LEN..], &sent, 8);
    // The pod's own node passes it on to the pod.
    let mut wire = scene.overlay(
        2,
        &Frame::error(A::pod(2, 0), A::pod(1, 2), kind, code, quoted),
    );
    let verdict = scene.network_sends(&mut wire);
    assert!(
        matches!(verdict, Verdict::DeliverToPod { .. }),
        "{verdict:?}"
    );
}

fn nobody_hears_more_than_six_at_once_and_one_a_second<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let answered = |host| {
        let sent = Frame::udp((A::pod(1, host), 1), (A::pod(2, 3), 2)).ttl(1);
        match scene.pod_sends(&mut sent.wire()) {
            Verdict::Reflect => true,
            UNANSWERED => false,
            other => panic!("{other:?}"),
        }
    };
    let count = |host| (0..100).filter(|_| answered(host)).count();
    assert_eq!(count(2), 6);
    assert_eq!(count(3), 6, "another address has its own");
    let now = &scene.node.now_ns;
    now.set(now.get() + 999_999_999);
    assert_eq!(count(2), 0);
    now.set(now.get() + 1);
    assert_eq!(count(2), 1);
    now.set(now.get() + 60_000_000_000);
    assert_eq!(count(2), 6);
}

fn an_error_or_a_stranger_fragment_ends_without_a_word<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let (here, there) = (A::pod(1, 2), A::pod(2, 3));
    let quoted = Frame::udp((there, 1), (here, 2)).ip_bytes();
    let [kind, code] = if A::LEN == 4 { [3, 3] } else { [1, 4] };
    let error = Frame::error(here, there, kind, code, &quoted).ttl(1);
    assert_eq!(scene.pod_sends(&mut error.wire()), UNANSWERED);
    let whole = Frame::udp_with((here, 1), (there, 2), &[7; 100]).ttl(1);
    let [mut first, mut later] = fragments(&whole);
    assert_eq!(scene.pod_sends(&mut first), Verdict::Reflect);
    assert_eq!(scene.pod_sends(&mut later), UNANSWERED);
}
