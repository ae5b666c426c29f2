//! The answer to a packet that asks a service's address for what is not there: a TCP reset (RFC 9293 section 3.10.7.1),
//! an ICMP 'port unreachable', and to a ping its reply. All are the packet itself, turned round.
//!
//! A client that hears nothing tries for minutes; one that is refused knows at once.

use core::mem::swap;

use ebpf_abi::{DropReason, endpoint_flag};

use crate::{
    ChecksumField, Ip, Node, OutOfBounds, Packet, checksum,
    forward::Way,
    icmp_answer,
    ip::{ETH_LEN, Header},
    parse::{self, Headers, Kind, protocol, tcp},
    path::Origin,
    verdict::Step,
};

/// TTL of what this node sends itself.
const TTL: u8 = 64;
const TCP_LEN: usize = 20;

/// What a packet is answered with. Numbers: see [`Step`].
const NOTHING: u32 = 0;
const RESET: u32 = 1;
const REPLY: u32 = 2;
const UNREACHABLE: u32 = 3;

/// Whether a packet to a service's address that is for none of its frontends is to be refused, or a ping to be answered.
#[inline(always)]
pub(crate) fn concerns<A: Ip>(headers: &Headers<A>, way: &Way, origin: Origin) -> bool {
    // From outside nobody should ask for a ClusterIP: the host's stack says what becomes of it.
    let refused = way.flags & endpoint_flag::CLUSTER_IP != 0 && !matches!(origin, Origin::Network);
    // An echo request has its identifier in the source port.
    let ping = headers.tuple().protocol == A::ICMP
        && matches!(headers.kind, Kind::WHOLE)
        && headers.tuple().dst_port_be == 0;
    refused || (ping && way.flags & endpoint_flag::VIP != 0)
}

/// Turns the packet into the answer.
///
/// Functions of their own one after the other, so that their stack frames do not add up.
#[inline(always)]
pub(crate) fn answer<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    origin: Origin,
) -> Step {
    let step = match what::<A, P>(packet) {
        RESET => reset::<A, P>(packet),
        REPLY => reply::<A, P>(packet),
        UNREACHABLE => icmp_answer::unreachable::<A, P, N>(packet, node),
        _ => Step::drop(DropReason::NoBackend),
    };
    // What the host sent it must receive, and not send once more.
    if matches!(origin, Origin::Host) && step == Step::REFLECT {
        Step::TO_HOST
    } else {
        step
    }
}

#[inline(never)]
fn what<A: Ip, P: Packet>(packet: &P) -> u32 {
    let mut headers = Headers::<A>::new();
    if headers.parse(packet).is_err() || matches!(headers.kind, Kind::ICMP_ERROR) {
        return NOTHING;
    }
    let whole = matches!(headers.kind, Kind::WHOLE);
    let known = headers.tuple().protocol;
    if known == protocol::TCP {
        // A reset is not answered by a reset.
        return if whole && headers.tcp_flags & tcp::RST == 0 {
            RESET
        } else {
            NOTHING
        };
    }
    if known == A::ICMP {
        let mut kind = [0u8; 2];
        let loaded = packet.load(headers.l4_at, &mut kind).is_ok();
        return if whole && loaded && kind[0] == A::ECHO_REQUEST {
            REPLY
        } else {
            NOTHING
        };
    }
    UNREACHABLE
}

/// A segment as its reset needs it.
struct Segment<A> {
    src: A,
    dst: A,
    /// The first 16 bytes of the TCP header: ports, numbers, offset and flags.
    tcp: [u8; 16],
    /// What the segment takes of the sequence space.
    len: u32,
}

#[inline(never)]
fn reset<A: Ip, P: Packet>(packet: &mut P) -> Step {
    let mut segment = Segment::<A> {
        src: A::default(),
        dst: A::default(),
        tcp: [0; 16],
        len: 0,
    };
    if !read(packet, &mut segment) {
        return Step::drop(DropReason::Malformed);
    }
    if write(packet, &segment) {
        Step::REFLECT
    } else {
        Step::drop(DropReason::RewriteFailed)
    }
}

