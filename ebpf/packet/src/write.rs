//! Writing a decision into the packet: addresses, ports, checksums, TTL, MAC addresses.

use ebpf_abi::{ConnKey, DropReason};

use crate::{
    ChecksumField, Ip, Packet, checksum,
    ip::{FrameBytes, IP_AT, LEAD},
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

/// The difference that the new addresses make.
#[inline(always)]
pub(crate) fn address_difference<A: Ip>(old: &ConnKey<A>, new: &ConnKey<A>) -> u32 {
    checksum::add(
        checksum::difference(old.src.as_bytes(), new.src.as_bytes()),
        checksum::difference(old.dst.as_bytes(), new.dst.as_bytes()),
    )
}

/// The difference that the new ports make.
#[inline(always)]
pub(crate) fn port_difference<A: Ip>(old: &ConnKey<A>, new: &ConnKey<A>) -> u32 {
    checksum::difference16(old.src_port_be, new.src_port_be)
        + checksum::difference16(old.dst_port_be, new.dst_port_be)
}

/// 'Congestion experienced', and the mask of the field.
pub(crate) const ECN_CONGESTION: u8 = 3;

impl<A: Ip> Headers<A> {
    #[inline(always)]
    pub(crate) fn set_macs(&mut self, dst: &[u8; 6], src: &[u8; 6]) {
        let frame = self.frame.bytes_mut();
        frame[LEAD..LEAD + 6].copy_from_slice(dst);
        frame[LEAD + 6..LEAD + 12].copy_from_slice(src);
    }

    #[inline(always)]
    pub(crate) fn ttl(&self) -> u8 {
        self.frame.bytes()[IP_AT + A::TTL_AT]
    }

    /// The ECN field (RFC 3168 section 5).
    #[inline(always)]
    pub(crate) fn ecn(&self) -> u8 {
        self.frame.bytes()[IP_AT + 1] >> A::ECN_SHIFT & ECN_CONGESTION
    }

    /// Marks congestion in the header that will be written back; `false` if the sender does not know of marks.
    #[inline(always)]
    pub(crate) fn mark_congestion<P: Packet>(
        &mut self,
        packet: &mut P,
    ) -> Result<bool, DropReason> {
        if self.ecn() == 0 {
            return Ok(false);
        }
        let frame = self.frame.bytes_mut();
        let old = [frame[IP_AT], frame[IP_AT + 1]];
        let new = [old[0], old[1] | ECN_CONGESTION << A::ECN_SHIFT];
        frame[IP_AT + 1] = new[1];
        if let Some(at) = A::CHECKSUM_AT {
            let at = IP_AT + at;
            let difference =
                checksum::difference16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            let check = checksum::apply(u16::from_ne_bytes([frame[at], frame[at + 1]]), difference);
            let check = check.to_ne_bytes();
            frame[at] = check[0];
            frame[at + 1] = check[1];
            Ok(true)
        } else {
            packet
                .store_unbalanced((IP_AT - LEAD + 1) as u32, &new[1..])
                .map(|()| true)
                .map_err(|_| DropReason::RewriteFailed)
        }
    }

    /// Writes the headers back with the tuple `target`; `hop`: one hop was made (the caller has seen that the TTL
    /// allows it).
    #[inline(always)]
    pub(crate) fn write<P: Packet>(
        &mut self,
        packet: &mut P,
        target: &ConnKey<A>,
        translated: bool,
        hop: bool,
    ) -> Result<(), DropReason> {
        let mut difference = 0;
        if translated {
            difference = address_difference(&self.tuple, target);
            self.write_transport(packet, target, difference)?;
            let frame = self.frame.bytes_mut();
            target.src.write(frame, IP_AT + A::SRC_AT);
            target.dst.write(frame, IP_AT + A::DST_AT);
        }
        if hop {
            let frame = self.frame.bytes_mut();
            let ttl = frame[IP_AT + A::TTL_AT];
            frame[IP_AT + A::TTL_AT] = ttl.wrapping_sub(1);
            if A::CHECKSUM_AT.is_none() {
                packet
                    .store_unbalanced((IP_AT - LEAD + A::TTL_AT) as u32, &[ttl.wrapping_sub(1)])
                    .map_err(|_| DropReason::RewriteFailed)?;
            } else {
                // The TTL is the first byte of its word.
                let old = u16::from_ne_bytes([ttl, 0]);
                let new = u16::from_ne_bytes([ttl.wrapping_sub(1), 0]);
                difference = checksum::add(difference, checksum::difference16(old, new));
            }
        }
        let frame = self.frame.bytes_mut();
        if let Some(at) = A::CHECKSUM_AT {
            let at = IP_AT + at;
            let check = checksum::apply(u16::from_ne_bytes([frame[at], frame[at + 1]]), difference);
            let check = check.to_ne_bytes();
            frame[at] = check[0];
            frame[at + 1] = check[1];
        }
        packet
            .store_frame(&frame[..IP_AT + A::HEADER_LEN])
            .map_err(|_| DropReason::RewriteFailed)
    }

    /// Ports (or the echo identifier) and the transport checksum.
    #[inline(always)]
    fn write_transport<P: Packet>(
        &self,
        packet: &mut P,
        target: &ConnKey<A>,
        address_difference: u32,
    ) -> Result<(), DropReason> {
        if matches!(self.kind, Kind::LATER_FRAGMENT) {
            return Ok(());
        }
        let Some(at) = checksum_at::<A>(self.tuple.protocol) else {
            return self.write_sctp(packet, target);
        };
        let at = self.l4_at + at;
        let field = ChecksumField {
            pseudo_header: true,
            zero_is_none: self.tuple.protocol == protocol::UDP,
            family: A::FAMILY,
        };
        if covers_addresses::<A>(self.tuple.protocol) {
            packet
                .add_to_checksum(at, address_difference, field)
                .map_err(|_| DropReason::RewriteFailed)?;
        }
        if self.tuple.src_port_be == target.src_port_be
            && self.tuple.dst_port_be == target.dst_port_be
        {
            return Ok(());
        }
        let field = ChecksumField {
            pseudo_header: false,
            ..field
        };
        packet
            .add_to_checksum(at, port_difference(&self.tuple, target), field)
            .map_err(|_| DropReason::RewriteFailed)?;
        self.write_ports(packet, target)
    }

    /// The ports of an SCTP packet, if it is one.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] for a fragment: the checksum of the whole would have to change.
    #[inline(always)]
    fn write_sctp<P: Packet>(&self, packet: &mut P, target: &ConnKey<A>) -> Result<(), DropReason> {
        let same = self.tuple.src_port_be == target.src_port_be
            && self.tuple.dst_port_be == target.dst_port_be;
        if self.tuple.protocol != protocol::SCTP || same {
            return Ok(());
        }
        let [from, to] = [target.src_port_be, target.dst_port_be].map(u16::to_ne_bytes);
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
        target: &ConnKey<A>,
    ) -> Result<(), DropReason> {
        let src = target.src_port_be.to_ne_bytes();
        let dst = target.dst_port_be.to_ne_bytes();
        let written = if self.tuple.protocol == A::ICMP {
            // One of the two is the identifier, the other is zero.
            packet.store(self.l4_at + 4, &[src[0] | dst[0], src[1] | dst[1]])
        } else {
            packet.store(self.l4_at, &[src[0], src[1], dst[0], dst[1]])
        };
        written.map_err(|_| DropReason::RewriteFailed)
    }
}
