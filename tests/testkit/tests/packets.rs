//! What the builders build, the parsers read, and the kernel's rules for checksums hold.

use std::net::IpAddr;

use tests_testkit::packet::{Frame, Parsed, protocol, tcp_flag, vxlan};

const FAMILIES: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];

fn addresses() -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let ip = |text: &str| text.parse().expect("an address that is written here");
    FAMILIES
        .into_iter()
        .map(move |(src, dst)| (ip(src), ip(dst)))
}

#[test]
fn what_is_built_is_read_back() {
    for (src, dst) in addresses() {
        let tcp = Frame::new(src, dst).ttl(7).tcp(1, 2, tcp_flag::SYN, b"odd");
        let parsed = Parsed::from_frame(&tcp.bytes()).unwrap();
        parsed.assert_checksums();
        assert_eq!((parsed.src, parsed.dst, parsed.ttl), (src, dst, 7));
        assert_eq!(
            (parsed.src_port, parsed.dst_port, parsed.tcp_flags),
            (1, 2, tcp_flag::SYN)
        );
        assert_eq!(parsed.payload, b"odd");

        let echo = Frame::new(src, dst).echo(true, 9, 1, b"ping");
        let parsed = Parsed::from_frame(&echo.bytes()).unwrap();
        parsed.assert_checksums();
        assert_eq!(parsed.icmp_rest, [0, 9, 0, 1]);
    }
}

#[test]
fn options_and_extension_headers_are_passed_over() {
    for (src, dst) in addresses() {
        let frame = Frame::new(src, dst)
            .options(&[1; 8])
            .extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]);
        let parsed = Parsed::from_frame(&frame.udp(53, 54, b"x").bytes()).unwrap();
        parsed.assert_checksums();
        assert_eq!((parsed.protocol, parsed.dst_port), (protocol::UDP, 54));
    }
}

#[test]
fn fragments_hold_the_packet_in_order() {
    for (src, dst) in addresses() {
        let data: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        let fragments: Vec<Parsed> = Frame::new(src, dst)
            .udp(1, 2, &data)
            .fragments(1024)
            .iter()
            .map(|bytes| Parsed::from_frame(bytes).unwrap())
            .collect();
        assert_eq!(fragments.len(), 3);
        let offsets: Vec<_> = fragments
            .iter()
            .map(|part| (part.fragment_offset, part.more_fragments))
            .collect();
        assert_eq!(offsets, [(0, true), (1024, true), (2048, false)]);
        let joined: Vec<u8> = fragments
            .iter()
            .flat_map(|part| part.payload.clone())
            .collect();
        assert_eq!(joined, data);
    }
}

#[test]
fn a_frame_in_vxlan_is_read_back() {
    let (outer_src, outer_dst) = addresses().next().unwrap();
    for (src, dst) in addresses() {
        let inner = Frame::new(src, dst).udp(5, 6, b"inside");
        let packet = vxlan(
            Frame::new(outer_src, outer_dst),
            50000,
            8472,
            1,
            &inner.bytes(),
        );
        let parsed = Parsed::from_frame(&packet.bytes()).unwrap();
        parsed.assert_checksums();
        let tunnel = parsed.vxlan().unwrap();
        assert_eq!((parsed.dst_port, tunnel.flags, tunnel.vni), (8472, 8, 1));
        assert_eq!(tunnel.inner.payload, b"inside");
        tunnel.inner.assert_checksums();
    }
}

#[test]
#[should_panic(expected = "checksum")]
fn a_wrong_checksum_is_found() {
    let (src, dst) = addresses().next().unwrap();
    let mut bytes = Frame::new(src, dst).udp(1, 2, b"data").bytes();
    *bytes.last_mut().unwrap() ^= 1;
    Parsed::from_frame(&bytes).unwrap().assert_checksums();
}
