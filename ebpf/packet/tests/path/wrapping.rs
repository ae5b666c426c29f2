//! Every way in which the overlay lays a packet on the wire: VXLAN and bare UDP, over IPv4 and IPv6.

use ebpf_abi::{Addr4, Addr6, DropReason, Family, Peer, config_flag, peer_mode};
use ebpf_packet::{Ip, Verdict};

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
struct Overlay<A: TestFamily>
where
    TestNode: Has<A>,
{
    scene: Scene<A>,
    wrapping: Wrapping,
}

#[derive(Clone, Copy, Debug)]
struct Wrapping {
    bare: bool,
    underlay: Family,
}

const PORT: u16 = 8472;

impl Wrapping {
    const ALL: [Self; 4] = [
        Self::new(false, Family::V4),
        Self::new(false, Family::V6),
        Self::new(true, Family::V4),
        Self::new(true, Family::V6),
    ];

    const fn new(bare: bool, underlay: Family) -> Self {
        Self { bare, underlay }
    }

    /// Where the outer UDP header starts in a frame.
    fn udp_at(self) -> usize {
        match self.underlay {
            Family::V4 => 14 + Addr4::HEADER_LEN,
            Family::V6 => 14 + Addr6::HEADER_LEN,
        }
    }

    /// VXLAN and inner Ethernet header from one node to another; nothing in bare packets.
    fn behind_udp(self, from: u8, to: u8, ethertype: [u8; 2]) -> Vec<u8> {
        let mut header = Vec::new();
        if !self.bare {
            header.extend([8, 0, 0, 0, 0, 0, 1, 0]);
            header.extend([2, 0x56, 0, 0, 0, to, 2, 0x56, 0, 0, 0, from]);
            header.extend(ethertype);
        }
        header
    }

    fn peer(self, node: u8) -> Peer {
        match self.underlay {
            Family::V4 => self.peer_over::<Addr4>(node),
            Family::V6 => self.peer_over::<Addr6>(node),
        }
    }

    fn peer_over<U: TestFamily>(self, node: u8) -> Peer {
        let payload = self.behind_udp(1, node, [0, 0]);
        let mut bytes =
            Frame::udp_with((U::node(1), 0), (U::node(node), PORT), &payload).ip_bytes();
        let (zero, sum): (&[_], _) = match U::FAMILY {
            Family::V4 => {
                bytes[2..8].fill(0);
                bytes[10..12].fill(0);
                (&[(24, 28)], !internet_checksum(&bytes[..20]))
            }
            Family::V6 => (&[(4, 6), (44, 48)], 0),
        };
        for (from, to) in zero {
            bytes[*from..*to].fill(0);
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
}

impl<A: TestFamily> Overlay<A>
where
    TestNode: Has<A>,
{
    fn all() -> impl Iterator<Item = Self> {
        Wrapping::ALL.into_iter().map(|wrapping| {
            let mut scene = Scene::new();
            scene.node.peers.insert(2, wrapping.peer(2));
            if wrapping.bare {
                scene.node.config.as_mut().expect("set").flags |= config_flag::OVERLAY_UDP;
            }
            Self { scene, wrapping }
        })
    }

    /// The outer packet that carries this inner one.
    fn outer(&self, nodes: (u8, u8), source_port: u16, ecn: u8, inner: &[u8]) -> Wire {
        let (from, to) = nodes;
        let mut payload = self
            .wrapping
            .behind_udp(from, to, A::ETHERTYPE.to_ne_bytes());
        payload.extend(inner);
        fn frame<U: TestFamily>(nodes: (u8, u8), port: u16, ecn: u8, payload: &[u8]) -> Wire {
            let (from, to) = (U::node(nodes.0), U::node(nodes.1));
            Frame::udp_with((from, port), (to, PORT), payload)
                .ecn(ecn)
                .wire()
        }
        match self.wrapping.underlay {
            Family::V4 => frame::<Addr4>(nodes, source_port, ecn, &payload),
            Family::V6 => frame::<Addr6>(nodes, source_port, ecn, &payload),
        }
    }

    /// What becomes of an inner packet that arrives from a node.
    fn arrives(&self, from: u8, inner: &Frame<A>, outer_ecn: u8) -> (Verdict, Wire) {
        let mut wire = self.outer((from, 1), 50000, outer_ecn, &inner.ip_bytes());
        (self.scene.network_sends(&mut wire), wire)
    }
}

fn a_packet_leaves_in_its_peers_header<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        (0..=CONGESTED).for_each(|ecn| assert_leaves(&overlay, ecn));
    }
}

