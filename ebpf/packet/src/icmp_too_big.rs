//! The answer to a packet that is too long for its way: ICMP 'fragmentation needed' (RFC 1191) or ICMPv6 'packet too
//! big' (RFC 4443 section 3.2), built out of the packet itself and sent back to the pod.
//!
//! It quotes the IP header and the first 20 bytes behind it: more than the eight that a sender needs, and enough that
//! the kernel may cut a packet whose TCP checksum is still to be computed.

use ebpf_abi::{DropReason, Family};

use crate::{
    Ip, Node, Packet, checksum,
    ip::{ETH_LEN, FrameBytes, IP_AT, LEAD},
    parse::{Headers, Kind},
    verdict::Step,
};

/// Bytes behind the quoted IP header.
const QUOTED: usize = 20;

/// Turns the packet into the answer.
#[inline(never)]
pub(crate) fn answer<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N, mtu: u32) -> Step {
    match build::<A, P, N>(packet, node, mtu) {
        Ok(()) => Step::REFLECT,
        Err(reason) => Step::drop(reason),
    }
}

#[inline(always)]
fn build<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    mtu: u32,
) -> Result<(), DropReason> {
    let Some(config) = node.config() else {
        return Err(DropReason::NoConfig);
    };
    let mut headers = Headers::<A>::new();
    headers.parse(packet)?;
    // No error about an error, none about a fragment that is not the first (RFC 1122 section 3.2.2).
    if matches!(headers.kind, Kind::IcmpError | Kind::LaterFragment) {
        return Err(DropReason::TooBig);
    }
    let settings = A::settings(config);
    let from = if settings.node_addr.is_unset() {
        settings.source_nat_addr
    } else {
        settings.node_addr
    };
    if from.is_unset() {
        return Err(DropReason::TooBig);
    }

    let mut quoted = [0u8; QUOTED];
    let quoted_at = (ETH_LEN + A::HEADER_LEN) as u32;
    packet
        .load(quoted_at, &mut quoted)
        .map_err(|_| DropReason::TooBig)?;
    let icmp_at = quoted_at;
    let body_at = icmp_at + 8;
    let len = body_at + (A::HEADER_LEN + QUOTED) as u32;
    packet
        .truncate(len)
        .map_err(|_| DropReason::RewriteFailed)?;

    // The quoted packet first, as the frame buffer is needed again.
    let payload = (8 + A::HEADER_LEN + QUOTED) as u16;
    let mut icmp = [0u8; 8];
    A::write_too_big(&mut icmp, mtu);
    let quoted_header = &headers.frame.bytes()[IP_AT..IP_AT + A::HEADER_LEN];
    let mut sum = checksum::sum(&icmp) + checksum::sum(quoted_header) + checksum::sum(&quoted);
    if A::FAMILY == Family::V6 {
        sum += checksum::sum(from.as_bytes()) + checksum::sum(headers.tuple.src.as_bytes());
        sum += payload.to_be() as u64 + (A::ICMP as u16).to_be() as u64;
    }
    let check = (!checksum::fold(sum)).to_ne_bytes();
    icmp[2] = check[0];
    icmp[3] = check[1];
    let stored = packet
        .store(body_at, quoted_header)
        .and_then(|()| packet.store(body_at + A::HEADER_LEN as u32, &quoted))
        .and_then(|()| packet.store(icmp_at, &icmp));
    stored.map_err(|_| DropReason::RewriteFailed)?;

    headers.swap_macs();
    let to = headers.tuple.src;
    let frame = headers.frame.bytes_mut();
    A::write_icmp_header(
        &mut frame[IP_AT..IP_AT + A::HEADER_LEN],
        payload,
        &from,
        &to,
    );
    packet
        .store(0, &frame[LEAD..IP_AT + A::HEADER_LEN])
        .map_err(|_| DropReason::RewriteFailed)
}

impl<A: Ip> Headers<A> {
    #[inline(always)]
    fn swap_macs(&mut self) {
        let frame = self.frame.bytes_mut();
        for i in LEAD..LEAD + 6 {
            frame.swap(i, i + 6);
        }
    }
}
