//! Services by the packet path: ClusterIP, NodePort, hairpin, answers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use tests_netns::{BACKEND_PORT, CLIENT_PORT, Family, Fixture, NODE_PORT, Outcome, rewritten};
use tests_testkit::{
    is_root,
    packet::{Frame, tcp_flag},
    skip,
};

/// The fixture in both families, or none where it cannot run.
fn fixtures() -> Vec<Fixture> {
    if !is_root() {
        skip("needs root");
        return Vec::new();
    }
    Fixture::both().unwrap().into()
}

/// A TCP and a UDP packet of one connection.
fn packets(frame: &Frame, src: SocketAddr, dst: SocketAddr, tcp_flags: u8) -> [Frame; 2] {
    [
        frame
            .clone()
            .tcp(src.port(), dst.port(), tcp_flags, b"question"),
        frame.clone().udp(src.port(), dst.port(), b"question"),
    ]
}

#[test]
fn a_cluster_ip_leads_to_a_local_backend_and_back() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let requests = packets(
            &f.sent_by(&f.client, client, f.vip()),
            client,
            f.vip(),
            tcp_flag::SYN,
        );
        let answers = packets(
            &f.sent_by(&f.local, backend, client),
            backend,
            client,
            tcp_flag::SYN | tcp_flag::ACK,
        );
        for (request, answer) in requests.iter().zip(&answers) {
            // The first packet of a connection and one of an established one.
            for _ in 0..2 {
                let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
                assert_eq!(
                    outcome,
                    Fixture::delivered(&f.local, &rewritten(request, client, backend))
                );
                let outcome = f.from_pod(&f.local, &answer.bytes()).unwrap();
                assert_eq!(
                    outcome,
                    Fixture::delivered(&f.client, &rewritten(answer, f.vip(), client))
                );
            }
        }
    }
}

#[test]
fn a_missing_udp_checksum_stays_missing() {
    for f in fixtures().into_iter().filter(|f| f.family == Family::V4) {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let request = f.sent_by(&f.client, client, f.vip()).udp_without_checksum(
            client.port(),
            80,
            b"question",
        );
        let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
        assert_eq!(
            outcome,
            Fixture::delivered(&f.local, &rewritten(&request, client, backend))
        );
    }
}

#[test]
fn a_cluster_ip_leads_to_a_remote_backend_and_back() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.remote(BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        for request in packets(
            &f.sent_by(&f.client, client, f.vip()),
            client,
            f.vip(),
            tcp_flag::SYN,
        ) {
            for _ in 0..2 {
                let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
                f.check_encapsulated(&outcome, &rewritten(&request, client, backend))
                    .unwrap();
            }
        }
        let answer = Frame::new(backend.ip(), client.ip());
        for answer in packets(&answer, backend, client, tcp_flag::SYN | tcp_flag::ACK) {
            let outcome = f.from_network(&f.overlay(&answer).bytes()).unwrap();
            assert_eq!(
                outcome,
                Fixture::delivered(&f.client, &rewritten(&answer, f.vip(), client))
            );
        }
    }
}

#[test]
fn the_host_reaches_a_cluster_ip_and_gets_the_answer() {
    for f in fixtures() {
        let client = SocketAddr::new(f.in_pod_cidr(0, 1), CLIENT_PORT);
        let backend = f.of(&f.local, BACKEND_PORT);
        f.serve(&[backend]).unwrap();
        for request in packets(
            &Frame::new(client.ip(), f.vip().ip()),
            client,
            f.vip(),
            tcp_flag::SYN,
        ) {
            let outcome = f.from_host(&request.bytes()).unwrap();
            // No hop: the host sent it itself.
            let expected =
                rewritten(&request, client, backend).eth(f.local.host_mac(), f.local.pod_mac());
            assert_eq!(outcome, Outcome::Redirect(expected.bytes()));
        }
        let answer = f.sent_by(&f.local, backend, client);
        for answer in packets(&answer, backend, client, tcp_flag::SYN | tcp_flag::ACK) {
            let Outcome::Redirect(packet) = f.from_pod(&f.local, &answer.bytes()).unwrap() else {
                panic!("the answer was not redirected")
            };
            assert_eq!(packet[14..], rewritten(&answer, f.vip(), client).ip_bytes());
        }
    }
}

#[test]
fn a_node_port_leads_to_a_local_backend_and_back() {
    for f in fixtures() {
        let (client, front) = (f.outside(), SocketAddr::new(f.node(0), NODE_PORT));
        let backend = f.of(&f.local, BACKEND_PORT);
        f.serve(&[backend]).unwrap();
        for request in packets(
            &f.arriving(client.ip(), front.ip()),
            client,
            front,
            tcp_flag::SYN,
        ) {
            let outcome = f.from_network(&request.bytes()).unwrap();
            assert_eq!(
                outcome,
                Fixture::delivered(&f.local, &rewritten(&request, client, backend))
            );
        }
        let answer = f.sent_by(&f.local, backend, client);
        for answer in packets(&answer, backend, client, tcp_flag::SYN | tcp_flag::ACK) {
            let expected = rewritten(&answer, front, client).ttl(63);
            assert_eq!(
                f.from_pod(&f.local, &answer.bytes()).unwrap(),
                Outcome::Redirect(expected.bytes())
            );
        }
    }
}

