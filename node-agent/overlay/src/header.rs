//! The bytes in front of an inner packet on its way to a peer, as far as they are the same for every packet.

use std::net::Ipv4Addr;

use ebpf_abi::overlay_header;

use crate::VtepMac;

/// One end of the overlay.
#[derive(Clone, Copy, Debug)]
pub struct Vtep {
    pub underlay: Ipv4Addr,
    pub mac: VtepMac,
}

/// IPv4 (RFC 791), UDP (RFC 768), VXLAN (RFC 7348 section 5) and inner Ethernet, 50 bytes. Lengths, checksums, the UDP
/// source port and the inner EtherType are zero: they belong to the packet. Also gives the sum of the IPv4 header's
/// 16-bit words, each read in network byte order, folded once, not complemented.
///
/// Like flannel's device: TTL 64, DF not set.
pub fn vxlan_header(own: Vtep, peer: Vtep, port: u16, vni: u32) -> ([u8; 72], u32) {
    let mut header = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x45]);
    put(8, &[64, 17]);
    put(12, &own.underlay.octets());
    put(16, &peer.underlay.octets());
    put(overlay_header::IPV4_LEN + 2, &port.to_be_bytes());
    // Flags: the VNI is valid.
    put(28, &[0x08]);
    put(32, &(vni << 8).to_be_bytes());
    put(36, &peer.mac.0);
    put(42, &own.mac.0);
    let words = header[..20]
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    sum = (sum & 0xffff) + (sum >> 16);
    (header, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_that_flannel_lays_on_the_wire() {
        let own = Vtep {
            underlay: Ipv4Addr::new(192, 0, 2, 1),
            mac: VtepMac([2, 0, 0, 0, 0, 1]),
        };
        let peer = Vtep {
            underlay: Ipv4Addr::new(192, 0, 2, 2),
            mac: VtepMac([2, 0, 0, 0, 0, 2]),
        };
        let (header, sum) = vxlan_header(own, peer, 8472, 0x0a0b0c);
        let expected: [u8; 50] = [
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, // IPv4
            0, 0, 0x21, 0x18, 0, 0, 0, 0, // UDP
            8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0, // VXLAN
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0, // Ethernet
        ];
        assert_eq!(header[..50], expected);
        assert_eq!(header[50..], [0; 22]);
        // With the total length put in, the complement of the sum is a checksum that verifies.
        let mut ip = header;
        ip[2..4].copy_from_slice(&150_u16.to_be_bytes());
        let mut total = sum + 150;
        total = (total & 0xffff) + (total >> 16);
        let checksum = !u16::try_from((total & 0xffff) + (total >> 16)).unwrap();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let verify: u64 = ip[..20]
            .chunks_exact(2)
            .map(|w| u64::from(u16::from_be_bytes([w[0], w[1]])))
            .sum();
        assert_eq!((verify & 0xffff) + (verify >> 16), 0xffff);
    }
}
