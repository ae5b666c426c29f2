//! From bytes to a tuple: Ethernet, IP with options or extension headers, the first bytes of the transport header.

use ebpf_abi::{ConnKey, DropReason};

use crate::{
    Ip, Packet,
    ip::{ETH_LEN, Header},
    sctp,
};

pub(crate) mod protocol {
    //! IANA protocol numbers that both families share.
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const SCTP: u8 = 132;
}

/// Flags of the TCP header (RFC 9293 section 3.1).
pub(crate) mod tcp {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const ACK: u8 = 16;
}

/// What an IP header carries.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    pub protocol: u8,
    /// Where the transport header starts, from the start of the frame.
    pub at: u32,
    /// Where the IP packet ends.
    pub end: u32,
    pub later_fragment: bool,
    pub first_fragment: bool,
    /// The identification as it stands in the header.
    pub fragment_id_be: u32,
}

/// What kind of packet it is, as far as the path takes another turn. A number and no enum: see [`Headers::parse`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Kind(u8);

impl Kind {
    pub(crate) const WHOLE: Self = Self(0);
    pub(crate) const FIRST_FRAGMENT: Self = Self(1);
    /// Has no ports of its own.
    pub(crate) const LATER_FRAGMENT: Self = Self(2);
    pub(crate) const ICMP_ERROR: Self = Self(3);
    /// ICMP that is neither echo nor error: nothing in it can be translated.
    pub(crate) const ICMP_OTHER: Self = Self(4);
    /// Router and neighbour discovery: the stack's own.
    pub(crate) const NEIGHBOUR_DISCOVERY: Self = Self(5);
}

/// A packet's headers, as far as the path needs them.
pub(crate) struct Headers<A: Ip> {
    /// A copy of the IP header, which the path changes and writes back in one piece, and the tuple, which is a part of it.
    pub(crate) header: A::Header,
    pub(crate) l4_at: u32,
    /// Where the IP packet ends.
    pub(crate) end: u32,
    /// Bytes of IP and transport headers that each segment of a large packet repeats.
    pub(crate) header_len: u32,
    pub(crate) fragment_id_be: u32,
    pub(crate) kind: Kind,
    pub(crate) tcp_flags: u8,
}

impl<A: Ip> Headers<A> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            header: A::Header::ZERO,
            l4_at: 0,
            end: 0,
            header_len: 0,
            fragment_id_be: 0,
            kind: Kind::WHOLE,
            tcp_flags: 0,
        }
    }

    /// The tuple with which the packet arrived; once it is written, with the new addresses.
    #[inline(always)]
    pub(crate) fn tuple(&self) -> &ConnKey<A> {
        self.header.tuple()
    }

    #[inline(always)]
    pub(crate) fn tuple_mut(&mut self) -> &mut ConnKey<A> {
        self.header.tuple_mut()
    }

    /// Reads the headers.
    ///
    /// # Errors
    ///
    /// [`DropReason::Malformed`] if a header is cut short or a length contradicts another.
    #[inline(always)]
    pub(crate) fn parse<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        self.parse_fields(packet)?;
        // All kinds and protocols go on as one: the verifier need not follow each of them to the end.
        let protocol = self.tuple().protocol as u32;
        let known = self.kind.0 as u32 | protocol << 8 | (self.tcp_flags as u32) << 16;
        let known = packet.forget_range(known);
        self.kind = Kind(known as u8);
        self.tuple_mut().protocol = (known >> 8) as u8;
        self.tcp_flags = (known >> 16) as u8;
        Ok(())
    }

    #[inline(always)]
    fn parse_fields<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        packet
            .load_words(ETH_LEN as u32, self.header.ip_mut())
            .map_err(|_| DropReason::Malformed)?;
        let payload = A::locate(packet, self.header.ip(), ETH_LEN as u32, false)?;
        self.tuple_mut().protocol = payload.protocol;
        self.l4_at = payload.at;
        self.end = payload.end;
        self.header_len = payload.at - ETH_LEN as u32;
        self.fragment_id_be = payload.fragment_id_be;
        if payload.later_fragment {
            self.kind = Kind::LATER_FRAGMENT;
            return Ok(());
        }
        if payload.first_fragment {
            self.kind = Kind::FIRST_FRAGMENT;
        }
        match payload.protocol {
            protocol::TCP => self.parse_tcp(packet),
            protocol::UDP => self.parse_udp(packet),
            icmp if icmp == A::ICMP => self.parse_icmp(packet),
            protocol::SCTP => self.parse_sctp(packet),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn parse_tcp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let mut tcp = [0u8; 14];
        if self.l4_at + 20 > self.end {
            return Err(DropReason::Malformed);
        }
        load(packet, self.l4_at, &mut tcp)?;
        let header_len = (tcp[12] >> 4) as u32 * 4;
        if header_len < 20 || self.l4_at + header_len > self.end {
            return Err(DropReason::Malformed);
        }
        self.header_len += header_len;
        self.tcp_flags = tcp[13];
        self.set_ports(&tcp);
        Ok(())
    }

    #[inline(always)]
    fn parse_udp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let mut udp = [0u8; 8];
        if self.l4_at + 8 > self.end {
            return Err(DropReason::Malformed);
        }
        load(packet, self.l4_at, &mut udp)?;
        let len = u16::from_be_bytes([udp[4], udp[5]]) as u32;
        let whole = matches!(self.kind, Kind::WHOLE);
        if len < 8 || (whole && self.l4_at + len > self.end) {
            return Err(DropReason::Malformed);
        }
        self.header_len += 8;
        self.set_ports(&udp);
        Ok(())
    }

    #[inline(always)]
    fn parse_sctp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let mut ports = [0u8; 4];
        if self.l4_at + sctp::HEADER_LEN > self.end {
            return Err(DropReason::Malformed);
        }
        load(packet, self.l4_at, &mut ports)?;
        self.header_len += sctp::HEADER_LEN;
        self.set_ports(&ports);
        Ok(())
    }

    #[inline(always)]
    fn parse_icmp<P: Packet>(&mut self, packet: &P) -> Result<(), DropReason> {
        let mut icmp = [0u8; 8];
        if self.l4_at + 8 > self.end {
            return Err(DropReason::Malformed);
        }
        load(packet, self.l4_at, &mut icmp)?;
        let id = u16::from_ne_bytes([icmp[4], icmp[5]]);
        let icmp_type = icmp[0];
        if icmp_type == A::ECHO_REQUEST {
            self.tuple_mut().src_port_be = id;
        } else if icmp_type == A::ECHO_REPLY {
            self.tuple_mut().dst_port_be = id;
        } else if A::is_icmp_error(icmp_type) {
            self.kind = Kind::ICMP_ERROR;
        } else if A::is_neighbour_discovery(icmp_type) {
            self.kind = Kind::NEIGHBOUR_DISCOVERY;
        } else {
            self.kind = Kind::ICMP_OTHER;
        }
        Ok(())
    }

    #[inline(always)]
    fn set_ports(&mut self, transport: &[u8]) {
        let tuple = self.tuple_mut();
        tuple.src_port_be = u16::from_ne_bytes([transport[0], transport[1]]);
        tuple.dst_port_be = u16::from_ne_bytes([transport[2], transport[3]]);
    }

    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        self.tuple().protocol == protocol::TCP
    }

    /// Whether this packet opens a TCP connection.
    #[inline(always)]
    pub(crate) fn is_tcp_open(&self) -> bool {
        self.is_tcp() && self.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
    }
}

