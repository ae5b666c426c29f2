//! ICMP errors about translated packets: what they quote is translated back, so that the sender knows it as its own.
//!
//! RFC 5508 section 4, RFC 4443: the quoted packet runs in the opposite direction of the error, so the entry that
//! translates it is that of its answers.

use ebpf_abi::{Config, ConnKey, DropReason};

use crate::{
    ChecksumField, Entry, Ip, Node, Packet, checksum, direct_return,
    forward::{Forward, Place, Way},
    ip::Header,
    parse::{Headers, protocol},
    path::Origin,
    verdict::Step,
    write::{Target, address_difference, checksum_at, covers_addresses, port_difference},
};

/// Translates an ICMP error, if it is about a tracked connection, and sends it its way.
///
/// Functions one after the other, so that the quoted and the outer headers are not on the stack together.
#[inline(always)]
pub(crate) fn translate<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    origin: Origin,
) -> Step {
    let mut change = Change::default();
    let icmp_at = icmp_at::<A, P>(packet);
    let code = if icmp_at == 0 {
        0
    } else {
        translate_quote(packet, node, &mut change, icmp_at)
    };
    match code {
        0 => send(packet, node, &change, origin as u8),
        HANDED_ON => Step::HAND_ON,
        reason => Step::drop_numbered(reason),
    }
}

/// Sends an ICMP error of this node's own its way.
#[inline(always)]
pub(crate) fn send_own<A: Ip, P: Packet, N: Node<A>>(packet: &mut P, node: &N) -> Step {
    send(packet, node, &Change::default(), Origin::Host as u8)
}

/// Which outer addresses an ICMP error must exchange for which; all unset if it is about no tracked connection.
#[derive(Default)]
struct Change<A> {
    old_src: A,
    new_src: A,
    old_dst: A,
    new_dst: A,
}

/// Translates the quoted packet. Returns 0, [`HANDED_ON`] or the number of a drop reason.
#[inline(never)]
fn translate_quote<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    change: &mut Change<A>,
    icmp_at: u32,
) -> u32 {
    let mut quote = Quote::<A>::at(icmp_at + 8);
    if !quote.read(packet) {
        return 0;
    }
    let mut new = ConnKey::default();
    match original(node, quote.tuple(), &mut new, change) {
        TRANSLATED => {}
        other => return other,
    }
    let difference = quote.write(packet, &new);
    let field = ChecksumField {
        pseudo_header: false,
        zero_is_none: false,
        family: A::FAMILY,
    };
    if difference > u32::MAX as u64
        || packet
            .add_to_checksum(icmp_at + 2, difference as u32, field)
            .is_err()
    {
        return DropReason::RewriteFailed as u32;
    }
    0
}

/// Results of [`original`] beside 0, no reason to drop anything: numbers, as the verifier takes enums apart.
const TRANSLATED: u32 = 1 << 30;
const HANDED_ON: u32 = 1 << 31;

/// What the quoted packet was before its translation; 0 if it was not translated.
#[inline(never)]
fn original<A: Ip, N: Node<A>>(
    node: &N,
    quoted: &ConnKey<A>,
    new: &mut ConnKey<A>,
    change: &mut Change<A>,
) -> u32 {
    let key = quoted.reversed();
    let Some(entry) = node.conn(&key) else {
        return 0;
    };
    if direct_return::is_handed_on(&entry) {
        return HANDED_ON;
    }
    *new = *entry.answers();
    *change = Change {
        old_src: key.src,
        new_src: new.dst,
        old_dst: key.dst,
        new_dst: new.src,
    };
    TRANSLATED
}

/// Where the ICMP header starts; 0 if the packet is malformed, which [`send`] then says.
#[inline(never)]
fn icmp_at<A: Ip, P: Packet>(packet: &P) -> u32 {
    let mut headers = Headers::<A>::new();
    match headers.parse(packet) {
        Ok(()) => headers.l4_at,
        Err(_) => 0,
    }
}

/// Sends the error its way, with the outer addresses exchanged.
#[inline(never)]
fn send<A: Ip, P: Packet, N: Node<A>>(
    packet: &mut P,
    node: &N,
    change: &Change<A>,
    origin: u8,
) -> Step {
    let Some(config) = node.config() else {
        return Step::drop(DropReason::NoConfig);
    };
    let mut headers = Headers::<A>::new();
    if let Err(reason) = headers.parse(packet) {
        return Step::drop(reason);
    }
    let mut answers = ConnKey::default();
    let translated = exchange(headers.tuple(), change, &mut answers);
    let way = Way::find(node, &answers.src);
    if translated && matches!(way.place, Place::Peer) {
        speak_for_router(config, headers.tuple(), &mut answers, origin);
    }
    let forward = Forward {
        config,
        target: translated.then_some(Target(&answers)),
        origin: Origin::of(origin),
        hands_on: false,
    };
    forward.send(packet, node, &mut headers, way)
}

/// Gives the answers to the error the exchanged addresses; `false` if there are none to exchange.
#[inline(never)]
fn exchange<A: Ip>(tuple: &ConnKey<A>, change: &Change<A>, answers: &mut ConnKey<A>) -> bool {
    // Field by field: a tuple that is made first and copied then would lie on the stack, and this is the deepest call.
    answers.src_port_be = tuple.dst_port_be;
    answers.dst_port_be = tuple.src_port_be;
    answers.protocol = tuple.protocol;
    let translated = !change.old_dst.is_unset();
    answers.dst = if translated && tuple.src == change.old_src {
        change.new_src
    } else {
        tuple.src
    };
    answers.src = if translated && tuple.dst == change.old_dst {
        change.new_dst
    } else {
        tuple.dst
    };
    translated
}