#[test]
fn a_node_port_leads_to_a_remote_backend_and_back_through_this_node() {
    for f in fixtures() {
        let (client, front) = (f.outside(), SocketAddr::new(f.node(0), NODE_PORT));
        let backend = f.remote(BACKEND_PORT);
        let source = SocketAddr::new(f.in_pod_cidr(0, 0), CLIENT_PORT);
        f.serve(&[backend]).unwrap();
        for request in packets(
            &f.arriving(client.ip(), front.ip()),
            client,
            front,
            tcp_flag::SYN,
        ) {
            let outcome = f.from_network(&request.bytes()).unwrap();
            f.check_encapsulated(&outcome, &rewritten(&request, source, backend))
                .unwrap();
        }
        let answer = Frame::new(backend.ip(), source.ip());
        for answer in packets(&answer, backend, source, tcp_flag::SYN | tcp_flag::ACK) {
            let Outcome::Redirect(packet) = f.from_network(&f.overlay(&answer).bytes()).unwrap()
            else {
                panic!("the answer was not redirected")
            };
            assert_eq!(
                packet[14..],
                rewritten(&answer, front, client).ttl(63).ip_bytes()
            );
        }
    }
}

#[test]
fn a_pod_that_is_its_own_backend_gets_its_packets_back() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.client, BACKEND_PORT));
        let source = SocketAddr::new(f.in_pod_cidr(0, 0), CLIENT_PORT);
        f.serve(&[backend]).unwrap();
        let requests = packets(
            &f.sent_by(&f.client, client, f.vip()),
            client,
            f.vip(),
            tcp_flag::SYN,
        );
        let answers = packets(
            &f.sent_by(&f.client, backend, source),
            backend,
            source,
            tcp_flag::SYN | tcp_flag::ACK,
        );
        for (request, answer) in requests.iter().zip(&answers) {
            let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
            assert_eq!(
                outcome,
                Fixture::delivered(&f.client, &rewritten(request, source, backend))
            );
            let outcome = f.from_pod(&f.client, &answer.bytes()).unwrap();
            assert_eq!(
                outcome,
                Fixture::delivered(&f.client, &rewritten(answer, f.vip(), client))
            );
        }
    }
}

#[test]
fn backends_take_turns_strictly() {
    for f in fixtures() {
        let backends: Vec<SocketAddr> = [8081, 8082, 8083].map(|port| f.of(&f.local, port)).into();
        f.serve(&backends).unwrap();
        for turn in 0..9 {
            let client = f.of(&f.client, 1000 + turn as u16);
            let request =
                f.sent_by(&f.client, client, f.vip())
                    .tcp(client.port(), 80, tcp_flag::SYN, b"");
            let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
            let expected = rewritten(&request, client, backends[turn % 3]);
            assert_eq!(
                outcome,
                Fixture::delivered(&f.local, &expected),
                "turn {turn}"
            );
        }
    }
}

#[test]
fn a_direct_connection_is_not_taken_for_the_services() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        for via_service in packets(
            &f.sent_by(&f.client, client, f.vip()),
            client,
            f.vip(),
            tcp_flag::SYN,
        ) {
            f.from_pod(&f.client, &via_service.bytes()).unwrap();
        }
        let direct = packets(
            &f.sent_by(&f.client, client, backend),
            client,
            backend,
            tcp_flag::SYN,
        );
        let answers = packets(
            &f.sent_by(&f.local, backend, client),
            backend,
            client,
            tcp_flag::SYN | tcp_flag::ACK,
        );
        for (direct, answer) in direct.iter().zip(&answers) {
            let outcome = f.from_pod(&f.client, &direct.bytes()).unwrap();
            assert_eq!(outcome, Fixture::delivered(&f.local, direct));
            let outcome = f.from_pod(&f.local, &answer.bytes()).unwrap();
            assert_eq!(outcome, Fixture::delivered(&f.client, answer));
        }
    }
}

/// An SCTP packet between two ports with one chunk of data, its checksum computed whole (RFC 9260 appendix A).
fn sctp(frame: &Frame, src: SocketAddr, dst: SocketAddr) -> Frame {
    let mut bytes = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    bytes.extend([0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]);
    bytes.extend([0, 3, 0, 21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"hello\0\0\0");
    let check = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    frame.clone().raw(132, &bytes)
}

#[test]
fn an_sctp_association_is_translated_both_ways_with_a_right_checksum() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let request = sctp(&f.sent_by(&f.client, client, f.vip()), client, f.vip());
        let expected = sctp(&f.sent_by(&f.client, client, backend), client, backend);
        for _ in 0..2 {
            let outcome = f.from_pod(&f.client, &request.bytes()).unwrap();
            assert_eq!(outcome, Fixture::delivered(&f.local, &expected));
        }
        let answer = sctp(&f.sent_by(&f.local, backend, client), backend, client);
        let expected = sctp(&f.sent_by(&f.local, f.vip(), client), f.vip(), client);
        let outcome = f.from_pod(&f.local, &answer.bytes()).unwrap();
        assert_eq!(outcome, Fixture::delivered(&f.client, &expected));
    }
}