impl Payload {
    /// Whether an IPv6 extension header comes next: hop-by-hop, routing, fragment, authentication, destination
    /// options, mobility, HIP, shim6.
    #[inline(always)]
    pub(crate) fn is_extended(&self) -> bool {
        matches!(self.protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
    }

    /// Goes over IPv6 extension headers (RFC 8200 section 4), at most eight; `false` if one is cut short.
    #[inline(never)]
    pub(crate) fn skip_extension_headers<P: Packet>(&mut self, packet: &P) -> bool {
        for _ in 0..8 {
            if self.at + 8 > self.end || !self.skip_one(packet) || self.at > self.end {
                return false;
            }
            // Whatever the header was, the next is looked at in the same way.
            let fields = self.protocol as u32
                | (self.later_fragment as u32) << 8
                | (self.first_fragment as u32) << 9;
            let fields = packet.forget_range(fields);
            self.protocol = fields as u8;
            self.later_fragment = fields & 0x100 != 0;
            self.first_fragment = fields & 0x200 != 0;
            self.at = packet.forget_range(self.at);
            if self.later_fragment || !self.is_extended() {
                return true;
            }
        }
        true
    }

    #[inline(always)]
    fn skip_one<P: Packet>(&mut self, packet: &P) -> bool {
        let mut header = [0u8; 8];
        if packet.load(self.at, &mut header).is_err() {
            return false;
        }
        let len = header[1] as u32;
        match self.protocol {
            44 => {
                let offset = u16::from_be_bytes([header[2], header[3]]);
                self.fragment_id_be =
                    u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
                self.later_fragment = offset & 0xfff8 != 0;
                self.first_fragment = offset & 0xfff9 == 1;
                self.at += 8;
            }
            // RFC 4302 section 2.2: in words of four bytes, minus two.
            51 => self.at += (len + 2) * 4,
            _ => self.at += (len + 1) * 8,
        }
        self.protocol = header[0];
        true
    }
}

/// [`Packet::load`], where a packet that is too short is malformed.
#[inline(always)]
pub(crate) fn load<P: Packet>(packet: &P, at: u32, into: &mut [u8]) -> Result<(), DropReason> {
    packet.load(at, into).map_err(|_| DropReason::Malformed)
}
