//! The overlay in the kernel: encapsulation, decapsulation, what is refused, what is too long; masquerade.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use ebpf_abi::DropReason;
use node_agent_maps::{Program, TestRun};
use std::net::{IpAddr, SocketAddr};
use tests_netns::{BACKEND_PORT, CLIENT_PORT, Family, Fixture, NODE_PORT, Outcome, rewritten};
use tests_testkit::{
    is_root,
    packet::{Frame, Parsed, tcp_flag},
    skip,
};

/// Largest inner packet on an underlay of 1500 bytes.
const OVERLAY_MTU: usize = 1450;

fn fixtures() -> Vec<Fixture> {
    if !is_root() {
        skip("needs root");
        return Vec::new();
    }
    Fixture::both().unwrap().into()
}

#[test]
fn a_packet_to_another_node_is_encapsulated() {
    for f in fixtures() {
        let (src, dst) = (f.of(&f.client, 1), f.remote(2));
        let frame = f.sent_by(&f.client, src, dst);
        for frame in [
            frame.clone().tcp(1, 2, tcp_flag::ACK, b"data"),
            frame.udp(1, 2, b"data"),
        ] {
            let outcome = f.from_pod(&f.client, &frame.bytes()).unwrap();
            f.check_encapsulated(&outcome, &frame).unwrap();
        }
    }
}

#[test]
fn the_hosts_own_packet_is_encapsulated_without_a_hop() {
    for f in fixtures() {
        let frame = Frame::new(f.in_pod_cidr(0, 1), f.remote(2).ip()).udp(1, 2, b"data");
        let outcome = f.from_host(&frame.bytes()).unwrap();
        f.check_encapsulated(&outcome, &frame.ttl(65)).unwrap();
    }
}

#[test]
fn an_encapsulated_packet_is_delivered() {
    for f in fixtures() {
        let frame = Frame::new(f.remote(1).ip(), f.of(&f.client, 2).ip());
        for frame in [
            frame.clone().tcp(1, 2, tcp_flag::ACK, b"data"),
            frame.udp(1, 2, b"data"),
        ] {
            let outcome = f.from_network(&f.overlay(&frame).bytes()).unwrap();
            assert_eq!(outcome, Fixture::delivered(&f.client, &frame));
        }
        let frame = Frame::new(f.remote(1).ip(), f.in_pod_cidr(0, 1)).udp(1, 2, b"data");
        let Outcome::Redirect(packet) = f.from_network(&f.overlay(&frame).bytes()).unwrap() else {
            panic!("a packet for the host was not redirected")
        };
        assert_eq!(
            packet[14..],
            frame.ip_bytes(),
            "the host's packet makes no hop"
        );
    }
}

#[test]
fn an_encapsulated_packet_that_is_not_in_order_is_dropped() {
    for f in fixtures() {
        let (remote, client) = (f.remote(1).ip(), f.of(&f.client, 2).ip());
        let good = Frame::new(remote, client).udp(1, 2, b"data");
        let check = |frame: &Frame, reason| {
            let outcome = f.from_network(&frame.bytes()).unwrap();
            assert_eq!(outcome, Outcome::Drop(reason));
        };
        check(&f.overlay_from(1, &good, 2), DropReason::OverlayBadHeader);
        check(&f.overlay_from(0, &good, 1), DropReason::OverlayUnknownPeer);
        let foreign = Frame::new(f.outside().ip(), client).udp(1, 2, b"data");
        check(&f.overlay(&foreign), DropReason::OverlayUnknownPeer);
        let elsewhere = Frame::new(remote, f.in_pod_cidr(0, 99)).udp(1, 2, b"data");
        check(&f.overlay(&elsewhere), DropReason::OverlayNotLocal);
        let unasked = Frame::new(remote, f.in_pod_cidr(0, 0)).udp(1, 2, b"data");
        check(&f.overlay(&unasked), DropReason::NoConnection);
    }
}

