//! Writing a decision into the packet: addresses, ports, checksums, TTL, MAC addresses.

use ebpf_abi::{Addr4, Address, ConnKey, DropReason};

use crate::{
    ChecksumField, Ip, Packet, checksum,
    ip::{ETH_LEN, Header},
    parse::{Headers, Kind, protocol},
    sctp,
};

/// Offset of the checksum in the transport header, for the protocols that have one.
#[inline(always)]
pub(crate) fn checksum_at<A: Ip>(protocol: u8) -> Option<u32> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        icmp if icmp == A::ICMP => Some(2),
        _ => None,
    }
}

/// Whether a protocol's checksum covers the addresses. ICMP over IPv4 is the one that does not.
#[inline(always)]
pub(crate) fn covers_addresses<A: Ip>(protocol: u8) -> bool {
    A::CHECKSUM_AT.is_none() || protocol != A::ICMP
}

/// The tuple that a packet gets, told by that of the answers to it, which is what a connection's record has: nothing is
/// copied out of there.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a, A>(pub(crate) &'a ConnKey<A>);

impl<'a, A: Ip> Target<'a, A> {
    #[inline(always)]
    pub(crate) fn dst(self) -> &'a A {
        let Self(answers) = self;
        &answers.src
    }

    #[inline(always)]
    pub(crate) fn src_port_be(self) -> u16 {
        let Self(answers) = self;
        answers.dst_port_be
    }

    #[inline(always)]
    pub(crate) fn dst_port_be(self) -> u16 {
        let Self(answers) = self;
        answers.src_port_be
    }

    /// Whether the ports are those that the packet has.
    #[inline(always)]
    fn keeps_ports(self, tuple: &ConnKey<A>) -> bool {
        tuple.src_port_be == self.src_port_be() && tuple.dst_port_be == self.dst_port_be()
    }
}

/// The difference that the new addresses make; which of the two is which does not count.
#[inline(always)]
pub(crate) fn address_difference<A: Ip>(old: &ConnKey<A>, new: &ConnKey<A>) -> u32 {
    checksum::add(
        checksum::difference(old.src.as_bytes(), new.src.as_bytes()),
        checksum::difference(old.dst.as_bytes(), new.dst.as_bytes()),
    )
}

/// See [`ConnKey::take_addresses`]. Returns the difference that they make.
#[inline(always)]
fn take_addresses<A: Ip>(tuple: &mut ConnKey<A>, answers: &ConnKey<A>) -> u32 {
    checksum::fold_to_32(tuple.take_addresses(answers))
}

/// [`take_addresses`] as a function of its own: the words of IPv6 would take much of the caller's stack.
#[inline(never)]
fn take_addresses_apart<A: Ip>(tuple: &mut ConnKey<A>, answers: &ConnKey<A>) -> u32 {
    take_addresses(tuple, answers)
}

/// The difference that the new ports make; which of the two is which does not count.
#[inline(always)]
pub(crate) fn port_difference<A: Ip>(old: &ConnKey<A>, new: &ConnKey<A>) -> u32 {
    checksum::difference16(old.src_port_be, new.src_port_be)
        + checksum::difference16(old.dst_port_be, new.dst_port_be)
}

/// 'Congestion experienced', and the mask of the field.
pub(crate) const ECN_CONGESTION: u8 = 3;

impl<A: Ip> Headers<A> {
    #[inline(always)]
    pub(crate) fn ttl(&self) -> u8 {
        self.header.ip()[A::TTL_AT]
    }

    /// The ECN field (RFC 3168 section 5).
    #[inline(always)]
    pub(crate) fn ecn(&self) -> u8 {
        self.header.ip()[1] >> A::ECN_SHIFT & ECN_CONGESTION
    }

    /// Marks congestion in the packet; `false` if the sender does not know of marks.
    #[inline(always)]
    pub(crate) fn mark_congestion<P: Packet>(
        &mut self,
        packet: &mut P,
    ) -> Result<bool, DropReason> {
        if self.ecn() == 0 {
            return Ok(false);
        }
        let ip = self.header.ip_mut();
        let old = [ip[0], ip[1]];
        ip[1] |= ECN_CONGESTION << A::ECN_SHIFT;
        let new = [ip[0], ip[1]];
        let difference = checksum::difference16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        self.add_to_header_checksum(difference);
        let written = packet.store(ETH_LEN as u32, &new);
        let written = written.and_then(|()| match A::CHECKSUM_AT {
            Some(at) => {
                let check = &self.header.ip()[at..at + 2];
                packet.store((ETH_LEN + at) as u32, check)
            }
            None => {
                packet.sum_changed(difference);
                Ok(())
            }
        });
        written
            .map(|()| true)
            .map_err(|_| DropReason::RewriteFailed)
    }