#[inline(never)]
fn read<A: Ip, P: Packet>(packet: &P, segment: &mut Segment<A>) -> bool {
    let mut headers = Headers::<A>::new();
    if headers.parse(packet).is_err()
        || parse::load(packet, headers.l4_at, &mut segment.tcp).is_err()
    {
        return false;
    }
    segment.src = headers.tuple().src;
    segment.dst = headers.tuple().dst;
    let flags = headers.tcp_flags;
    let payload = headers.end - ETH_LEN as u32 - headers.header_len;
    segment.len = payload + (flags & tcp::SYN != 0) as u32 + (flags & tcp::FIN != 0) as u32;
    true
}

#[inline(never)]
fn write<A: Ip, P: Packet>(packet: &mut P, segment: &Segment<A>) -> bool {
    turn_into_reset(packet, segment).is_ok()
}

#[inline(always)]
fn turn_into_reset<A: Ip, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
) -> Result<(), OutOfBounds> {
    turn_macs(packet)?;
    let mut header = A::Header::ZERO;
    let ip = header.ip_mut();
    let len = TCP_LEN as u16;
    A::write_header(ip, len, protocol::TCP, &segment.dst, &segment.src);
    let tcp = reset_header(segment);
    packet.resize((ETH_LEN + A::HEADER_LEN + TCP_LEN) as u32)?;
    packet.store_words(ETH_LEN as u32, ip, &[])?;
    packet.store((ETH_LEN + A::HEADER_LEN) as u32, &tcp)
}

#[inline(always)]
fn reset_header<A: Ip>(segment: &Segment<A>) -> [u8; TCP_LEN] {
    let asked = &segment.tcp;
    let mut tcp = [0u8; TCP_LEN];
    tcp[..2].copy_from_slice(&asked[2..4]);
    tcp[2..4].copy_from_slice(&asked[..2]);
    // Length of the header, in words of four bytes.
    tcp[12] = 5 << 4;
    if asked[13] & tcp::ACK != 0 {
        tcp[4..8].copy_from_slice(&asked[8..12]);
        tcp[13] = tcp::RST;
    } else {
        let seq = u32::from_be_bytes([asked[4], asked[5], asked[6], asked[7]]);
        let ack = seq.wrapping_add(segment.len);
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[13] = tcp::RST | tcp::ACK;
    }
    let mut sum = checksum::sum(&tcp);
    sum += checksum::sum(segment.src.as_bytes()) + checksum::sum(segment.dst.as_bytes());
    sum += (TCP_LEN as u16).to_be() as u64 + (protocol::TCP as u16).to_be() as u64;
    let check = (!checksum::fold(sum)).to_ne_bytes();
    tcp[16] = check[0];
    tcp[17] = check[1];
    tcp
}

/// Turns an echo request into its reply.
#[inline(never)]
fn reply<A: Ip, P: Packet>(packet: &mut P) -> Step {
    let mut headers = Headers::<A>::new();
    if headers.parse(packet).is_err() {
        return Step::drop(DropReason::Malformed);
    }
    match turn_echo(packet, &mut headers) {
        Ok(()) => Step::REFLECT,
        Err(OutOfBounds) => Step::drop(DropReason::RewriteFailed),
    }
}

#[inline(always)]
fn turn_echo<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &mut Headers<A>,
) -> Result<(), OutOfBounds> {
    turn_macs(packet)?;
    headers.set_ttl(packet, TTL);
    // Exchanged addresses change no sum.
    let tuple = headers.tuple_mut();
    swap(&mut tuple.src, &mut tuple.dst);
    packet.store_words(ETH_LEN as u32, headers.header.ip(), &[])?;
    packet.store(headers.l4_at, &[A::ECHO_REPLY, 0])?;
    let [old, new] = [A::ECHO_REQUEST, A::ECHO_REPLY].map(|kind| u16::from_ne_bytes([kind, 0]));
    let field = ChecksumField {
        pseudo_header: false,
        zero_is_none: false,
        family: A::FAMILY,
    };
    packet.add_to_checksum(headers.l4_at + 2, checksum::difference16(old, new), field)
}

/// Turns the packet round on its link.
#[inline(always)]
pub(crate) fn turn_macs<P: Packet>(packet: &mut P) -> Result<(), OutOfBounds> {
    let mut macs = [0u8; 12];
    packet.load(0, &mut macs)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    packet.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f])
}