/// The ICMP error that this node answers `sent` with, from one of its own addresses.
fn time_exceeded(f: &Fixture, from: IpAddr, sent: &Frame) -> Frame {
    let quoted = &sent.ip_bytes()[..f.family.header_len() + 8];
    let kind = if f.family == Family::V4 { 11 } else { 3 };
    let mut answer = Frame::new(from, sent.src).icmp_error(kind, 0, [0; 4], quoted);
    answer.id = 0;
    answer.dont_fragment = false;
    answer
}

#[test]
fn a_packet_whose_ttl_ends_is_answered_by_the_node_where_it_does() {
    for f in fixtures() {
        let (src, dst) = (f.of(&f.client, 1), f.remote(2));
        let sent = f.sent_by(&f.client, src, dst).udp(1, 2, b"data").ttl(1);
        let answer =
            time_exceeded(&f, f.node(0), &sent).eth(f.client.host_mac(), f.client.pod_mac());
        let outcome = f.from_pod(&f.client, &sent.bytes()).unwrap();
        assert_eq!(outcome, Outcome::Redirect(answer.bytes()));
        // On its way from another node, the answer goes back there.
        let sent = Frame::new(f.remote(1).ip(), src.ip())
            .udp(1, 2, b"data")
            .ttl(1);
        let outcome = f.from_network(&f.overlay(&sent).bytes()).unwrap();
        let answer = time_exceeded(&f, f.in_pod_cidr(0, 0), &sent);
        f.check_encapsulated(&outcome, &answer.ttl(65)).unwrap();
    }
}

#[test]
fn too_long_a_packet_is_answered_with_the_mtu() {
    for f in fixtures() {
        let header = f.family.header_len();
        let frame = f.sent_by(&f.client, f.of(&f.client, 1), f.remote(2));
        let fits = frame.clone().udp(1, 2, &vec![7; OVERLAY_MTU - header - 8]);
        f.check_encapsulated(&f.from_pod(&f.client, &fits.bytes()).unwrap(), &fits)
            .unwrap();

        for long in [
            frame
                .clone()
                .udp(1, 2, &vec![7; OVERLAY_MTU + 1 - header - 8]),
            frame.clone().tcp(1, 2, tcp_flag::ACK, &[7; OVERLAY_MTU]),
        ] {
            let answer = too_big(&f, &long).eth(f.client.host_mac(), f.client.pod_mac());
            let outcome = f.from_pod(&f.client, &long.bytes()).unwrap();
            assert_eq!(outcome, Outcome::Redirect(answer.bytes()));
        }
    }
}

/// The ICMP error by which this node says how long a packet may be that goes to another one.
fn too_big(f: &Fixture, sent: &Frame) -> Frame {
    let quoted = &sent.ip_bytes()[..f.family.header_len() + 20];
    let mtu = (OVERLAY_MTU as u32).to_be_bytes();
    let (kind, code) = match f.family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    };
    let mut answer = Frame::new(f.node(0), sent.src).icmp_error(kind, code, mtu, quoted);
    answer.id = 0;
    answer.dont_fragment = false;
    answer
}

#[test]
fn too_long_a_packet_from_outside_for_another_nodes_backend_is_answered_with_the_mtu() {
    let client = [2, 0, 0, 0, 0, 9];
    for f in fixtures() {
        let uplink = f.uplink_mac();
        let header = f.family.header_len();
        f.serve(&[f.remote(BACKEND_PORT)]).unwrap();
        let frame = Frame::new(f.outside().ip(), f.node(0)).eth(client, uplink);
        let fits = vec![7; OVERLAY_MTU - header - 8];
        let outcome = f
            .from_network(&frame.clone().udp(CLIENT_PORT, NODE_PORT, &fits).bytes())
            .unwrap();
        let Outcome::Redirect(packet) = outcome else {
            panic!("the longest packet that fits: {outcome:?}")
        };
        assert_eq!(packet.len(), 14 + 50 + OVERLAY_MTU);
        for long in [
            frame
                .clone()
                .udp(CLIENT_PORT, NODE_PORT, &[&fits[..], &[7]].concat()),
            frame
                .clone()
                .tcp(CLIENT_PORT, NODE_PORT, tcp_flag::SYN, &fits),
            frame.tcp(CLIENT_PORT, NODE_PORT, tcp_flag::ACK, &fits),
        ] {
            let answer = too_big(&f, &long).eth(uplink, client);
            let outcome = f.from_network(&long.bytes()).unwrap();
            assert_eq!(outcome, Outcome::Redirect(answer.bytes()));
        }
    }
}

