//! Answers by ICMP error, built out of the packet itself and sent back to where it came from: 'fragmentation needed'
//! (RFC 1191) and 'packet too big' (RFC 4443 section 3.2) for one that is too long for its way, 'port unreachable' for
//! one that nobody serves.

use ebpf_abi::{Config, DropReason, Family};

use crate::{
    Frame, Ip, Node, OutOfBounds, Packet, checksum,
    ip::{ETH_LEN, FrameBytes, IP_AT, LEAD},
    parse::{Headers, Kind},
    verdict::Step,
};

/// Bytes behind the quoted IP header that a sender needs, and all that a short datagram has.
const LEAST: usize = 8;
/// As many as a sender may need to know an SCTP association by (RFC 9260 section 10), and enough that the kernel may cut
/// a packet whose TCP checksum is still to be computed.
const MORE: usize = 20;

/// Turns a packet that is too long into the answer which tells the MTU.
#[inline(always)]
pub(crate) fn too_big<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N, mtu: u32) -> Step {
    if !may_be_answered::<A, P, N>(packet, node) {
        return Step::drop(DropReason::TooBig);
    }
    let mut icmp = [0u8; 8];
    A::write_too_big(&mut icmp, mtu);
    send::<A, P, N, MORE>(packet, node, u64::from_ne_bytes(icmp))
}

/// Turns a packet into the answer that nobody serves its port. `long`: it has 20 bytes behind its IP header.
#[inline(always)]
pub(crate) fn unreachable<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    long: bool,
) -> Step {
    if !may_be_answered::<A, P, N>(packet, node) {
        return Step::drop(DropReason::NoBackend);
    }
    let [kind, code] = A::PORT_UNREACHABLE;
    let icmp = u64::from_ne_bytes([kind, code, 0, 0, 0, 0, 0, 0]);
    if long {
        send::<A, P, N, MORE>(packet, node, icmp)
    } else {
        send::<A, P, N, LEAST>(packet, node, icmp)
    }
}

/// `icmp`: the ICMP header without its checksum, as it lies in memory.
///
/// Functions of their own one after the other, so that their stack frames do not add up.
#[inline(always)]
fn send<A: Ip, P: Packet, N: Node<A>, const QUOTED: usize>(
    packet: &mut P,
    node: &N,
    icmp: u64,
) -> Step {
    let sum = quote::<A, P, QUOTED>(packet);
    if sum > u32::MAX as u64 {
        return Step::drop(DropReason::RewriteFailed);
    }
    write_headers::<A, P, N, QUOTED>(packet, node, icmp, sum as u32)
}

/// No error about an error, none about a fragment that is not the first (RFC 1122 section 3.2.2), none from nowhere.
#[inline(never)]
fn may_be_answered<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N) -> bool {
    let mut headers = Headers::<A>::new();
    headers.parse(packet).is_ok()
        && !matches!(headers.kind, Kind::ICMP_ERROR | Kind::LATER_FRAGMENT)
        && node
            .config()
            .is_some_and(|config| !sender::<A>(config).is_unset())
}

/// The address in whose name the node answers.
#[inline(always)]
fn sender<A: Ip>(config: &Config) -> &A {
    let settings = A::settings(config);
    if settings.node_addr.is_unset() {
        &settings.source_nat_addr
    } else {
        &settings.node_addr
    }
}

/// Moves the beginning of the IP packet behind where the ICMP header will be, and cuts the rest off. Returns the sum of
/// what it moved, or `u64::MAX` if the kernel refused.
#[inline(never)]
fn quote<A: Ip, P: Packet, const QUOTED: usize>(packet: &mut P) -> u64 {
    move_quoted::<A, P, QUOTED>(packet).unwrap_or(u64::MAX)
}

#[inline(always)]
fn move_quoted<A: Ip, P: Packet, const QUOTED: usize>(packet: &mut P) -> Result<u64, OutOfBounds> {
    let from = ETH_LEN as u32;
    let to = from + A::HEADER_LEN as u32 + 8;
    let mut frame = A::Frame::ZERO;
    let header = &mut frame.bytes_mut()[IP_AT..IP_AT + A::HEADER_LEN];
    let mut quoted = Frame::<QUOTED>::ZERO;
    let quoted = quoted.bytes_mut();
    packet.load_words(from, header)?;
    packet.load_words(from + A::HEADER_LEN as u32, quoted)?;
    packet.resize(to + (A::HEADER_LEN + QUOTED) as u32)?;
    packet.store_words(to, header, &[])?;
    packet.store_words(to + A::HEADER_LEN as u32, quoted, &[])?;
    let sum = checksum::sum(header) + checksum::sum(quoted);
    Ok(checksum::fold(sum) as u64)
}

/// Writes the Ethernet, IP and ICMP headers before what is quoted.
#[inline(never)]
fn write_headers<A: Ip, P: Packet, N: Node<A>, const QUOTED: usize>(
    packet: &mut P,
    node: &N,
    icmp: u64,
    quoted: u32,
) -> Step {
    let Some(config) = node.config() else {
        return Step::drop(DropReason::NoConfig);
    };
    let from = sender::<A>(config);
    let mut frame = A::Frame::ZERO;
    let frame = &mut frame.bytes_mut()[..IP_AT + A::HEADER_LEN];
    if packet.load_frame(frame).is_err() {
        return Step::drop(DropReason::RewriteFailed);
    }
    for i in LEAD..LEAD + 6 {
        frame.swap(i, i + 6);
    }
    let to = A::read(frame, IP_AT + A::SRC_AT);
    let payload = (8 + A::HEADER_LEN + QUOTED) as u16;
    A::write_header(&mut frame[IP_AT..], payload, A::ICMP, from, &to);

    let mut icmp = icmp.to_ne_bytes();
    let mut sum = checksum::sum(&icmp) + quoted as u64;
    if A::FAMILY == Family::V6 {
        sum += checksum::sum(from.as_bytes()) + checksum::sum(to.as_bytes());
        sum += payload.to_be() as u64 + (A::ICMP as u16).to_be() as u64;
    }
    let check = (!checksum::fold(sum)).to_ne_bytes();
    icmp[2] = check[0];
    icmp[3] = check[1];
    match packet
        .store_frame(frame)
        .and_then(|()| packet.store((ETH_LEN + A::HEADER_LEN) as u32, &icmp))
    {
        Ok(()) => Step::REFLECT,
        Err(OutOfBounds) => Step::drop(DropReason::RewriteFailed),
    }
}
