//! The outer UDP checksum without reading the payload (Documentation/networking/checksum-offloads.rst, 'LCO: Local
//! Checksum Offload').
//!
//! What a valid transport checksum covers sums up to the complement of its pseudo header, whatever the payload: whether
//! the field is filled in already or left to the device. So the outer sum follows from headers. A packet whose own
//! checksum is wrong gets an outer one that is wrong: it is lost one header earlier.

use ebpf_abi::{Family, Peer, overlay_header as outer};

use crate::{
    Ip, Packet, checksum,
    ip::{ETH_LEN, Header},
    parse::{Headers, Kind, protocol},
};

/// Whether the sum over the packet follows from its headers. Not for fragments, whose checksum is of the whole; not for
/// what is yet to be cut, since the device gives every segment the same outer checksum.
#[inline(always)]
pub(crate) fn follows_from_headers<A: Ip, P: Packet>(packet: &P, headers: &Headers<A>) -> bool {
    // An IPv4 header with options is covered by its own checksum, IPv6 extension headers are by none.
    let plain = A::CHECKSUM_AT.is_some() || headers.l4_at as usize == ETH_LEN + A::HEADER_LEN;
    if !plain
        || !matches!(headers.kind, Kind::WHOLE)
        || packet.segment_payload() != 0
        || packet.length() != headers.end
    {
        return false;
    }
    match headers.tuple().protocol {
        protocol::TCP => true,
        protocol::UDP => {
            let mut check = [0u8; 2];
            packet.load(headers.l4_at + 6, &mut check).is_ok() && check != [0, 0]
        }
        other => other == A::ICMP,
    }
}

/// The outer UDP checksum of a packet whose headers are written and of which [`follows_from_headers`] holds; never 0,
/// which would mean that there is none. Words are read in network order, the checksum is in host order.
#[inline(never)]
pub(crate) fn compute<A: Ip>(headers: &Headers<A>, peer: &Peer, source_port: u16) -> u32 {
    let ip_len = if peer.underlay_family == Family::V4 as u8 {
        outer::IPV4_LEN
    } else {
        outer::IPV6_LEN
    };
    let inner_len = headers.end - ETH_LEN as u32;
    let udp_len = inner_len + peer.header_len as u32 - ip_len as u32;
    // The length stands in the UDP header and in the pseudo header.
    let mut sum = peer.checksum_sum as u64 + udp_len as u64 * 2 + source_port as u64;
    sum += u16::from_be(A::ETHERTYPE) as u64;

    let header = headers.header.ip();
    let protocol = headers.tuple().protocol as u64;
    if A::CHECKSUM_AT.is_none() {
        // The addresses and the length are in the header and, complemented, in what the transport checksum covers.
        sum += half(header, 0) + half(header, 2) + half(header, 6);
        sum += !(protocol as u16) as u64;
    } else if headers.tuple().protocol != A::ICMP {
        // A header with its checksum sums up to nothing; so does ICMP, which has no pseudo header.
        let transport_len = headers.end - headers.l4_at;
        let mut pseudo = protocol + transport_len as u64;
        for at in [A::SRC_AT, A::SRC_AT + 2, A::DST_AT, A::DST_AT + 2] {
            pseudo += half(header, at);
        }
        sum += !checksum::fold(pseudo) as u64;
    }
    match !checksum::fold(sum) {
        0 => 0xffff,
        check => check as u32,
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u64 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]]) as u64
}
