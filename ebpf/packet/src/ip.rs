//! What differs between IPv4 and IPv6: where the header's fields lie. Everything else is written once.

use ebpf_abi::{Addr4, Addr6, Address, Config, ConnKey, DropReason, FamilyConfig, IpHeader, Plain};

use crate::{Packet, checksum, parse::Payload};

/// Length of the Ethernet header in bytes.
pub(crate) const ETH_LEN: usize = 14;

/// Bytes that are aligned to words.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub(crate) struct Aligned<const N: usize>(pub(crate) [u8; N]);

/// Access to the [`IpHeader`] of either family.
pub trait Header<A>: Copy {
    const ZERO: Self;
    /// The header without options.
    fn ip(&self) -> &[u8];
    fn ip_mut(&mut self) -> &mut [u8];
    /// The header's addresses with what was read elsewhere.
    fn tuple(&self) -> &ConnKey<A>;
    fn tuple_mut(&mut self) -> &mut ConnKey<A>;
}

impl<A: Ip, const START: usize> Header<A> for IpHeader<A, START>
where
    Self: Plain,
{
    const ZERO: Self = Self {
        start: [0; START],
        tuple: A::NO_TUPLE,
    };

    #[inline(always)]
    fn ip(&self) -> &[u8] {
        &self.bytes()[..A::HEADER_LEN]
    }

    #[inline(always)]
    fn ip_mut(&mut self) -> &mut [u8] {
        &mut self.bytes_mut()[..A::HEADER_LEN]
    }

    #[inline(always)]
    fn tuple(&self) -> &ConnKey<A> {
        &self.tuple
    }

    #[inline(always)]
    fn tuple_mut(&mut self) -> &mut ConnKey<A> {
        &mut self.tuple
    }
}

/// A tuple of nothing.
const fn no_tuple<A: Copy>(unset: A) -> ConnKey<A> {
    ConnKey {
        src: unset,
        dst: unset,
        src_port_be: 0,
        dst_port_be: 0,
        protocol: 0,
        pad: [0; 3],
    }
}

/// An address family as the packet code sees it.
pub trait Ip: Address {
    /// In network byte order.
    const ETHERTYPE: u16;
    const HEADER_LEN: usize;
    /// Offsets in the IP header.
    const SRC_AT: usize;
    const DST_AT: usize;
    const TTL_AT: usize;
    /// Where in the header's second byte the ECN field lies (RFC 3168 section 5).
    const ECN_SHIFT: u8;
    /// Offset of the header checksum; IPv6 has none.
    const CHECKSUM_AT: Option<usize>;
    /// IANA protocol number of this family's ICMP.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// Type and code of an ICMP 'port unreachable'. RFC 792, RFC 4443 section 3.1.
    const PORT_UNREACHABLE: [u8; 2];
    /// Type and code of an ICMP 'time exceeded in transit'. RFC 792, RFC 4443 section 3.3.
    const TIME_EXCEEDED: [u8; 2];
    const NO_TUPLE: ConnKey<Self>;
    type Header: Header<Self>;

    fn read(bytes: &[u8], at: usize) -> Self;
    fn write(&self, bytes: &mut [u8], at: usize);
    /// The part of the configuration that is of this family.
    fn settings(config: &Config) -> &FamilyConfig<Self>;
    /// Whether packets with this address never leave the link: multicast, broadcast, link-local.
    fn stays_on_link(&self) -> bool;
    fn is_icmp_error(icmp_type: u8) -> bool;
    fn is_neighbour_discovery(icmp_type: u8) -> bool;
    /// Reads a header and finds what it carries. `quoted`: the packet's end may be missing, as
    /// inside an ICMP error. `ip_at`: where in the packet that header starts. A length of zero is that of a packet of
    /// more than 64 KiB which a device will cut ('BIG TCP').
    fn locate<P: Packet>(
        packet: &P,
        header: &[u8],
        ip_at: u32,
        quoted: bool,
    ) -> Result<Payload, DropReason>;
    /// Writes the header of a packet of our own with `payload` bytes.
    fn write_header(header: &mut [u8], payload: u16, protocol: u8, src: &Self, dst: &Self);
    /// Type, code and the place of the MTU in the eight bytes of an ICMP 'packet too big'. RFC 1191, RFC 4443 3.2.
    fn write_too_big(icmp: &mut [u8; 8], mtu: u32);

    #[inline(always)]
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

impl Ip for Addr4 {
    const ETHERTYPE: u16 = 0x0800u16.to_be();
    const HEADER_LEN: usize = 20;
    const SRC_AT: usize = 12;
    const DST_AT: usize = 16;
    const TTL_AT: usize = 8;
    const ECN_SHIFT: u8 = 0;
    const CHECKSUM_AT: Option<usize> = Some(10);
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const TIME_EXCEEDED: [u8; 2] = [11, 0];
    const NO_TUPLE: ConnKey<Self> = no_tuple(Self { bytes: [0; 4] });
    type Header = IpHeader<Self, { Self::SRC_AT }>;

    #[inline(always)]
    fn read(bytes: &[u8], at: usize) -> Self {
        Self {
            bytes: [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]],
        }
    }

    #[inline(always)]
    fn write(&self, bytes: &mut [u8], at: usize) {
        bytes[at..at + 4].copy_from_slice(&self.bytes);
    }

