//! Packets that nobody should send: cut short, random, with lengths that lie.

use ebpf_abi::{Addr4, Addr6, DropReason};
use ebpf_packet::{Ip, Verdict};
use proptest::prelude::*;

use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, assert_checksums, in_both_families,
};

in_both_families! {
    every_cut_is_malformed_or_passed_and_never_forwarded
    lying_lengths_are_malformed
    extension_headers_and_options_are_walked
}

fn frames<A: TestFamily>() -> Vec<Frame<A>> {
    let (here, there) = ((A::pod(1, 2), 45000), (A::service(1), 80));
    let mut with_options = Frame::udp(here, there);
    with_options.options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    vec![
        Frame::tcp(here, there, Tcp::SYN),
        Frame::udp(here, there),
        Frame::echo(here.0, A::outside(1), true, 5),
        Frame::error(
            here.0,
            there.0,
            if A::LEN == 4 { 3 } else { 1 },
            0,
            &Frame::udp(there, here).ip_bytes(),
        ),
        with_options,
    ]
}

fn every_cut_is_malformed_or_passed_and_never_forwarded<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for frame in frames::<A>() {
        let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
        let whole = frame.bytes();
        for len in 0..whole.len() {
            let mut wire = Wire::new(whole[..len].to_vec());
            let before = wire.clone();
            let verdict = scene.pod_sends(&mut wire);
            let expected = if len < 14 {
                Verdict::Pass
            } else {
                Verdict::Drop(DropReason::Malformed)
            };
            assert_eq!(verdict, expected, "{len} of {} bytes", whole.len());
            assert_eq!(wire, before);
        }
        assert_eq!(scene.conn_count(), 0);
        let mut wire = scene.overlay(2, &frame);
        let len = wire.bytes.len();
        for len in 42..len {
            let mut cut = Wire::new(wire.bytes[..len].to_vec());
            assert!(matches!(scene.network_sends(&mut cut), Verdict::Drop(_)));
        }
        assert!(
            matches!(scene.network_sends(&mut wire), Verdict::Drop(_)),
            "its source is not node 2's"
        );
    }
}

fn lying_lengths_are_malformed<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    let transport = 14 + A::HEADER_LEN;
    let mut lies = vec![(14, 0x15), (transport + 4, 0xff)];
    if A::LEN == 4 {
        lies.extend([
            (14, 0x44),
            (14, 0x4f),
            (16, 0xff),
            (17, 19),
            (17, 27),
            (transport + 5, 7),
        ]);
    } else {
        lies.extend([(18, 0xff), (19, 7), (transport + 5, 7)]);
    }
    for (at, value) in lies {
        let mut wire = Frame::udp((A::pod(1, 2), 45000), (A::service(1), 80)).wire();
        wire.bytes[at] = value;
        assert_eq!(
            scene.pod_sends(&mut wire),
            Verdict::Drop(DropReason::Malformed),
            "byte {at} = {value:#x}"
        );
    }
    for offset in [0x00, 0x40, 0xf0] {
        let mut wire = Frame::tcp((A::pod(1, 2), 45000), (A::service(1), 80), Tcp::SYN).wire();
        wire.bytes[transport + 12] = offset;
        assert_eq!(
            scene.pod_sends(&mut wire),
            Verdict::Drop(DropReason::Malformed),
            "data offset {offset:#x}"
        );
    }
}

fn extension_headers_and_options_are_walked<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 45000),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    for options in [vec![0, 0, 1, 4, 0, 0, 0, 0], vec![1; 0]] {
        let mut frame = Frame::udp(client, vip);
        frame.options = options;
        let mut wire = frame.wire();
        let verdict = scene.pod_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 3, &frame.rewritten(client, backend));
    }
}

fn address<A: TestFamily>() -> impl Strategy<Value = A> {
    (0u8..7, any::<u8>()).prop_map(|(kind, n)| match kind {
        0 => A::pod(1, n % 5),
        1 => A::pod(2, n),
        2 => A::pod(3, n),
        3 => A::node(n % 4),
        4 => A::service(n % 3),
        _ => A::outside(n),
    })
}

fn some_frame<A: TestFamily>() -> impl Strategy<Value = Frame<A>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..64);
    (
        address::<A>(),
        address::<A>(),
        any::<u16>(),
        any::<u16>(),
        0u8..3,
        any::<u8>(),
        payload,
    )
        .prop_map(|(src, dst, from, to, kind, flags, payload)| match kind {
            0 => Frame::tcp((src, from), (dst, if to % 2 == 0 { 80 } else { to }), flags),
            1 => Frame::udp_with(
                (src, from),
                (dst, if to % 2 == 0 { 80 } else { to }),
                &payload,
            ),
            _ => Frame::echo(src, dst, true, from),
        })
}

/// Runs packets through every hook; whatever comes out changed has right checksums.
fn checksums_hold<A: TestFamily>(frames: &[Frame<A>])
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[
        (A::pod(1, 3), 8080),
        (A::pod(2, 3), 80),
        (A::outside(3), 90),
    ]);
    for frame in frames {
        for hook in [Scene::pod_sends, Scene::network_sends, Scene::host_sends] {
            let mut wire = frame.wire();
            let verdict = hook(&scene, &mut wire);
            let encapsulated = wire.bytes.len() == frame.bytes().len() + 50;
            if encapsulated {
                wire.bytes.drain(14..64);
            }
            if !matches!(verdict, Verdict::Drop(_)) {
                assert_checksums::<A>(&wire.bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn checksums_hold_v4(frames in proptest::collection::vec(some_frame::<Addr4>(), 1..20)) {
        checksums_hold(&frames);
    }

    #[test]
    fn checksums_hold_v6(frames in proptest::collection::vec(some_frame::<Addr6>(), 1..20)) {
        checksums_hold(&frames);
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ethertype in prop_oneof![Just(Addr4::ETHERTYPE), Just(Addr6::ETHERTYPE), any::<u16>()],
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(0u8), Just(1), Just(6), Just(17), Just(43), Just(44), Just(51), Just(58), Just(60)],
        fitting in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if bytes.len() > 24 {
            bytes[12..14].copy_from_slice(&ethertype.to_ne_bytes());
            bytes[14] = version;
            bytes[if ethertype == Addr4::ETHERTYPE { 23 } else { 20 }] = protocol;
            if fitting {
                let len = (bytes.len() - 14) as u16;
                if ethertype == Addr4::ETHERTYPE {
                    bytes[16..18].copy_from_slice(&len.to_be_bytes());
                } else {
                    bytes[18..20].copy_from_slice(&len.saturating_sub(40).to_be_bytes());
                }
            }
        }
        let scene = Scene::<Addr4>::with_backends(&[(Addr4::pod(1, 3), 8080)]);
        for hook in [Scene::pod_sends, Scene::network_sends, Scene::host_sends] {
            hook(&scene, &mut Wire::new(bytes.clone()));
        }
    }
}
