//! IP fragments: only the first has ports.

use ebpf_abi::DropReason;
use ebpf_packet::Verdict;

use crate::support::{
    Frame, Has, Scene, TestFamily, TestNode, Wire, assert_checksums, in_both_families,
};

in_both_families! {
    fragments_of_a_translated_datagram_stay_together
    later_fragments_without_their_first_are_dropped_where_translation_is_needed
    plain_fragments_pass_in_any_order
    fragments_leave_the_cluster_together
    a_first_fragment_too_short_for_its_header_is_dropped
}

/// The IP payload of a frame in two fragments.
pub fn fragments<A: TestFamily>(frame: &Frame<A>) -> [Wire; 2] {
    let whole = frame.bytes();
    let payload = &whole[14 + A::HEADER_LEN..];
    [(0, &payload[..16], true), (16, &payload[16..], false)].map(|(offset, bytes, more)| {
        if A::LEN == 4 {
            let mut wire = whole[..34].to_vec();
            wire[16..18].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
            wire[20..22].copy_from_slice(&((u16::from(more) << 13) | (offset / 8)).to_be_bytes());
            wire[24..26].fill(0);
            let check = !wire[14..34].chunks(2).fold(0u32, |sum, word| {
                let sum = sum + u32::from(u16::from_be_bytes([word[0], word[1]]));
                (sum & 0xffff) + (sum >> 16)
            });
            wire[24..26].copy_from_slice(&(check as u16).to_be_bytes());
            wire.extend(bytes);
            Wire::new(wire)
        } else {
            let mut wire = whole[..54].to_vec();
            wire[18..20].copy_from_slice(&(8 + bytes.len() as u16).to_be_bytes());
            wire[20] = 44;
            wire.extend([frame.protocol, 0]);
            wire.extend((offset | u16::from(more)).to_be_bytes());
            wire.extend([9, 8, 7, 6]);
            wire.extend(bytes);
            Wire::new(wire)
        }
    })
}

/// The datagram that the fragments make, as a frame.
fn reassembled<A: TestFamily>(fragments: &[Wire; 2]) -> Vec<u8> {
    let skip = if A::LEN == 4 { 34 } else { 62 };
    let mut whole = fragments[0].bytes[..14 + A::HEADER_LEN].to_vec();
    for fragment in fragments {
        whole.extend(&fragment.bytes[skip..]);
    }
    let len = whole.len() - 14 - if A::LEN == 4 { 0 } else { 40 };
    if A::LEN == 4 {
        whole[16..18].copy_from_slice(&(len as u16).to_be_bytes());
        whole[20..22].copy_from_slice(&[0x40, 0]);
        whole[24..26].copy_from_slice(&[0, 0]);
        let sum = whole[14..34].chunks(2).fold(0u32, |sum, word| {
            let sum = sum + u32::from(u16::from_be_bytes([word[0], word[1]]));
            (sum & 0xffff) + (sum >> 16)
        });
        whole[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    } else {
        whole[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        whole[20] = 17;
    }
    whole
}

fn fragments_of_a_translated_datagram_stay_together<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 45000),
        (A::service(1), 80),
        (A::pod(1, 3), 8080),
    );
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 2), 1), backend]);
    let request = Frame::udp_with(client, vip, &[7; 40]);
    // A turn for another client, so that the right backend is not the first.
    scene.pod_sends(&mut Frame::udp((A::pod(1, 3), 1), vip).wire());
    let mut parts = fragments(&request);
    for part in &mut parts {
        assert_eq!(
            scene.pod_sends(part),
            Verdict::DeliverToPod { ifindex: 103 }
        );
    }
    let whole = reassembled::<A>(&parts);
    assert_checksums::<A>(&whole);
    assert_eq!(
        whole[14..],
        request.rewritten(client, backend).ttl(63).ip_bytes()
    );
}

fn later_fragments_without_their_first_are_dropped_where_translation_is_needed<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    for dst in [(A::service(1), 80), (A::outside(1), 80)] {
        let [_, mut later] = fragments(&Frame::udp_with((A::pod(1, 2), 45000), dst, &[7; 40]));
        assert_eq!(
            scene.pod_sends(&mut later),
            Verdict::Drop(DropReason::FragmentUnknown)
        );
    }
}

fn plain_fragments_pass_in_any_order<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let [mut first, mut later] = fragments(&Frame::udp_with(
        (A::pod(1, 2), 1),
        (A::pod(1, 3), 2),
        &[7; 40],
    ));
    assert_eq!(
        scene.pod_sends(&mut later),
        Verdict::DeliverToPod { ifindex: 103 }
    );
    assert_eq!(
        scene.pod_sends(&mut first),
        Verdict::DeliverToPod { ifindex: 103 }
    );
    let [_, mut later] = fragments(&Frame::udp_with(
        (A::pod(1, 2), 1),
        (A::pod(2, 3), 2),
        &[7; 40],
    ));
    assert_eq!(
        scene.pod_sends(&mut later),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
}

fn fragments_leave_the_cluster_together<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut parts = fragments(&Frame::udp_with(
        (A::pod(1, 2), 20002),
        (A::outside(8), 53),
        &[7; 40],
    ));
    for part in &mut parts {
        assert_eq!(
            scene.pod_sends(part),
            Verdict::ToNetwork { next_hop_peer: 0 }
        );
        assert_eq!(A::read(&part.bytes, 14 + A::SRC_AT), A::node(1));
    }
    assert_checksums::<A>(&reassembled::<A>(&parts));
}

fn a_first_fragment_too_short_for_its_header_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let [mut first, _] = fragments(&Frame::tcp((A::pod(1, 2), 1), (A::pod(1, 3), 2), 2));
    assert_eq!(
        scene.pod_sends(&mut first),
        Verdict::Drop(DropReason::Malformed)
    );
}