    #[inline(always)]
    fn settings(config: &Config) -> &FamilyConfig<Self> {
        &config.v4
    }

    #[inline(always)]
    fn stays_on_link(&self) -> bool {
        let [a, b, ..] = self.bytes;
        // 224.0.0.0/4 and, with the reserved 240.0.0.0/4, the broadcast address; 169.254.0.0/16.
        a >= 224 || (a == 169 && b == 254)
    }

    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_neighbour_discovery(_: u8) -> bool {
        false
    }

    #[inline(always)]
    fn locate<P: Packet>(
        packet: &P,
        header: &[u8],
        ip_at: u32,
        quoted: bool,
    ) -> Result<Payload, DropReason> {
        let header_len = (header[0] & 15) as u32 * 4;
        let mut total_len = u16::from_be_bytes([header[2], header[3]]) as u32;
        if total_len == 0 && packet.segment_payload() != 0 {
            total_len = packet.length() - ip_at;
        }
        let end = ip_at + total_len;
        if header[0] >> 4 != 4
            || header_len < 20
            || total_len < header_len
            || (!quoted && end > packet.length())
        {
            return Err(DropReason::Malformed);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Ok(Payload {
            protocol: header[9],
            at: ip_at + header_len,
            end,
            later_fragment: fragment & 0x1fff != 0,
            first_fragment: fragment & 0x3fff == 0x2000,
            fragment_id_be: u16::from_ne_bytes([header[4], header[5]]) as u32,
        })
    }

    #[inline(always)]
    fn write_header(header: &mut [u8], payload: u16, protocol: u8, src: &Self, dst: &Self) {
        header[..Self::HEADER_LEN].fill(0);
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(payload + 20).to_be_bytes());
        header[8] = 64;
        header[9] = protocol;
        src.write(header, Self::SRC_AT);
        dst.write(header, Self::DST_AT);
        let check = !checksum::fold(checksum::sum(&header[..Self::HEADER_LEN]));
        header[10..12].copy_from_slice(&check.to_ne_bytes());
    }

    #[inline(always)]
    fn write_too_big(icmp: &mut [u8; 8], mtu: u32) {
        let mtu = (mtu as u16).to_be_bytes();
        *icmp = [3, 4, 0, 0, 0, 0, mtu[0], mtu[1]];
    }
}

impl Ip for Addr6 {
    const ETHERTYPE: u16 = 0x86ddu16.to_be();
    const HEADER_LEN: usize = 40;
    const SRC_AT: usize = 8;
    const DST_AT: usize = 24;
    const TTL_AT: usize = 7;
    const ECN_SHIFT: u8 = 4;
    const CHECKSUM_AT: Option<usize> = None;
    const ICMP: u8 = 58;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    const TIME_EXCEEDED: [u8; 2] = [3, 0];
    const NO_TUPLE: ConnKey<Self> = no_tuple(Self { bytes: [0; 16] });
    type Header = IpHeader<Self, { Self::SRC_AT }>;

    #[inline(always)]
    fn read(bytes: &[u8], at: usize) -> Self {
        let mut addr = Self::default();
        addr.bytes.copy_from_slice(&bytes[at..at + 16]);
        addr
    }

    #[inline(always)]
    fn write(&self, bytes: &mut [u8], at: usize) {
        bytes[at..at + 16].copy_from_slice(&self.bytes);
    }

    #[inline(always)]
    fn settings(config: &Config) -> &FamilyConfig<Self> {
        &config.v6
    }

    #[inline(always)]
    fn stays_on_link(&self) -> bool {
        // ff00::/8 and fe80::/10.
        self.bytes[0] == 0xff || (self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80)
    }

    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 1..=4)
    }

    #[inline(always)]
    fn is_neighbour_discovery(icmp_type: u8) -> bool {
        matches!(icmp_type, 133..=137)
    }

    #[inline(always)]
    fn locate<P: Packet>(
        packet: &P,
        header: &[u8],
        ip_at: u32,
        quoted: bool,
    ) -> Result<Payload, DropReason> {
        let mut end = ip_at + 40 + u16::from_be_bytes([header[4], header[5]]) as u32;
        if end == ip_at + 40 && packet.segment_payload() != 0 {
            end = packet.length();
        }
        if header[0] >> 4 != 6 || (!quoted && end > packet.length()) {
            return Err(DropReason::Malformed);
        }
        let mut payload = Payload {
            protocol: header[6],
            at: ip_at + 40,
            end,
            later_fragment: false,
            first_fragment: false,
            fragment_id_be: 0,
        };
        if payload.is_extended() && !payload.skip_extension_headers(packet) {
            return Err(DropReason::Malformed);
        }
        Ok(payload)
    }

    #[inline(always)]
    fn write_header(header: &mut [u8], payload: u16, protocol: u8, src: &Self, dst: &Self) {
        header[..8].fill(0);
        header[0] = 0x60;
        header[4..6].copy_from_slice(&payload.to_be_bytes());
        header[6] = protocol;
        header[7] = 64;
        src.write(header, Self::SRC_AT);
        dst.write(header, Self::DST_AT);
    }

    #[inline(always)]
    fn write_too_big(icmp: &mut [u8; 8], mtu: u32) {
        let mtu = mtu.to_be_bytes();
        *icmp = [2, 0, 0, 0, mtu[0], mtu[1], mtu[2], mtu[3]];
    }
}
