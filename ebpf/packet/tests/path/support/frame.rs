//! Frames built from fields, and checksums computed in full (RFC 1071) to compare with.

use ebpf_abi::{Address, Family};
use ebpf_packet::Ip;

use super::Wire;

/// TCP flags.
pub struct Tcp;

impl Tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// A frame to be built.
#[derive(Clone, Debug)]
pub struct Frame<A> {
    pub src: A,
    pub dst: A,
    pub protocol: u8,
    pub ttl: u8,
    /// ECN field (RFC 3168 section 5).
    pub ecn: u8,
    /// The transport header and what follows; its checksum is filled in when built.
    pub transport: Vec<u8>,
    /// IPv4 options or IPv6 extension headers; the first byte of the latter is filled in.
    pub options: Vec<u8>,
}

impl<A: Ip> Frame<A> {
    pub fn tcp(src: (A, u16), dst: (A, u16), flags: u8) -> Self {
        let mut transport = ports(src.1, dst.1);
        transport.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        transport.extend(b"hello, backend!");
        Self::new(src.0, dst.0, 6, transport)
    }

    pub fn udp(src: (A, u16), dst: (A, u16)) -> Self {
        Self::udp_with(src, dst, b"a datagram")
    }

    pub fn udp_with(src: (A, u16), dst: (A, u16), payload: &[u8]) -> Self {
        let mut transport = ports(src.1, dst.1);
        transport.extend((payload.len() as u16 + 8).to_be_bytes());
        transport.extend([0, 0]);
        transport.extend(payload);
        Self::new(src.0, dst.0, 17, transport)
    }

    /// An SCTP packet with one chunk of data.
    pub fn sctp(src: (A, u16), dst: (A, u16)) -> Self {
        let mut transport = ports(src.1, dst.1);
        transport.extend([0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]);
        transport.extend([0, 3, 0, 21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        transport.extend(b"hello\0\0\0");
        Self::new(src.0, dst.0, 132, transport)
    }

    pub fn echo(src: A, dst: A, request: bool, id: u16) -> Self {
        let mut transport = vec![
            if request {
                A::ECHO_REQUEST
            } else {
                A::ECHO_REPLY
            },
            0,
            0,
            0,
        ];
        transport.extend(id.to_be_bytes());
        transport.extend([0, 7]);
        transport.extend(b"echo");
        Self::new(src, dst, A::ICMP, transport)
    }

    /// An ICMP error that quotes an IP packet.
    pub fn error(src: A, dst: A, kind: u8, code: u8, quoted: &[u8]) -> Self {
        let mut transport = vec![kind, code, 0, 0, 0, 0, 0, 0];
        transport.extend(quoted);
        Self::new(src, dst, A::ICMP, transport)
    }

    pub fn new(src: A, dst: A, protocol: u8, transport: Vec<u8>) -> Self {
        Self {
            src,
            dst,
            protocol,
            ttl: 64,
            ecn: 0,
            transport,
            options: Vec::new(),
        }
    }

    pub fn wire(&self) -> Wire {
        Wire::new(self.bytes())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport.clone();
        if let Some(at) = checksum_at::<A>(self.protocol) {
            transport[at..at + 2].fill(0);
            let mut check = transport_checksum(&self.src, &self.dst, self.protocol, &transport);
            if self.protocol == 17 && check == 0 {
                check = 0xffff;
            }
            transport[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        if self.protocol == 132 {
            transport[8..12].fill(0);
            let check = crc32c(&transport);
            transport[8..12].copy_from_slice(&check.to_le_bytes());
        }
        let mut frame = vec![0x02, 0, 0, 0, 0, 0xbb, 0x02, 0, 0, 0, 0, 0xaa];
        frame.extend(self.header(transport.len()));
        frame.extend(transport);
        frame
    }

    /// EtherType and IP header.
    fn header(&self, payload: usize) -> Vec<u8> {
        let mut header = Vec::new();
        match A::FAMILY {
            Family::V4 => {
                let len = 20 + self.options.len();
                header.extend([0x45 + (self.options.len() / 4) as u8, self.ecn]);
                header.extend(((len + payload) as u16).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                header.extend(self.src.as_bytes());
                header.extend(self.dst.as_bytes());
                header.extend(&self.options);
                let check = internet_checksum(&header);
                header[10..12].copy_from_slice(&check.to_be_bytes());
                header.splice(0..0, [0x08, 0x00]);
            }
            Family::V6 => {
                header.extend([0x86, 0xdd, 0x60, self.ecn << 4, 0, 0]);
                header.extend(((self.options.len() + payload) as u16).to_be_bytes());
                let next = if self.options.is_empty() {
                    self.protocol
                } else {
                    60
                };
                header.extend([next, self.ttl]);
                header.extend(self.src.as_bytes());
                header.extend(self.dst.as_bytes());
                let mut options = self.options.clone();
                if let Some(first) = options.first_mut() {
                    *first = self.protocol;
                }
                header.extend(options);
            }
        }
        header
    }

    /// The frame without its Ethernet header.
    pub fn ip_bytes(&self) -> Vec<u8> {
        self.bytes().split_off(14)
    }

    /// This frame as it must leave after one hop with other addresses and ports.
    pub fn rewritten(&self, src: (A, u16), dst: (A, u16)) -> Self {
        let mut frame = Self {
            src: src.0,
            dst: dst.0,
            ..self.clone()
        };
        frame.transport[..4].copy_from_slice(&ports(src.1, dst.1));
        frame
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn ecn(mut self, ecn: u8) -> Self {
        self.ecn = ecn;
        self
    }
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

fn checksum_at<A: Ip>(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        icmp if icmp == A::ICMP => Some(2),
        _ => None,
    }
}

/// RFC 1071, over bytes as they are.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn transport_checksum<A: Ip>(src: &A, dst: &A, protocol: u8, transport: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    if A::FAMILY == Family::V6 || protocol != A::ICMP {
        bytes.extend(src.as_bytes());
        bytes.extend(dst.as_bytes());
        bytes.extend((transport.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, protocol]);
    }
    bytes.extend(transport);
    internet_checksum(&bytes)
}

/// Asserts that the IP header's and the transport's checksum of a frame without options are right.
#[track_caller]
pub fn assert_checksums<A: Ip>(frame: &[u8]) {
    let ip = &frame[14..];
    let protocol = if A::FAMILY == Family::V4 {
        ip[9]
    } else {
        ip[6]
    };
    if A::FAMILY == Family::V4 {
        assert_eq!(internet_checksum(&ip[..20]), 0, "IPv4 header checksum");
    }
    let src = <A as Address>::from_bytes(&ip[A::SRC_AT..A::SRC_AT + A::LEN]).expect("its length");
    let dst = <A as Address>::from_bytes(&ip[A::DST_AT..A::DST_AT + A::LEN]).expect("its length");
    if checksum_at::<A>(protocol).is_some() {
        let check = transport_checksum(&src, &dst, protocol, &ip[A::HEADER_LEN..]);
        assert_eq!(check, 0, "transport checksum of protocol {protocol}");
    }
}

/// RFC 9260 appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0x82f6_3b78
            }
        })
    })
}
