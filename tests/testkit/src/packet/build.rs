//! From fields to bytes.

use std::net::IpAddr;

use super::{
    checksum::{internet_checksum, pseudo_header},
    ether_type, protocol,
};

/// An Ethernet frame with an IP packet in it, from its fields.
#[derive(Clone, Debug)]
pub struct Frame {
    pub eth_src: [u8; 6],
    pub eth_dst: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// IPv4 identification, or that of the IPv6 fragment header.
    pub id: u32,
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers in front of the payload: number and bytes, whose first byte (next header) is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub l4: L4,
}

/// What the IP packet carries.
#[derive(Clone, Debug)]
pub enum L4 {
    Tcp {
        src_port: u16,
        dst_port: u16,
        seq: u32,
        ack: u32,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    },
    Udp {
        src_port: u16,
        dst_port: u16,
        /// Over IPv4 a sender may leave the checksum out, as zero.
        checksum: bool,
        payload: Vec<u8>,
    },
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp {
        kind: u8,
        code: u8,
        /// The second word of the header.
        rest: [u8; 4],
        payload: Vec<u8>,
    },
    /// Anything else, as it is.
    Raw { protocol: u8, bytes: Vec<u8> },
}

impl Frame {
    /// A frame with TTL 64 and an empty payload, between two MAC addresses that nobody has.
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self {
            eth_src: [0x02, 0, 0, 0, 0, 0xaa],
            eth_dst: [0x02, 0, 0, 0, 0, 0xbb],
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            l4: L4::Raw {
                protocol: 253,
                bytes: Vec::new(),
            },
        }
    }

    #[must_use]
    pub fn eth(mut self, src: [u8; 6], dst: [u8; 6]) -> Self {
        (self.eth_src, self.eth_dst) = (src, dst);
        self
    }

    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 options, a multiple of four bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.into();
        self
    }

    /// Adds an IPv6 extension header; the first of its bytes is filled in.
    #[must_use]
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.into()));
        self
    }

    #[must_use]
    pub fn tcp(mut self, src_port: u16, dst_port: u16, flags: u8, payload: &[u8]) -> Self {
        self.l4 = L4::Tcp {
            src_port,
            dst_port,
            seq: 1000,
            ack: if flags & super::tcp_flag::ACK != 0 {
                2000
            } else {
                0
            },
            flags,
            options: Vec::new(),
            payload: payload.into(),
        };
        self
    }

    #[must_use]
    pub fn udp(mut self, src_port: u16, dst_port: u16, payload: &[u8]) -> Self {
        self.l4 = L4::Udp {
            src_port,
            dst_port,
            checksum: true,
            payload: payload.into(),
        };
        self
    }

    /// UDP without a checksum, which IPv4 allows.
    #[must_use]
    pub fn udp_without_checksum(mut self, src_port: u16, dst_port: u16, payload: &[u8]) -> Self {
        self.l4 = L4::Udp {
            src_port,
            dst_port,
            checksum: false,
            payload: payload.into(),
        };
        self
    }

    /// An ICMP or ICMPv6 echo request (or reply), by the family of the addresses.
    #[must_use]
    pub fn echo(mut self, request: bool, id: u16, sequence: u16, payload: &[u8]) -> Self {
        let kind = match (self.src, request) {
            (IpAddr::V4(_), true) => 8,
            (IpAddr::V4(_), false) => 0,
            (IpAddr::V6(_), true) => 128,
            (IpAddr::V6(_), false) => 129,
        };
        let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
        self.l4 = L4::Icmp {
            kind,
            code: 0,
            rest: [a, b, c, d],
            payload: payload.into(),
        };
        self
    }

    /// An ICMP error about a packet; `quoted` begins with its IP header.
    #[must_use]
    pub fn icmp_error(mut self, kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Self {
        self.l4 = L4::Icmp {
            kind,
            code,
            rest,
            payload: quoted.into(),
        };
        self
    }

    #[must_use]
    pub fn raw(mut self, protocol: u8, bytes: &[u8]) -> Self {
        self.l4 = L4::Raw {
            protocol,
            bytes: bytes.into(),
        };
        self
    }

    /// The whole frame.
    ///
    /// # Panics
    ///
    /// When the addresses are of two families or a length does not fit its field.
    pub fn bytes(&self) -> Vec<u8> {
        self.frame_around(&self.l4_bytes(), None)
    }

    /// The IP packet, without the Ethernet header: what ICMP errors quote.
    pub fn ip_bytes(&self) -> Vec<u8> {
        self.bytes().split_off(14)
    }

    /// The packet in fragments whose IP payload has at most `size` bytes (a multiple of eight), in order.
    ///
    /// # Panics
    ///
    /// When `size` is no multiple of eight.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert!(
            size > 0 && size.is_multiple_of(8),
            "fragments are cut at multiples of eight bytes"
        );
        let payload = self.l4_bytes();
        let count = payload.len().div_ceil(size);
        payload
            .chunks(size)
            .enumerate()
            .map(|(index, chunk)| {
                let fragment = Fragment {
                    offset: index * size,
                    more: index + 1 < count,
                };
                self.frame_around(chunk, Some(fragment))
            })
            .collect()
    }

    fn frame_around(&self, payload: &[u8], fragment: Option<Fragment>) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.eth_dst);
        bytes.extend(self.eth_src);
        match self.src {
            IpAddr::V4(_) => {
                bytes.extend(ether_type::IPV4.to_be_bytes());
                bytes.extend(self.ipv4_header(payload.len(), fragment));
            }
            IpAddr::V6(_) => {
                bytes.extend(ether_type::IPV6.to_be_bytes());
                bytes.extend(self.ipv6_header(payload.len(), fragment));
            }
        }
        bytes.extend(payload);
        bytes
    }

    /// RFC 791 section 3.1.
    fn ipv4_header(&self, payload: usize, fragment: Option<Fragment>) -> Vec<u8> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src, self.dst) else {
            panic!("{} and {} are of two families", self.src, self.dst)
        };
        assert!(
            self.options.len().is_multiple_of(4) && self.options.len() <= 40,
            "IPv4 options"
        );
        let words = 5 + self.options.len() / 4;
        let flags = match fragment {
            None if self.dont_fragment => 0x4000,
            None => 0,
            Some(fragment) => (u16::from(fragment.more) << 13) | (fragment.offset / 8) as u16,
        };
        let mut header = vec![0x40 | words as u8, self.tos];
        header.extend(length(words * 4 + payload));
        header.extend((self.id as u16).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(src.octets());
        header.extend(dst.octets());
        header.extend(&self.options);
        let checksum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    /// RFC 8200 sections 3 and 4.5.
    fn ipv6_header(&self, payload: usize, fragment: Option<Fragment>) -> Vec<u8> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.src, self.dst) else {
            panic!("{} and {} are of two families", self.src, self.dst)
        };
        let mut extensions = self.extensions.clone();
        if let Some(fragment) = fragment {
            let mut header = vec![0, 0];
            header.extend((fragment.offset as u16 | u16::from(fragment.more)).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            extensions.push((protocol::IPV6_FRAGMENT, header));
        }
        let numbers: Vec<u8> = extensions
            .iter()
            .map(|(number, _)| *number)
            .chain([self.protocol()])
            .collect();
        let mut chain = Vec::new();
        for (index, (_, bytes)) in extensions.iter().enumerate() {
            chain.push(numbers[index + 1]);
            chain.extend(&bytes[1..]);
        }
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        header.extend(length(chain.len() + payload));
        header.extend([numbers[0], self.ttl]);
        header.extend(src.octets());
        header.extend(dst.octets());
        header.extend(chain);
        header
    }

    fn protocol(&self) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => protocol::TCP,
            L4::Udp { .. } => protocol::UDP,
            L4::Icmp { .. } if self.src.is_ipv4() => protocol::ICMP,
            L4::Icmp { .. } => protocol::ICMPV6,
            L4::Raw { protocol, .. } => protocol,
        }
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match &self.l4 {
            // RFC 9293 section 3.1.
            L4::Tcp {
                src_port,
                dst_port,
                seq,
                ack,
                flags,
                options,
                payload,
            } => {
                assert!(
                    options.len().is_multiple_of(4) && options.len() <= 40,
                    "TCP options"
                );
                bytes.extend(src_port.to_be_bytes());
                bytes.extend(dst_port.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([((5 + options.len() / 4) << 4) as u8, *flags]);
                bytes.extend(0x7210_u16.to_be_bytes());
                bytes.extend([0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(payload);
                Some(16)
            }
            // RFC 768.
            L4::Udp {
                src_port,
                dst_port,
                checksum,
                payload,
            } => {
                bytes.extend(src_port.to_be_bytes());
                bytes.extend(dst_port.to_be_bytes());
                bytes.extend(length(8 + payload.len()));
                bytes.extend([0, 0]);
                bytes.extend(payload);
                checksum.then_some(6)
            }
            // RFC 792, RFC 4443.
            L4::Icmp {
                kind,
                code,
                rest,
                payload,
            } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(payload);
                Some(2)
            }
            L4::Raw { bytes: raw, .. } => {
                bytes.extend(raw);
                None
            }
        };
        if let Some(at) = checksum_at {
            let checksum = self.l4_checksum(&bytes);
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    fn l4_checksum(&self, bytes: &[u8]) -> u16 {
        let protocol = self.protocol();
        if protocol == protocol::ICMP {
            return internet_checksum(&[bytes]);
        }
        let pseudo = pseudo_header(self.src, self.dst, protocol, bytes.len());
        match internet_checksum(&[&pseudo, bytes]) {
            // Zero means "none" (RFC 768).
            0 if protocol == protocol::UDP => 0xffff,
            checksum => checksum,
        }
    }
}

/// A VXLAN packet (RFC 7348 section 5) around an Ethernet frame: `outer` with a UDP payload, without UDP checksum.
#[must_use]
pub fn vxlan(outer: Frame, src_port: u16, dst_port: u16, vni: u32, inner: &[u8]) -> Frame {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    outer.udp_without_checksum(src_port, dst_port, &payload)
}

#[derive(Clone, Copy)]
struct Fragment {
    /// In bytes.
    offset: usize,
    more: bool,
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes)
        .expect("the packet fits its length field")
        .to_be_bytes()
}
