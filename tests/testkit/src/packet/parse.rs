//! From bytes to fields, for assertions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};

use super::{
    checksum::{internet_checksum, pseudo_header},
    ether_type, protocol,
};

/// An Ethernet frame with an IP packet in it. Fields that the packet does not have are zero.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parsed {
    pub eth_src: [u8; 6],
    pub eth_dst: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u32,
    pub dont_fragment: bool,
    /// In bytes.
    pub fragment_offset: usize,
    pub more_fragments: bool,
    /// IANA protocol number, behind any IPv6 extension headers.
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// The second word of an ICMP header.
    pub icmp_rest: [u8; 4],
    /// The L4 checksum as it stands in the packet.
    pub l4_checksum: u16,
    /// Behind the L4 header; of a later fragment, behind the IP header.
    pub payload: Vec<u8>,
    /// The IP packet from its header to the end that its length field tells.
    pub ip: Vec<u8>,
    l4_start: usize,
}

/// A VXLAN packet's own header, and the frame inside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParsedVxlan {
    pub flags: u8,
    pub vni: u32,
    pub inner: Parsed,
}

impl Parsed {
    /// # Errors
    ///
    /// When a header is cut off or a length contradicts another.
    pub fn from_frame(frame: &[u8]) -> Result<Self> {
        ensure!(
            frame.len() >= 14,
            "Ethernet header is cut off: {} bytes",
            frame.len()
        );
        let (eth, ip) = frame.split_at(14);
        let mut parsed = match u16::from_be_bytes([eth[12], eth[13]]) {
            ether_type::IPV4 => Self::from_ipv4(ip)?,
            ether_type::IPV6 => Self::from_ipv6(ip)?,
            other => bail!("EtherType {other:#06x} is no IP"),
        };
        parsed.eth_dst.copy_from_slice(&eth[..6]);
        parsed.eth_src.copy_from_slice(&eth[6..12]);
        parsed.parse_l4()?;
        Ok(parsed)
    }

    /// From the IP header on, such as an ICMP error quotes it. Ports and the like are zero where it is cut off.
    ///
    /// # Errors
    ///
    /// When the IP header is cut off.
    pub fn from_quoted(ip: &[u8]) -> Result<Self> {
        let mut parsed = match ip.first().context("no byte")? >> 4 {
            4 => Self::from_ipv4(ip)?,
            6 => Self::from_ipv6(ip)?,
            other => bail!("IP version {other}"),
        };
        let cut = &parsed.ip[parsed.l4_start..];
        if cut.len() >= 4 && matches!(parsed.protocol, protocol::TCP | protocol::UDP) {
            parsed.src_port = u16::from_be_bytes([cut[0], cut[1]]);
            parsed.dst_port = u16::from_be_bytes([cut[2], cut[3]]);
        }
        Ok(parsed)
    }

    /// The VXLAN packet inside.
    ///
    /// # Errors
    ///
    /// When this is no UDP packet or headers are cut off.
    pub fn vxlan(&self) -> Result<ParsedVxlan> {
        ensure!(
            self.protocol == protocol::UDP,
            "protocol {} is not UDP",
            self.protocol
        );
        ensure!(self.payload.len() >= 8, "VXLAN header is cut off");
        let vni = u32::from_be_bytes([0, self.payload[4], self.payload[5], self.payload[6]]);
        let inner = Self::from_frame(&self.payload[8..]).context("inner frame")?;
        Ok(ParsedVxlan {
            flags: self.payload[0],
            vni,
            inner,
        })
    }

    /// The packet that an ICMP error quotes.
    ///
    /// # Errors
    ///
    /// When its IP header is cut off.
    pub fn quoted(&self) -> Result<Self> {
        Self::from_quoted(&self.payload)
    }

    /// Asserts that every checksum is right: that of the IPv4 header, and that of TCP, UDP, ICMP. A UDP checksum of
    /// zero over IPv4 passes; that of a fragment cannot be known.
    ///
    /// # Panics
    ///
    /// When one is wrong.
    #[track_caller]
    pub fn assert_checksums(&self) {
        if self.src.is_ipv4() {
            let header = &self.ip[..usize::from(self.ip[0] & 15) * 4];
            assert_eq!(
                internet_checksum(&[header]),
                0,
                "IPv4 header checksum of {self:02x?}"
            );
        }
        if self.fragment_offset > 0 || self.more_fragments {
            return;
        }
        let l4 = &self.ip[self.l4_start..];
        let pseudo = pseudo_header(self.src, self.dst, self.protocol, l4.len());
        let sum = match self.protocol {
            protocol::ICMP => internet_checksum(&[l4]),
            protocol::UDP if self.l4_checksum == 0 && self.src.is_ipv4() => 0,
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => internet_checksum(&[&pseudo, l4]),
            _ => 0,
        };
        assert_eq!(
            sum, 0,
            "checksum of protocol {} in {self:02x?}",
            self.protocol
        );
    }