/// Gives an error that some router sent about what left in this node's name this node's address: the other node takes
/// nothing from this one that is not from here.
#[inline(never)]
fn speak_for_router<A: Ip>(
    config: &Config,
    tuple: &ConnKey<A>,
    answers: &mut ConnKey<A>,
    origin: u8,
) {
    let own = &A::settings(config).source_nat_addr;
    let came_here = matches!(Origin::of(origin), Origin::Network | Origin::Overlay);
    if came_here && answers.dst == tuple.src && !own.is_unset() {
        answers.dst = *own;
    }
}

/// A packet inside another one: that which an ICMP error quotes.
pub(crate) struct Quote<A: Ip> {
    header: A::Header,
    /// The first eight bytes of its transport header.
    transport: [u8; 8],
    ip_at: u32,
    l4_at: u32,
}

impl<A: Ip> Quote<A> {
    #[inline(always)]
    pub(crate) fn at(ip_at: u32) -> Self {
        Self {
            header: A::Header::ZERO,
            transport: [0; 8],
            ip_at,
            l4_at: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn tuple(&self) -> &ConnKey<A> {
        self.header.tuple()
    }

    /// Reads the quoted headers; `false` if too little is quoted or nothing there can be translated.
    #[inline(never)]
    pub(crate) fn read<P: Packet>(&mut self, packet: &P) -> bool {
        if packet.load_words(self.ip_at, self.header.ip_mut()).is_err() {
            return false;
        }
        let Ok(payload) = A::locate(packet, self.header.ip(), self.ip_at, true) else {
            return false;
        };
        self.l4_at = payload.at;
        self.header.tuple_mut().protocol = payload.protocol;
        !payload.later_fragment
            && packet.load(payload.at, &mut self.transport).is_ok()
            && self.read_ports()
    }

    #[inline(always)]
    fn read_ports(&mut self) -> bool {
        let transport = &self.transport;
        let tuple = self.header.tuple_mut();
        match tuple.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                tuple.src_port_be = u16::from_ne_bytes([transport[0], transport[1]]);
                tuple.dst_port_be = u16::from_ne_bytes([transport[2], transport[3]]);
            }
            icmp if icmp == A::ICMP => {
                let id = u16::from_ne_bytes([transport[4], transport[5]]);
                if transport[0] == A::ECHO_REQUEST {
                    tuple.src_port_be = id;
                } else if transport[0] == A::ECHO_REPLY {
                    tuple.dst_port_be = id;
                } else {
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// Writes the quoted packet with another tuple; returns the difference that it makes to the ICMP checksum, or
    /// `u64::MAX` if the kernel refused.
    #[inline(never)]
    fn write<P: Packet>(&mut self, packet: &mut P, new: &ConnKey<A>) -> u64 {
        let addresses = address_difference(self.tuple(), new);
        let ports = port_difference(self.tuple(), new);
        let Ok(transport) = self.write_ports(packet, new, addresses, ports) else {
            return u64::MAX;
        };
        let mut difference = checksum::add(checksum::add(addresses, ports), transport);

        let bytes = self.header.ip_mut();
        new.src.write(bytes, A::SRC_AT);
        new.dst.write(bytes, A::DST_AT);
        if let Some(at) = A::CHECKSUM_AT {
            let old = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            let check = checksum::apply(old, addresses);
            difference = checksum::add(difference, checksum::difference16(old, check));
            let check = check.to_ne_bytes();
            bytes[at] = check[0];
            bytes[at + 1] = check[1];
        }
        match packet.store_words(self.ip_at, bytes, &[]) {
            Ok(()) => difference as u64,
            Err(_) => u64::MAX,
        }
    }

    /// Writes ports or identifier and, if it is quoted, the transport checksum; returns the latter's difference.
    #[inline(always)]
    fn write_ports<P: Packet>(
        &mut self,
        packet: &mut P,
        new: &ConnKey<A>,
        addresses: u32,
        ports: u32,
    ) -> Result<u32, crate::OutOfBounds> {
        let protocol = self.tuple().protocol;
        let src = new.src_port_be.to_ne_bytes();
        let dst = new.dst_port_be.to_ne_bytes();
        let Some(check_at) = checksum_at::<A>(protocol) else {
            if protocol == protocol::SCTP {
                // Its checksum is over the whole packet, of which this is a piece: nobody can check it.
                packet.store(self.l4_at, &[src[0], src[1], dst[0], dst[1]])?;
            }
            return Ok(0);
        };
        if protocol == A::ICMP {
            packet.store(self.l4_at + 4, &[src[0] | dst[0], src[1] | dst[1]])?;
        } else {
            packet.store(self.l4_at, &[src[0], src[1], dst[0], dst[1]])?;
        }
        let mut field = [0u8; 2];
        let at = self.l4_at + check_at;
        if packet.load(at, &mut field).is_err() {
            return Ok(0);
        }
        let old = u16::from_ne_bytes(field);
        if protocol == protocol::UDP && old == 0 {
            return Ok(0);
        }
        let mut change = ports;
        if covers_addresses::<A>(protocol) {
            change = checksum::add(change, addresses);
        }
        let mut check = checksum::apply(old, change);
        if protocol == protocol::UDP && check == 0 {
            check = 0xffff;
        }
        packet.store(at, &check.to_ne_bytes())?;
        Ok(checksum::difference16(old, check))
    }
}
