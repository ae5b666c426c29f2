//! Every way in which the overlay lays a packet on the wire: VXLAN and bare UDP, over IPv4 and IPv6.

use ebpf_abi::{Addr4, Addr6, DropReason, Family, Peer, config_flag, peer_mode};
use ebpf_packet::{Ip, Verdict, from_vxlan};

use crate::support::{
    Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, assert_checksums, in_both_families,
    internet_checksum,
};

in_both_families! {
    a_packet_leaves_in_its_peers_header
    a_packet_arrives_as_it_was_sent
    a_packet_from_another_node_is_dropped
    congestion_of_the_underlay_reaches_the_receiver
    a_packet_cut_short_is_dropped
    what_is_no_ip_packet_is_dropped
    an_outer_checksum_is_right_whatever_is_inside
    what_has_no_checksum_from_headers_goes_by_the_device
    everything_goes_by_the_device_of_such_a_peer
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
const DEVICE: u32 = 77;

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

    /// What the outer checksum starts from: see [`Peer::checksum_sum`].
    fn checksum_sum(self, peer: &Peer) -> u32 {
        let header = &peer.header[..peer.header_len.into()];
        let ip_len = self.udp_at() - 14;
        let addresses = match self.underlay {
            Family::V4 => &header[12..20],
            Family::V6 => &header[8..40],
        };
        let words = addresses.chunks(2).chain(header[ip_len..].chunks(2));
        let words = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        words.sum::<u32>() + 17
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

    /// By VXLAN, with the kernel's device at hand and an outer checksum, or without.
    fn by_vxlan(checksum: bool) -> impl Iterator<Item = Self> {
        let vxlan = Self::all().filter(|overlay| !overlay.wrapping.bare);
        vxlan.map(move |mut overlay| {
            let peer = overlay.scene.node.peers.get_mut(&2).expect("inserted");
            peer.device_ifindex = DEVICE;
            if checksum {
                peer.checksum_sum = overlay.wrapping.checksum_sum(peer);
            } else {
                peer.mode = peer_mode::DEVICE;
            }
            overlay
        })
    }

    #[track_caller]
    fn assert_goes_by_the_device(&self, wire: &mut Wire, sent: &Frame<A>) {
        let verdict = self.scene.pod_sends(wire);
        assert_eq!(verdict, Verdict::ToDevice { ifindex: DEVICE });
        let mut expected = sent.clone().ttl(63).bytes();
        expected[..12].copy_from_slice(&[2, 0x56, 0, 0, 0, 2, 2, 0x56, 0, 0, 0, 1]);
        assert_eq!(wire.bytes, expected);
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

fn an_outer_checksum_is_right_whatever_is_inside<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::by_vxlan(true) {
        let (from, to) = (A::pod(1, 2), A::pod(2, 3));
        for len in (0..64).chain([1300]) {
            let payload = vec![len as u8 | 1; len];
            let mut with_payload = Frame::tcp((from, 1), (to, 2), Tcp::ACK);
            with_payload.transport.extend(&payload);
            for sent in [
                with_payload,
                Frame::udp_with((from, 1), (to, 2), &payload).ecn(CONGESTED),
                Frame::echo(from, to, true, 7).ttl(9),
            ] {
                let mut wire = sent.wire();
                let verdict = overlay.scene.pod_sends(&mut wire);
                assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
                match overlay.wrapping.underlay {
                    Family::V4 => assert_checksums::<Addr4>(&with_ethertype::<Addr4>(&wire)),
                    Family::V6 => assert_checksums::<Addr6>(&with_ethertype::<Addr6>(&wire)),
                }
                let check = overlay.wrapping.udp_at() + 6;
                assert_ne!(wire.bytes[check..check + 2], [0, 0], "there is one");
            }
        }
        // Through a service the inner packet has other addresses and ports than were sent.
        let mut scene = overlay.scene;
        scene.set_backends(1, &[(to, 8080)]);
        let mut wire = Frame::tcp((from, 5), (A::service(1), 80), Tcp::SYN).wire();
        assert!(matches!(
            scene.pod_sends(&mut wire),
            Verdict::ToNetwork { .. }
        ));
        match overlay.wrapping.underlay {
            Family::V4 => assert_checksums::<Addr4>(&wire.bytes),
            Family::V6 => assert_checksums::<Addr6>(&wire.bytes),
        }
    }
}

/// The frame with the outer EtherType, which the kernel writes.
fn with_ethertype<U: TestFamily>(wire: &Wire) -> Vec<u8> {
    let mut bytes = wire.bytes.clone();
    bytes[12..14].copy_from_slice(&U::ETHERTYPE.to_ne_bytes());
    bytes
}

fn what_has_no_checksum_from_headers_goes_by_the_device<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::by_vxlan(true) {
        let (from, to) = (A::pod(1, 2), A::pod(2, 3));
        let sctp = Frame::sctp((from, 1), (to, 2));
        overlay.assert_goes_by_the_device(&mut sctp.wire(), &sctp);
        let unknown = Frame::new(from, to, 99, vec![7; 21]);
        overlay.assert_goes_by_the_device(&mut unknown.wire(), &unknown);
        // To be cut by a device.
        let sent = Frame::tcp((from, 1), (to, 2), Tcp::ACK);
        let mut wire = sent.wire();
        wire.segment = 10;
        overlay.assert_goes_by_the_device(&mut wire, &sent);
        // A fragment's checksum is of the whole; a datagram without checksum tells nothing; nor do bytes behind the end.
        let datagram = Frame::udp_with((from, 1), (to, 2), &[7; 100]);
        let mut bare = datagram.wire();
        let check = 14 + A::HEADER_LEN + 6;
        bare.bytes[check..check + 2].fill(0);
        let mut padded = datagram.wire();
        padded.bytes.extend([1, 2]);
        let [first, later] = crate::fragments::fragments(&datagram);
        for mut wire in [first, later, bare, padded] {
            let verdict = overlay.scene.pod_sends(&mut wire);
            assert_eq!(verdict, Verdict::ToDevice { ifindex: DEVICE });
        }
    }
}

fn everything_goes_by_the_device_of_such_a_peer<A: TestFamily>()
where
    TestNode: Has<A>,
{
    for overlay in Overlay::<A>::by_vxlan(false) {
        for sent in [
            Frame::tcp((A::pod(1, 2), 1), (A::pod(2, 3), 2), Tcp::ACK),
            Frame::udp((A::pod(1, 2), 1), (A::pod(2, 3), 2)),
        ] {
            overlay.assert_goes_by_the_device(&mut sent.wire(), &sent);
        }
        // And comes out of it, if some node has the source.
        let scene = &overlay.scene;
        let inner = Frame::udp((A::pod(2, 9), 1), (A::pod(1, 3), 2));
        let mut wire = inner.wire();
        let verdict = from_vxlan(&mut wire, &scene.node);
        scene.assert_delivered(verdict, &wire, 3, &inner);
        let from = |src, dst| from_vxlan(&mut Frame::udp((src, 1), (dst, 2)).wire(), &scene.node);
        assert_eq!(
            from(A::outside(1), A::pod(1, 3)),
            Verdict::Drop(DropReason::OverlayUnknownPeer)
        );
        assert_eq!(
            from(A::pod(2, 9), A::pod(3, 3)),
            Verdict::Drop(DropReason::OverlayNotLocal)
        );
    }
}