#[test]
fn segments_count_and_not_the_whole() {
    for f in fixtures() {
        let header = f.family.header_len() + 20;
        let frame = f.sent_by(&f.client, f.of(&f.client, 1), f.remote(2)).tcp(
            1,
            2,
            tcp_flag::ACK,
            &[7; 3000],
        );
        let bytes = frame.bytes();
        for (segment, fits) in [
            (OVERLAY_MTU - header, true),
            (OVERLAY_MTU - header + 1, false),
        ] {
            let run = TestRun {
                ifindex: f.client.ifindex(),
                gso_size: segment as u32,
                gso_segs: 3000_u32.div_ceil(segment as u32),
                ..TestRun::new(&bytes)
            };
            // A test run cannot say which kind of segments they are, so the kernel refuses the room for the header: the
            // packet was not found too long. Otherwise the answer is on its way.
            let outcome = f.run_as(Program::FromPod, &run).unwrap();
            let answered = matches!(outcome, Outcome::Redirect(_));
            assert_eq!(answered, !fits, "segments of {segment} bytes");
            assert!(answered || outcome == Outcome::Drop(DropReason::RewriteFailed));
        }
    }
}

#[test]
fn a_pod_leaves_the_cluster_with_the_nodes_address() {
    for f in fixtures() {
        let (client, outside) = (f.of(&f.client, CLIENT_PORT), f.outside());
        let request =
            f.sent_by(&f.client, client, outside)
                .udp(client.port(), outside.port(), b"question");
        let Outcome::Redirect(packet) = f.from_pod(&f.client, &request.bytes()).unwrap() else {
            panic!("not redirected")
        };
        let port = Parsed::from_frame(&packet).unwrap().src_port;
        assert!((20000..=23999).contains(&port), "port {port}");
        let source = SocketAddr::new(f.node(0), port);
        assert_eq!(packet, rewritten(&request, source, outside).ttl(63).bytes());
        let answer = f
            .arriving(outside.ip(), source.ip())
            .udp(outside.port(), port, b"answer");
        let outcome = f.from_network(&answer.bytes()).unwrap();
        assert_eq!(
            outcome,
            Fixture::delivered(&f.client, &rewritten(&answer, outside, client))
        );
    }
}

#[test]
fn what_is_not_ours_goes_to_the_stack_unchanged() {
    for f in fixtures() {
        let to_host = f
            .sent_by(
                &f.client,
                f.of(&f.client, 1),
                SocketAddr::new(f.node(0), 22),
            )
            .udp(1, 22, b"data")
            .bytes();
        assert_eq!(
            f.from_pod(&f.client, &to_host).unwrap(),
            Outcome::Pass(to_host)
        );
        let to_node = f
            .arriving(f.outside().ip(), f.node(0))
            .tcp(1, 22, tcp_flag::SYN, b"")
            .bytes();
        assert_eq!(f.from_network(&to_node).unwrap(), Outcome::Pass(to_node));
        let mut arp = vec![0xff; 12];
        arp.extend([0x08, 0x06]);
        arp.extend([0; 46]);
        assert_eq!(f.from_pod(&f.client, &arp).unwrap(), Outcome::Pass(arp));
    }
}
