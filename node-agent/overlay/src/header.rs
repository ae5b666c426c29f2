//! The bytes in front of an inner packet on its way to a peer, as far as they are the same for every packet.

use std::net::IpAddr;

use ebpf_abi::{Family, Peer, overlay_header as at, peer_mode};

use crate::VtepMac;

/// What stands between the outer IP header and the inner packet.
#[derive(Clone, Copy, Debug)]
pub enum Encapsulation {
    /// UDP, VXLAN (RFC 7348 section 5) and inner Ethernet.
    Vxlan {
        vni: u32,
        own_mac: VtepMac,
        peer_mac: VtepMac,
    },
    /// UDP alone, as flannel's `udp` backend does.
    Udp,
}

impl Encapsulation {
    /// Fills in the header of a peer whose underlay address is there. ECN, lengths, checksums, the UDP source port and the
    /// inner EtherType stay zero: they belong to the packet. `port`: UDP destination port. `on_link`: the peer is on
    /// the uplink's own link.
    ///
    /// Like flannel's devices: TTL 64, DF not set.
    ///
    /// # Panics
    ///
    /// When `own` is of another family than the peer's underlay address.
    pub fn fill(self, peer: &mut Peer, own: IpAddr, port: u16, on_link: bool) {
        let header = &mut peer.header;
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let (family, ip_len) = match own {
            IpAddr::V4(own) => {
                put(0, &[0x45]);
                put(8, &[64, 17]);
                put(12, &own.octets());
                put(16, &peer.underlay_addr[..4]);
                (Family::V4, at::IPV4_LEN)
            }
            IpAddr::V6(own) => {
                put(0, &[0x60]);
                put(6, &[17, 64]);
                put(8, &own.octets());
                put(24, &peer.underlay_addr);
                (Family::V6, at::IPV6_LEN)
            }
        };
        assert_eq!(
            family as u8, peer.underlay_family,
            "one family at both ends"
        );
        put(ip_len + 2, &port.to_be_bytes());
        let vxlan = ip_len + at::UDP_LEN;
        if let Self::Vxlan {
            vni,
            own_mac,
            peer_mac,
        } = self
        {
            // Flags: the VNI is valid.
            put(vxlan, &[0x08]);
            put(vxlan + 4, &(vni << 8).to_be_bytes());
            put(vxlan + 8, &peer_mac.0);
            put(vxlan + 14, &own_mac.0);
        }
        let (mode, on_link_mode, len) = match self {
            Self::Vxlan { .. } => (
                peer_mode::VXLAN,
                peer_mode::VXLAN_ON_LINK,
                vxlan + at::VXLAN_LEN,
            ),
            Self::Udp => (peer_mode::UDP, peer_mode::UDP_ON_LINK, vxlan),
        };
        peer.mode = if on_link { on_link_mode } else { mode };
        peer.header_len = len as u16;
        peer.header_sum = match family {
            Family::V4 => sum(&peer.header[..at::IPV4_LEN]),
            Family::V6 => 0,
        };
    }
}

/// Sum of 16-bit words, each read in network byte order, folded once, not complemented.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::peer_at;

    const VXLAN: Encapsulation = Encapsulation::Vxlan {
        vni: 0x0a0b0c,
        own_mac: VtepMac([2, 0, 0, 0, 0, 1]),
        peer_mac: VtepMac([2, 0, 0, 0, 0, 2]),
    };
    const BEHIND_UDP: [u8; 22] = [
        8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0, // VXLAN
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0, // Ethernet
    ];

    fn filled(encapsulation: Encapsulation, own: &str, remote: &str, port: u16) -> Peer {
        let mut peer = peer_at(remote.parse().unwrap(), 1400);
        encapsulation.fill(&mut peer, own.parse().unwrap(), port, false);
        assert_eq!(
            peer.header[peer.header_len.into()..],
            [0; 72][peer.header_len.into()..]
        );
        peer
    }

    #[test]
    fn over_ipv4_the_header_is_the_one_that_flannel_lays_on_the_wire() {
        let outer = [
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, // IPv4
        ];
        let vxlan = filled(VXLAN, "192.0.2.1", "192.0.2.2", 8472);
        let expected = [&outer[..], &[0, 0, 0x21, 0x18, 0, 0, 0, 0], &BEHIND_UDP].concat();
        assert_eq!(vxlan.header[..vxlan.header_len.into()], expected);
        let udp = filled(Encapsulation::Udp, "192.0.2.1", "192.0.2.2", 8285);
        let expected = [&outer[..], &[0, 0, 0x20, 0x5d, 0, 0, 0, 0]].concat();
        assert_eq!(udp.header[..udp.header_len.into()], expected);
        assert_eq!((vxlan.mode, udp.mode), (peer_mode::VXLAN, peer_mode::UDP));
        // With the total length put in, the complement of the sum is a checksum that verifies.
        let mut ip = vxlan.header;
        ip[2..4].copy_from_slice(&150_u16.to_be_bytes());
        let total = vxlan.header_sum + 150;
        let checksum = !u16::try_from((total & 0xffff) + (total >> 16)).unwrap();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(sum(&ip[..20]), 0xffff);
    }

    #[test]
    fn over_ipv6_the_header_is_the_one_that_flannel_lays_on_the_wire() {
        let mut outer = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        outer.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        outer.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let vxlan = filled(VXLAN, "2001:db8::1", "2001:db8::2", 8472);
        let expected = [&outer[..], &[0, 0, 0x21, 0x18, 0, 0, 0, 0], &BEHIND_UDP].concat();
        assert_eq!(vxlan.header[..vxlan.header_len.into()], expected);
        let udp = filled(Encapsulation::Udp, "2001:db8::1", "2001:db8::2", 8285);
        let expected = [&outer[..], &[0, 0, 0x20, 0x5d, 0, 0, 0, 0]].concat();
        assert_eq!(udp.header[..udp.header_len.into()], expected);
        assert_eq!((vxlan.header_sum, udp.header_sum), (0, 0));
    }
}
