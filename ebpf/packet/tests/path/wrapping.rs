//! Every way in which the overlay lays a packet on the wire: VXLAN and bare UDP, over IPv4 and IPv6.

use ebpf_abi::{Addr4, Addr6, DropReason, Family, Peer, config_flag, peer_mode};
use ebpf_packet::Verdict;

use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, in_both_families, internet_checksum,
};

in_both_families! {
    a_packet_leaves_in_its_peers_header
    a_packet_arrives_as_it_was_sent
    a_packet_from_another_node_is_dropped
    congestion_of_the_underlay_reaches_the_receiver
    a_packet_cut_short_is_dropped
    what_is_no_ip_packet_is_dropped
}

const ECT: u8 = 2;
const CONGESTED: u8 = 3;

/// A scene whose peers are reached in one way.
struct Overlay<A: TestFamily, U: TestFamily>
where
    TestNode: Has<A>,
{
    scene: Scene<A>,
    bare: bool,
    _underlay: std::marker::PhantomData<U>,
}

impl<A: TestFamily, U: TestFamily> Overlay<A, U>
where
    TestNode: Has<A>,
{
    const PORT: u16 = 8472;

    fn new(bare: bool) -> Self {
        let mut overlay = Self {
            scene: Scene::new(),
            bare,
            _underlay: std::marker::PhantomData,
        };
        let peer = overlay.peer(2);
        let node = &mut overlay.scene.node;
        node.peers.insert(2, peer);
        if bare {
            node.config.as_mut().expect("set").flags |= config_flag::OVERLAY_UDP;
        }
        overlay
    }

    /// VXLAN and inner Ethernet header from one node to another; nothing in bare packets.
    fn behind_udp(&self, from: u8, to: u8, ethertype: [u8; 2]) -> Vec<u8> {
        let mut header = Vec::new();
        if !self.bare {
            header.extend([8, 0, 0, 0, 0, 0, 1, 0]);
            header.extend([2, 0x56, 0, 0, 0, to, 2, 0x56, 0, 0, 0, from]);
            header.extend(ethertype);
        }
        header
    }

    fn peer(&self, node: u8) -> Peer {
        let datagram = Frame::udp_with(
            (U::node(1), 0),
            (U::node(node), Self::PORT),
            &self.behind_udp(1, node, [0, 0]),
        );
        let mut bytes = datagram.ip_bytes();
        let (zero, sum): (&[_], _) = match U::FAMILY {
            Family::V4 => {
                bytes[2..8].fill(0);
                bytes[10..12].fill(0);
                (&[24..28], !internet_checksum(&bytes[..20]))
            }
            Family::V6 => (&[4..6, 44..48], 0),
        };
        for range in zero {
            bytes[range.clone()].fill(0);
        }
        let mut peer = Peer {
            header_sum: u32::from(sum),
            header_len: bytes.len() as u16,
            mode: if self.bare {
                peer_mode::UDP
            } else {
                peer_mode::VXLAN
            },
            underlay_family: U::FAMILY as u8,
            mtu: 1500 - bytes.len() as u32,
            ..Peer::default()
        };
        peer.header[..bytes.len()].copy_from_slice(&bytes);
        peer.underlay_addr[..U::LEN].copy_from_slice(U::node(node).as_bytes());
        peer
    }

    /// The outer packet that carries this inner one.
    fn outer(&self, from: u8, to: u8, source_port: u16, inner: &[u8]) -> Frame<U> {
        let mut payload = self.behind_udp(from, to, A::ETHERTYPE.to_ne_bytes());
        payload.extend(inner);
        Frame::udp_with(
            (U::node(from), source_port),
            (U::node(to), Self::PORT),
            &payload,
        )
    }

    fn arriving(&self, from: u8, inner: &Frame<A>, outer_ecn: u8) -> Wire {
        let outer = self.outer(from, 1, 50000, &inner.ip_bytes());
        outer.ecn(outer_ecn).wire()
    }
}

/// Calls a function for each way.
macro_rules! each_way {
    ($a:ident, $check:ident) => {
        for bare in [false, true] {
            $check(Overlay::<$a, Addr4>::new(bare));
            $check(Overlay::<$a, Addr6>::new(bare));
        }
    };
}