#[track_caller]
fn assert_leaves<A: TestFamily>(overlay: &Overlay<A>, ecn: u8)
where
    TestNode: Has<A>,
{
    let sent = Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2)).ecn(ecn);
    let mut wire = sent.wire();
    let verdict = overlay.scene.pod_sends(&mut wire);
    assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
    let udp = overlay.wrapping.udp_at();
    let source_port = u16::from_be_bytes([wire.bytes[udp], wire.bytes[udp + 1]]);
    assert!(source_port >= 49152, "source port {source_port}");
    let outer = overlay.outer((1, 2), source_port, ecn, &sent.ttl(63).ip_bytes());
    let mut expected = outer.bytes[14..].to_vec();
    // No identification, no DF, no UDP checksum.
    expected[udp - 14 + 6..udp - 14 + 8].fill(0);
    if matches!(overlay.wrapping.underlay, Family::V4) {
        expected[4..8].fill(0);
        expected[10..12].fill(0);
        let check = internet_checksum(&expected[..20]);
        expected[10..12].copy_from_slice(&check.to_be_bytes());
    }
    assert_eq!(wire.bytes[14..], expected, "{:?}", overlay.wrapping);
}

fn a_packet_arrives_as_it_was_sent<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        for inner in [
            Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK),
            Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2)).ecn(CONGESTED),
        ] {
            let (verdict, wire) = overlay.arrives(2, &inner, 0);
            overlay.scene.assert_delivered(verdict, &wire, 3, &inner);
        }
    }
}

fn a_packet_from_another_node_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        for (node, src) in [
            (3, A::pod(2, 9)),
            (2, A::pod(3, 9)),
            (2, A::pod(1, 2)),
            (2, A::outside(1)),
        ] {
            let inner = Frame::udp((src, 1), (A::pod(1, 3), 2));
            let (verdict, _) = overlay.arrives(node, &inner, 0);
            assert_eq!(
                verdict,
                Verdict::Drop(DropReason::OverlayUnknownPeer),
                "{src:?} by node {node}"
            );
        }
    }
}

fn congestion_of_the_underlay_reaches_the_receiver<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        let inner = Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK);
        let (verdict, wire) = overlay.arrives(2, &inner.clone().ecn(ECT), CONGESTED);
        let marked = inner.clone().ecn(CONGESTED);
        overlay.scene.assert_delivered(verdict, &wire, 3, &marked);
        // A sender that knows no marks must notice a loss.
        let (verdict, _) = overlay.arrives(2, &inner, CONGESTED);
        assert_eq!(verdict, Verdict::Drop(DropReason::OverlayCongestion));
    }
}

fn a_packet_cut_short_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        let inner = Frame::tcp((A::pod(2, 9), 1), (A::pod(1, 3), 2), Tcp::ACK).ip_bytes();
        for len in 0..inner.len() {
            // The outer headers say the truth of what is left.
            let mut wire = overlay.outer((2, 1), 50000, 0, &inner[..len]);
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
}

fn what_is_no_ip_packet_is_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::all() {
        let inner = Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2)).ip_bytes();
        for version in (0..16_u8).filter(|version| ![4, 6].contains(version)) {
            let mut wire = overlay.outer((2, 1), 50000, 0, &inner);
            let at = wire.bytes.len() - inner.len();
            wire.bytes[at] = version << 4 | 5;
            let reason = if overlay.wrapping.bare {
                DropReason::OverlayBadHeader
            } else {
                DropReason::Malformed
            };
            let verdict = overlay.scene.network_sends(&mut wire);
            assert_eq!(verdict, Verdict::Drop(reason));
        }
    }
}