    /// Writes the headers back behind Ethernet's, with the tuple `target` if there is one; `hop`: one hop was made (the
    /// caller has seen that the TTL allows it).
    #[inline(always)]
    pub(crate) fn write<P: Packet>(
        &mut self,
        packet: &mut P,
        target: Option<Target<'_, A>>,
        hop: bool,
    ) -> Result<(), DropReason> {
        let mut difference = 0;
        if let Some(target) = target {
            difference = if A::LEN == Addr4::LEN {
                take_addresses(self.tuple_mut(), target.0)
            } else {
                take_addresses_apart(self.tuple_mut(), target.0)
            };
            self.write_transport(packet, target, difference)?;
        }
        if hop {
            let of_hop = self.replace_ttl(self.ttl().wrapping_sub(1));
            if A::CHECKSUM_AT.is_none() {
                packet.sum_changed(of_hop);
            }
            difference = checksum::add(difference, of_hop);
        }
        self.add_to_header_checksum(difference);
        let ip = self.header.ip();
        let written = if target.is_some() {
            packet.store_words(ETH_LEN as u32, ip, &[])
        } else if hop {
            // In IPv4, the checksum follows.
            let len = if A::CHECKSUM_AT.is_some() { 4 } else { 2 };
            let at = Self::HOP_AT;
            packet.store((ETH_LEN + at) as u32, &ip[at..at + len])
        } else {
            Ok(())
        };
        written.map_err(|_| DropReason::RewriteFailed)
    }

    /// Where the half word with the TTL lies.
    const HOP_AT: usize = A::TTL_AT & !1;

    /// Changes the TTL in the header that will be written back.
    #[inline(always)]
    pub(crate) fn set_ttl<P: Packet>(&mut self, packet: &mut P, ttl: u8) {
        let difference = self.replace_ttl(ttl);
        if A::CHECKSUM_AT.is_none() {
            packet.sum_changed(difference);
        }
        self.add_to_header_checksum(difference);
    }

    /// Returns the difference that another TTL makes.
    #[inline(always)]
    fn replace_ttl(&mut self, ttl: u8) -> u32 {
        let ip = self.header.ip_mut();
        let at = Self::HOP_AT;
        let old = u16::from_ne_bytes([ip[at], ip[at + 1]]);
        ip[A::TTL_AT] = ttl;
        checksum::difference16(old, u16::from_ne_bytes([ip[at], ip[at + 1]]))
    }

    /// Applies a difference to the header's own checksum, if it has one.
    #[inline(always)]
    fn add_to_header_checksum(&mut self, difference: u32) {
        if let Some(at) = A::CHECKSUM_AT {
            let ip = self.header.ip_mut();
            let check = checksum::apply(u16::from_ne_bytes([ip[at], ip[at + 1]]), difference);
            ip[at..at + 2].copy_from_slice(&check.to_ne_bytes());
        }
    }

    /// Ports (or the echo identifier) and the transport checksum.
    #[inline(always)]
    fn write_transport<P: Packet>(
        &self,
        packet: &mut P,
        target: Target<'_, A>,
        address_difference: u32,
    ) -> Result<(), DropReason> {
        if matches!(self.kind, Kind::LATER_FRAGMENT) {
            return Ok(());
        }
        let Some(at) = checksum_at::<A>(self.tuple().protocol) else {
            return self.write_sctp(packet, target);
        };
        let at = self.l4_at + at;
        let field = ChecksumField {
            pseudo_header: true,
            zero_is_none: self.tuple().protocol == protocol::UDP,
            family: A::FAMILY,
        };
        if covers_addresses::<A>(self.tuple().protocol) {
            packet
                .add_to_checksum(at, address_difference, field)
                .map_err(|_| DropReason::RewriteFailed)?;
        }
        if target.keeps_ports(self.tuple()) {
            return Ok(());
        }
        let field = ChecksumField {
            pseudo_header: false,
            ..field
        };
        packet
            .add_to_checksum(at, port_difference(self.tuple(), target.0), field)
            .map_err(|_| DropReason::RewriteFailed)?;
        self.write_ports(packet, target)
    }

    /// The ports of an SCTP packet, if it is one.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] for a fragment: the checksum of the whole would have to change.
    #[inline(always)]
    fn write_sctp<P: Packet>(
        &self,
        packet: &mut P,
        target: Target<'_, A>,
    ) -> Result<(), DropReason> {
        if self.tuple().protocol != protocol::SCTP || target.keeps_ports(self.tuple()) {
            return Ok(());
        }
        let [from, to] = [target.src_port_be(), target.dst_port_be()].map(u16::to_ne_bytes);
        let ports = u32::from_ne_bytes([from[0], from[1], to[0], to[1]]);
        let len = self.end - self.l4_at;
        if matches!(self.kind, Kind::WHOLE) && sctp::write_ports(packet, self.l4_at, len, ports) {
            Ok(())
        } else {
            Err(DropReason::RewriteFailed)
        }
    }

    #[inline(always)]
    fn write_ports<P: Packet>(
        &self,
        packet: &mut P,
        target: Target<'_, A>,
    ) -> Result<(), DropReason> {
        let src = target.src_port_be().to_ne_bytes();
        let dst = target.dst_port_be().to_ne_bytes();
        let written = if self.tuple().protocol == A::ICMP {
            // One of the two is the identifier, the other is zero.
            packet.store(self.l4_at + 4, &[src[0] | dst[0], src[1] | dst[1]])
        } else {
            packet.store(self.l4_at, &[src[0], src[1], dst[0], dst[1]])
        };
        written.map_err(|_| DropReason::RewriteFailed)
    }
}