fn a_packet_leaves_in_its_peers_header<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        for ecn in 0..=CONGESTED {
            let sent = Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2)).ecn(ecn);
            let mut wire = sent.wire();
            let verdict = overlay.scene.pod_sends(&mut wire);
            assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
            let udp = 14 + U::HEADER_LEN;
            let source_port = u16::from_be_bytes([wire.bytes[udp], wire.bytes[udp + 1]]);
            assert!(source_port >= 49152, "source port {source_port}");
            let outer = overlay.outer(1, 2, source_port, &sent.ttl(63).ip_bytes());
            let mut expected = outer.ecn(ecn).ip_bytes();
            // No identification, no DF, no UDP checksum.
            expected[udp - 14 + 6..udp - 14 + 8].fill(0);
            if U::FAMILY == Family::V4 {
                expected[4..8].fill(0);
                expected[10..12].fill(0);
                let check = internet_checksum(&expected[..20]);
                expected[10..12].copy_from_slice(&check.to_be_bytes());
            }
            assert_eq!(wire.bytes[14..], expected);
        }
    }
    each_way!(A, check);
}

fn a_packet_arrives_as_it_was_sent<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        for inner in [
            Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK),
            Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2)).ecn(CONGESTED),
        ] {
            let mut wire = overlay.arriving(2, &inner, 0);
            let verdict = overlay.scene.network_sends(&mut wire);
            overlay.scene.assert_delivered(verdict, &wire, 3, &inner);
        }
    }
    each_way!(A, check);
}

fn a_packet_from_another_node_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        for (node, src) in [
            (3, A::pod(2, 9)),
            (2, A::pod(3, 9)),
            (2, A::pod(1, 2)),
            (2, A::outside(1)),
        ] {
            let inner = Frame::udp((src, 1), (A::pod(1, 3), 2));
            let verdict = overlay
                .scene
                .network_sends(&mut overlay.arriving(node, &inner, 0));
            assert_eq!(
                verdict,
                Verdict::Drop(DropReason::OverlayUnknownPeer),
                "{src:?} by node {node}"
            );
        }
    }
    each_way!(A, check);
}

fn congestion_of_the_underlay_reaches_the_receiver<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        let inner = Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK);
        let mut wire = overlay.arriving(2, &inner.clone().ecn(ECT), CONGESTED);
        let verdict = overlay.scene.network_sends(&mut wire);
        let marked = inner.clone().ecn(CONGESTED);
        overlay.scene.assert_delivered(verdict, &wire, 3, &marked);
        // A sender that knows no marks must notice a loss.
        let mut wire = overlay.arriving(2, &inner, CONGESTED);
        assert_eq!(
            overlay.scene.network_sends(&mut wire),
            Verdict::Drop(DropReason::OverlayCongestion)
        );
    }
    each_way!(A, check);
}

fn a_packet_cut_short_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        let inner = Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK).ip_bytes();
        for len in 0..inner.len() {
            // The outer headers say the truth of what is left.
            let mut wire = overlay.outer(2, 1, 50000, &inner[..len]).wire();
            let verdict = overlay.scene.network_sends(&mut wire);
            assert!(
                matches!(
                    verdict,
                    Verdict::Drop(DropReason::Malformed | DropReason::OverlayBadHeader)
                ),
                "{len} bytes: {verdict:?}"
            );
        }
    }
    each_way!(A, check);
}

fn what_is_no_ip_packet_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    fn check<A: TestFamily, U: TestFamily>(overlay: Overlay<A, U>)
    where
        TestNode: Has<A>,
    {
        let inner = Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2));
        for version in (0..16_u8).filter(|version| ![4, 6].contains(version)) {
            let mut wire = overlay.arriving(2, &inner, 0);
            let at = wire.bytes.len() - inner.ip_bytes().len();
            wire.bytes[at] = version << 4 | 5;
            let reason = if overlay.bare {
                DropReason::OverlayBadHeader
            } else {
                DropReason::Malformed
            };
            assert_eq!(
                overlay.scene.network_sends(&mut wire),
                Verdict::Drop(reason)
            );
        }
    }
    each_way!(A, check);
}
