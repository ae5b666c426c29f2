//! Proof that the outer checksums of the programs are right on this kernel, before another node depends on them: packets
//! whose checksums are known, and what must be true of the frames that the program makes of them. The sums are computed
//! over every byte here, so they have nothing in common with what the program does.

use ebpf_abi::{Config, Peer, overlay_header as at};

use crate::{Encapsulation, Overlay, VtepMac, outer::checksum_sum, overlay::peer_at};

const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Payload bytes: none, even and odd, and as much as fits into any underlay that IPv6 allows.
const PAYLOADS: [usize; 4] = [0, 8, 33, 1001];

impl Overlay {
    /// A peer that nobody has, at an address for documentation (RFC 5737, RFC 3849), and the configuration of a node that
    /// sends to it.
    #[must_use]
    pub fn proof_peer(&self) -> (Config, Peer) {
        let options = self.options();
        let own = self.underlay();
        let remote = if own.is_ipv4() {
            [192, 0, 2, 254].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0xffff, 0xfffe].into()
        };
        let mut peer = peer_at(remote, self.mtu());
        let vxlan = Encapsulation::Vxlan {
            vni: options.vni,
            own_mac: options.mac,
            peer_mac: VtepMac([0x02, 0xfe, 0xdc, 0xba, 0x98, 0x76]),
        };
        vxlan.fill(&mut peer, own, options.port, false);
        peer.checksum_sum = checksum_sum(&peer, own);
        let config = Config {
            uplink_ifindex: 1,
            flags: self.config_flags(),
            vni: options.vni,
            ..Config::default()
        };
        (config, peer)
    }
}

/// Frames of a pod, each with a valid checksum of its own: both families, every protocol whose outer checksum follows from
/// the headers.
#[must_use]
pub fn proof_frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for length in PAYLOADS {
        for protocol in [TCP, UDP, ICMP] {
            frames.push(frame(&[10, 0, 0, 1], &[10, 0, 0, 2], protocol, length));
        }
        let [from, to] = [1, 2].map(|last| {
            let mut address = [0xfd; 16];
            address[15] = last;
            address
        });
        for protocol in [TCP, UDP, ICMPV6] {
            frames.push(frame(&from, &to, protocol, length));
        }
    }
    frames
}

/// Whether the frame has the outer UDP checksum that its bytes ask for.
///
/// # Errors
///
/// Says what it has instead.
pub fn prove(frame: &[u8], peer: &Peer) -> Result<(), String> {
    let (header, addresses) = if usize::from(peer.header_len) == at::VXLAN_OVER_IPV4 {
        (at::IPV4_LEN, 12..at::IPV4_LEN)
    } else {
        (at::IPV6_LEN, 8..at::IPV6_LEN)
    };
    let ip = frame.get(ETHERNET..).unwrap_or_default();
    let Some(udp) = ip.get(header..).filter(|udp| udp.len() >= at::UDP_LEN) else {
        return Err(format!("a frame of {} bytes is too short", frame.len()));
    };
    let found = u16::from_be_bytes([udp[at::UDP_CHECKSUM], udp[at::UDP_CHECKSUM + 1]]);
    if found == 0 {
        return Err("there is none".to_owned());
    }
    let sum = pseudo_sum(&ip[addresses], UDP, udp.len()) + sum(udp);
    // Over the checksum as well, the sum of a right one is all ones.
    if fold(sum) == 0xffff {
        return Ok(());
    }
    let right = !fold(sum - u64::from(found));
    Err(format!(
        "it is {found:#06x}, the bytes ask for {right:#06x}"
    ))
}

/// A pod's frame. The two addresses tell the family.
fn frame(from: &[u8], to: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let transport = transport(&[from, to].concat(), protocol, length);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let size = |bytes: usize| u16::try_from(bytes).unwrap_or_default().to_be_bytes();
    if from.len() == 4 {
        let mut ip = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0];
        ip[2..4].copy_from_slice(&size(at::IPV4_LEN + transport.len()));
        ip.extend([from, to].concat());
        let check = !fold(sum(&ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(size(transport.len()));
        frame.extend([protocol, 64]);
        frame.extend([from, to].concat());
    }
    frame.extend(transport);
    frame
}

fn transport(addresses: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let (mut bytes, check_at) = match protocol {
        TCP => (
            vec![
                0x9c, 0x40, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 1, 1, 0, 0, 0, 0,
            ],
            16,
        ),
        UDP => (vec![0x9c, 0x40, 0, 80, 0, 0, 0, 0], 6),
        ICMP => (vec![8, 0, 0, 0, 0, 7, 0, 1], 2),
        _ => (vec![128, 0, 0, 0, 0, 7, 0, 1], 2),
    };
    // Bytes whose words differ, so that a sum over the wrong ones is another.
    bytes.extend((0..length).map(|number| (number * 37 + 11) as u8));
    if protocol == UDP {
        let length = u16::try_from(bytes.len()).unwrap_or_default();
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let pseudo = match protocol {
        ICMP => 0,
        _ => pseudo_sum(addresses, protocol, bytes.len()),
    };
    let check = !fold(pseudo + sum(&bytes));
    bytes[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// RFC 768, RFC 8200 section 8.1.
fn pseudo_sum(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses) + u64::from(protocol) + length as u64
}

/// Words in network order; an odd byte counts as if a zero followed (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).map(|pair| u64::from(word(pair))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}
