//! ICMP errors inside a translated flow, IP fragments, malformed packets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use ebpf_abi::DropReason;
use tests_netns::{BACKEND_PORT, CLIENT_PORT, Family, Fixture, Outcome, rewritten};
use tests_testkit::{
    is_root,
    packet::{Frame, tcp_flag},
    skip,
};

fn fixtures() -> Vec<Fixture> {
    if !is_root() {
        skip("needs root");
        return Vec::new();
    }
    Fixture::both().unwrap().into()
}

/// The IP packet in an outcome that is a redirected packet.
fn redirected_ip(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Redirect(packet) => packet[14..].to_vec(),
        other => panic!("not redirected but {other:?}"),
    }
}

#[test]
fn an_error_about_a_request_names_the_cluster_ip() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let frame = f.sent_by(&f.client, client, f.vip());
        for request in [
            frame
                .clone()
                .tcp(client.port(), 80, tcp_flag::SYN, b"question"),
            frame.clone().udp(client.port(), 80, b"question"),
        ] {
            let seen = redirected_ip(f.from_pod(&f.client, &request.bytes()).unwrap());
            // Whole, and cut to eight bytes behind the IP header (RFC 792).
            for len in [seen.len(), f.family.header_len() + 8] {
                let error = |quoted: &[u8]| {
                    f.sent_by(&f.local, backend, client).icmp_error(
                        f.family.unreachable(),
                        1,
                        [0; 4],
                        quoted,
                    )
                };
                let outcome = f.from_pod(&f.local, &error(&seen[..len]).bytes()).unwrap();
                let original = request.clone().ttl(63).ip_bytes();
                let mut expected = error(&original[..len]);
                expected.src = f.vip().ip();
                assert_eq!(
                    outcome,
                    Fixture::delivered(&f.client, &expected),
                    "{len} bytes quoted"
                );
            }
        }
    }
}

#[test]
fn an_error_from_another_node_reaches_the_client() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.remote(BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let request = f
            .sent_by(&f.client, client, f.vip())
            .udp(client.port(), 80, b"question");
        f.from_pod(&f.client, &request.bytes()).unwrap();
        let error = |quoted: &Frame, src| {
            Frame::new(src, client.ip()).icmp_error(
                f.family.unreachable(),
                3,
                [0; 4],
                &quoted.ip_bytes(),
            )
        };
        let got = error(&rewritten(&request, client, backend), backend.ip());
        let outcome = f.from_network(&f.overlay(&got).bytes()).unwrap();
        assert_eq!(
            outcome,
            Fixture::delivered(&f.client, &error(&request, f.vip().ip()))
        );
    }
}

#[test]
fn an_error_about_a_masqueraded_packet_finds_its_pod() {
    for f in fixtures() {
        let (client, outside) = (f.of(&f.client, CLIENT_PORT), f.outside());
        let request = f
            .sent_by(&f.client, client, outside)
            .echo(true, 77, 1, b"echo");
        let seen = redirected_ip(f.from_pod(&f.client, &request.bytes()).unwrap());
        let error = |dst, quoted: &[u8]| {
            f.arriving(outside.ip(), dst)
                .icmp_error(f.family.unreachable(), 1, [0; 4], quoted)
        };
        let outcome = f.from_network(&error(f.node(0), &seen).bytes()).unwrap();
        let expected = error(client.ip(), &request.ttl(63).ip_bytes());
        assert_eq!(outcome, Fixture::delivered(&f.client, &expected));
    }
}

#[test]
fn fragments_of_a_translated_datagram_stay_together() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let mut request = f
            .sent_by(&f.client, client, f.vip())
            .udp(client.port(), 80, &[7; 600]);
        request.dont_fragment = false;
        let expected = rewritten(&request, client, backend)
            .ttl(63)
            .eth(f.local.host_mac(), f.local.pod_mac());
        let sent = request.fragments(256);
        assert_eq!(sent.len(), 3);
        for (sent, expected) in sent.iter().zip(expected.fragments(256)) {
            assert_eq!(
                f.from_pod(&f.client, sent).unwrap(),
                Outcome::Redirect(expected)
            );
        }
        // A later fragment whose first was never seen.
        request.id = 0x4321;
        let late = &request.fragments(256)[1];
        assert_eq!(
            f.from_pod(&f.client, late).unwrap(),
            Outcome::Drop(DropReason::FragmentUnknown)
        );
    }
}

#[test]
fn plain_fragments_pass_in_any_order() {
    for f in fixtures() {
        let (src, dst) = (f.of(&f.client, 1), f.of(&f.local, 2));
        let mut frame = f.sent_by(&f.client, src, dst).udp(1, 2, &[7; 600]);
        frame.dont_fragment = false;
        let expected = frame
            .clone()
            .ttl(63)
            .eth(f.local.host_mac(), f.local.pod_mac());
        for (sent, expected) in frame
            .fragments(256)
            .iter()
            .zip(expected.fragments(256))
            .rev()
        {
            assert_eq!(
                f.from_pod(&f.client, sent).unwrap(),
                Outcome::Redirect(expected)
            );
        }
    }
}

#[test]
fn every_length_short_by_some_bytes_is_malformed() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let frame = f.sent_by(&f.client, client, f.vip());
        let quoted = Frame::new(f.vip().ip(), client.ip())
            .udp(80, client.port(), b"")
            .ip_bytes();
        let with_options = match f.family {
            Family::V4 => frame.clone().options(&[1; 8]),
            Family::V6 => frame.clone().extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
        };
        for frame in [
            frame
                .clone()
                .tcp(client.port(), 80, tcp_flag::SYN, b"question"),
            frame.clone().udp(client.port(), 80, b"question"),
            frame.clone().echo(true, 1, 1, b"echo"),
            frame.icmp_error(f.family.unreachable(), 1, [0; 4], &quoted),
            with_options.udp(client.port(), 80, b"question"),
        ] {
            let whole = frame.bytes();
            // The kernel itself refuses to run a program on less than an IP header.
            for len in 14 + f.family.header_len()..whole.len() {
                let outcome = f.from_pod(&f.client, &whole[..len]).unwrap();
                assert_eq!(
                    outcome,
                    Outcome::Drop(DropReason::Malformed),
                    "{len} of {} bytes",
                    whole.len()
                );
            }
        }
        let inner = Frame::new(f.remote(1).ip(), client.ip()).udp(1, 2, b"data");
        let whole = f.overlay(&inner).bytes();
        for len in 34..whole.len() {
            let outcome = f.from_network(&whole[..len]).unwrap();
            assert!(
                matches!(outcome, Outcome::Drop(_)),
                "{len} of {} bytes: {outcome:?}",
                whole.len()
            );
        }
    }
}

#[test]
fn options_and_extension_headers_are_walked() {
    for f in fixtures() {
        let (client, backend) = (f.of(&f.client, CLIENT_PORT), f.of(&f.local, BACKEND_PORT));
        f.serve(&[backend]).unwrap();
        let frame = f
            .sent_by(&f.client, client, f.vip())
            .udp(client.port(), 80, b"question");
        let frame = match f.family {
            Family::V4 => frame.options(&[1; 8]),
            Family::V6 => frame
                .extension(0, &[0, 0, 1, 4, 0, 0, 0, 0])
                .extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
        };
        let outcome = f.from_pod(&f.client, &frame.bytes()).unwrap();
        assert_eq!(
            outcome,
            Fixture::delivered(&f.local, &rewritten(&frame, client, backend))
        );
    }
}