    fn from_ipv4(ip: &[u8]) -> Result<Self> {
        ensure!(ip.len() >= 20, "IPv4 header is cut off: {} bytes", ip.len());
        let header_len = usize::from(ip[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        ensure!(
            ip[0] >> 4 == 4 && header_len >= 20,
            "first byte {:#x} of an IPv4 header",
            ip[0]
        );
        ensure!(
            total >= header_len,
            "total length {total} of a header of {header_len} bytes"
        );
        let fragment = u16::from_be_bytes([ip[6], ip[7]]);
        let src: [u8; 4] = ip[12..16].try_into()?;
        let dst: [u8; 4] = ip[16..20].try_into()?;
        Ok(Self {
            ttl: ip[8],
            tos: ip[1],
            id: u16::from_be_bytes([ip[4], ip[5]]).into(),
            dont_fragment: fragment & 0x4000 != 0,
            fragment_offset: usize::from(fragment & 0x1fff) * 8,
            more_fragments: fragment & 0x2000 != 0,
            protocol: ip[9],
            ip: ip[..total.min(ip.len())].into(),
            l4_start: header_len,
            ..Self::empty(Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into())
        })
    }

    fn from_ipv6(ip: &[u8]) -> Result<Self> {
        ensure!(ip.len() >= 40, "IPv6 header is cut off: {} bytes", ip.len());
        ensure!(ip[0] >> 4 == 6, "first byte {:#x} of an IPv6 header", ip[0]);
        let total = 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        let src: [u8; 16] = ip[8..24].try_into()?;
        let dst: [u8; 16] = ip[24..40].try_into()?;
        let mut parsed = Self {
            ttl: ip[7],
            tos: ip[0] << 4 | ip[1] >> 4,
            protocol: ip[6],
            ip: ip[..total.min(ip.len())].into(),
            l4_start: 40,
            ..Self::empty(Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into())
        };
        parsed.skip_extensions()?;
        Ok(parsed)
    }

    /// RFC 8200 section 4.
    fn skip_extensions(&mut self) -> Result<()> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const DESTINATION: u8 = 60;
        while matches!(
            self.protocol,
            HOP_BY_HOP | ROUTING | DESTINATION | protocol::IPV6_FRAGMENT
        ) {
            let header = &self.ip[self.l4_start.min(self.ip.len())..];
            ensure!(header.len() >= 8, "IPv6 extension header is cut off");
            let mut length = usize::from(header[1]) * 8 + 8;
            if self.protocol == protocol::IPV6_FRAGMENT {
                let fragment = u16::from_be_bytes([header[2], header[3]]);
                self.fragment_offset = usize::from(fragment & 0xfff8);
                self.more_fragments = fragment & 1 != 0;
                self.id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                length = 8;
            }
            self.protocol = header[0];
            self.l4_start += length;
        }
        ensure!(
            self.l4_start <= self.ip.len(),
            "IPv6 extension header is cut off"
        );
        Ok(())
    }

    fn parse_l4(&mut self) -> Result<()> {
        ensure!(
            self.l4_start <= self.ip.len(),
            "the packet ends in its IP header"
        );
        let l4 = &self.ip[self.l4_start..];
        if self.fragment_offset > 0 {
            self.payload = l4.into();
            return Ok(());
        }
        let need = |length: usize| {
            ensure!(
                l4.len() >= length,
                "L4 header is cut off: {} bytes",
                l4.len()
            );
            Ok(())
        };
        let half = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let header_len = match self.protocol {
            protocol::TCP => {
                need(20)?;
                (self.src_port, self.dst_port) = (half(0), half(2));
                (self.tcp_flags, self.l4_checksum) = (l4[13], half(16));
                usize::from(l4[12] >> 4) * 4
            }
            protocol::UDP => {
                need(8)?;
                (self.src_port, self.dst_port) = (half(0), half(2));
                self.l4_checksum = half(6);
                8
            }
            protocol::ICMP | protocol::ICMPV6 => {
                need(8)?;
                (self.icmp_type, self.icmp_code, self.l4_checksum) = (l4[0], l4[1], half(2));
                self.icmp_rest.copy_from_slice(&l4[4..8]);
                8
            }
            _ => 0,
        };
        need(header_len)?;
        self.payload = l4[header_len..].into();
        Ok(())
    }

    fn empty(src: IpAddr, dst: IpAddr) -> Self {
        Self {
            eth_src: [0; 6],
            eth_dst: [0; 6],
            src,
            dst,
            ttl: 0,
            tos: 0,
            id: 0,
            dont_fragment: false,
            fragment_offset: 0,
            more_fragments: false,
            protocol: 0,
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
            icmp_type: 0,
            icmp_code: 0,
            icmp_rest: [0; 4],
            l4_checksum: 0,
            payload: Vec::new(),
            ip: Vec::new(),
            l4_start: 0,
        }
    }
}
