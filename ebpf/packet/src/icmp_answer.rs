//! Answers by ICMP error, built out of the packet itself and sent back to where it came from: 'fragmentation needed'
//! (RFC 1191) and 'packet too big' (RFC 4443 section 3.2) for one that is too long for its way, 'time exceeded' for one
//! that may make no hop more, 'port unreachable' for one that nobody serves.

use ebpf_abi::{Config, DropReason, Family};

use crate::{
    Ip, Node, OutOfBounds, Packet, checksum, icmp_error, icmp_limit,
    ip::{Aligned, ETH_LEN, Header},
    parse::{Headers, Kind, protocol},
    path::Origin,
    refuse::turn_macs,
    verdict::Step,
};

/// Bytes behind the quoted IP header that a sender needs, and all that a short datagram has.
const LEAST: usize = 8;
/// As many as a sender may need to know an SCTP association by (RFC 9260 section 10), and enough that the kernel may cut
/// a packet whose TCP checksum is still to be computed.
const MORE: usize = 20;

/// Which of this node's addresses an answer comes from.
#[derive(Clone, Copy)]
enum From {
    /// That on the uplink, if there is one.
    Uplink,
    /// That in the podCIDR: what another node takes out of the overlay must come from this node's pods.
    PodCidr,
}

impl From {
    #[inline(always)]
    fn towards(origin: Origin) -> Self {
        if matches!(origin, Origin::Overlay) {
            Self::PodCidr
        } else {
            Self::Uplink
        }
    }
}

/// What [`answerable`] says of a packet.
const NO: u32 = 0;
const SHORT: u32 = 1;
const LONG: u32 = 2;

/// Turns a packet that is too long into the answer which tells the MTU.
#[inline(always)]
pub(crate) fn too_big<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    mtu: u32,
    origin: Origin,
) -> Step {
    let from = From::towards(origin);
    if answerable::<A, P, N>(packet, node, from as u8) == NO {
        return Step::drop(DropReason::TooBig);
    }
    let mut icmp = [0u8; 8];
    A::write_too_big(&mut icmp, mtu);
    let step = send::<A, P, N, MORE>(packet, node, u64::from_ne_bytes(icmp), from);
    sent_back(packet, node, step, origin)
}

/// Turns a packet whose TTL or hop limit ends here into the answer that says so, as often as [`icmp_limit`] allows.
#[inline(always)]
pub(crate) fn time_exceeded<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    origin: Origin,
) -> Step {
    let from = From::towards(origin);
    let answerable = answerable::<A, P, N>(packet, node, from as u8);
    if answerable == NO || !icmp_limit::admits::<A, P, N>(packet, node) {
        return Step::drop(DropReason::TtlExceeded);
    }
    let [kind, code] = A::TIME_EXCEEDED;
    let icmp = u64::from_ne_bytes([kind, code, 0, 0, 0, 0, 0, 0]);
    let step = if answerable == LONG {
        send::<A, P, N, MORE>(packet, node, icmp, from)
    } else {
        send::<A, P, N, LEAST>(packet, node, icmp, from)
    };
    sent_back(packet, node, step, origin)
}

/// What came out of the overlay is answered by the overlay, everything else by the interface that it came in by.
#[inline(always)]
fn sent_back<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    step: Step,
    origin: Origin,
) -> Step {
    if matches!(origin, Origin::Overlay) && step == Step::REFLECT {
        icmp_error::send_own(packet, node)
    } else {
        step
    }
}

/// Turns a packet into the answer that nobody serves its port.
#[inline(always)]
pub(crate) fn unreachable<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N) -> Step {
    let [kind, code] = A::PORT_UNREACHABLE;
    let icmp = u64::from_ne_bytes([kind, code, 0, 0, 0, 0, 0, 0]);
    match answerable::<A, P, N>(packet, node, From::Uplink as u8) {
        NO => Step::drop(DropReason::NoBackend),
        LONG => send::<A, P, N, MORE>(packet, node, icmp, From::Uplink),
        _ => send::<A, P, N, LEAST>(packet, node, icmp, From::Uplink),
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
    from: From,
) -> Step {
    let sum = quote::<A, P, QUOTED>(packet);
    if sum > u32::MAX as u64 {
        return Step::drop(DropReason::RewriteFailed);
    }
    write_headers::<A, P, N, QUOTED>(packet, node, icmp, sum as u32, from as u8)
}

/// Whether a packet may be answered by an error, and how much there is to quote: no error about an error, none about a
/// fragment that is not the first (RFC 1122 section 3.2.2), none from nowhere.
#[inline(never)]
fn answerable<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N, from: u8) -> u32 {
    let mut headers = Headers::<A>::new();
    if headers.parse(packet).is_err()
        || matches!(headers.kind, Kind::ICMP_ERROR | Kind::LATER_FRAGMENT)
        || node
            .config()
            .is_none_or(|config| sender::<A>(config, from).is_unset())
    {
        return NO;
    }
    let known = headers.tuple().protocol;
    if known != protocol::UDP && known != A::ICMP && headers.end >= headers.l4_at + MORE as u32 {
        LONG
    } else {
        SHORT
    }
}

/// The address in whose name the node answers.
#[inline(always)]
fn sender<A: Ip>(config: &Config, from: u8) -> &A {
    let settings = A::settings(config);
    if from == From::PodCidr as u8 || settings.node_addr.is_unset() {
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
    let mut header = A::Header::ZERO;
    let header = header.ip_mut();
    let mut quoted = Aligned([0; QUOTED]);
    let quoted = &mut quoted.0;
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
    from: u8,
) -> Step {
    let Some(config) = node.config() else {
        return Step::drop(DropReason::NoConfig);
    };
    let from = sender::<A>(config, from);
    let mut header = A::Header::ZERO;
    let header = header.ip_mut();
    if packet.load_words(ETH_LEN as u32, header).is_err() || turn_macs(packet).is_err() {
        return Step::drop(DropReason::RewriteFailed);
    }
    let to = A::read(header, A::SRC_AT);
    let payload = (8 + A::HEADER_LEN + QUOTED) as u16;
    A::write_header(header, payload, A::ICMP, from, &to);

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
        .store_words(ETH_LEN as u32, header, &[])
        .and_then(|()| packet.store((ETH_LEN + A::HEADER_LEN) as u32, &icmp))
    {
        Ok(()) => Step::REFLECT,
        Err(OutOfBounds) => Step::drop(DropReason::RewriteFailed),
    }
}
