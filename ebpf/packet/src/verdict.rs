//! What becomes of a packet.

use ebpf_abi::DropReason;

use crate::Packet;

/// What becomes of a packet; the programs turn it into the helper call that does it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// On to the host's stack, unchanged.
    Pass,
    /// Dropped and counted.
    Drop(DropReason),
    /// Into the pod whose host side has this interface index.
    DeliverToPod { ifindex: u32 },
    /// Received by the host on its own interface (`fairlead0`).
    ToHost,
    /// Out of the uplink; the neighbour is the packet's destination, or the underlay address of this peer if not 0.
    ToNetwork { next_hop_peer: u32 },
    /// Out of this device: the kernel's, which encapsulates it, or the link of a pod before which packets wait.
    ToDevice { ifindex: u32 },
    /// Back out of the interface on which it arrived (an ICMP answer to its sender).
    Reflect,
    /// Out of this interface as it is: its Ethernet header is written. Only [`crate::from_device`] says so.
    Transmit { ifindex: u32 },
}

/// What a stage of the path says: a verdict, or which stage comes next.
///
/// Stages are functions of their own in the eBPF object, called one after the other, so that their stack frames do
/// not add up. A function's result must fit one register there, and the verifier rejects copies of a payload that only
/// some variants of an enum have: so this is a number, a tag above 32 bits of payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub(crate) struct Step(pub(crate) u64);

/// What the tag of a [`Step`] says when it is no verdict.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    Done,
    /// The packet is for a service and not tracked yet.
    OpenService,
    /// The packet leaves the cluster, is not tracked yet and must get the node's address.
    OpenMasquerade,
    /// The packet goes to a pod from the port of a living connection through a service to the same pod.
    OpenDirect,
    /// The packet is an ICMP error: what it quotes decides.
    IcmpError,
    /// Too long for the way: tell the sender the MTU in the payload, in bytes.
    TooBig,
    /// The packet may make no hop more: tell the sender.
    TimeExceeded,
    /// The packet asks a service's address for what is not there: tell the sender, or answer its ping.
    Refuse,
    /// The overlay's headers are off, IPv4 was inside: see [`Step::outer_ecn`] and [`Step::sender`].
    Inner4,
    /// The same with IPv6 inside.
    Inner6,
    /// The packet is the overlay's.
    Overlay,
    /// Another node hands on what arrived there: see [`crate::direct_return`], [`Step::inner_at`] and [`Step::is_ipv6`].
    Labelled,
    /// The packet is to be handed on to another node.
    HandOn,
}

/// Of the payload of a packet that came out of the overlay; the peer's id takes the rest, which is far smaller.
const ECN_BITS: u32 = 2;

// Verdicts, then what is none.
const PASS: u64 = 0;
const DROP: u64 = 1;
const POD: u64 = 2;
const HOST: u64 = 3;
const NETWORK: u64 = 4;
const DEVICE: u64 = 5;
const REFLECT: u64 = 6;
const TRANSMIT: u64 = 7;
const FIRST_NEXT: u64 = 8;
const ICMP_ERROR: u64 = 8;
const TOO_BIG: u64 = 9;
const INNER4: u64 = 10;
const INNER6: u64 = 11;
const OPEN_SERVICE: u64 = 12;
const OPEN_MASQUERADE: u64 = 13;
const OPEN_DIRECT: u64 = 14;
const REFUSE: u64 = 15;
const TIME_EXCEEDED: u64 = 16;
const OVERLAY: u64 = 17;
const LABELLED: u64 = 18;
const HAND_ON: u64 = 19;

impl Step {
    pub(crate) const PASS: Self = Self::of(PASS, 0);
    pub(crate) const TO_HOST: Self = Self::of(HOST, 0);
    pub(crate) const REFLECT: Self = Self::of(REFLECT, 0);
    pub(crate) const ICMP_ERROR: Self = Self::of(ICMP_ERROR, 0);
    pub(crate) const OPEN_SERVICE: Self = Self::of(OPEN_SERVICE, 0);
    pub(crate) const OPEN_MASQUERADE: Self = Self::of(OPEN_MASQUERADE, 0);
    pub(crate) const OPEN_DIRECT: Self = Self::of(OPEN_DIRECT, 0);
    pub(crate) const REFUSE: Self = Self::of(REFUSE, 0);
    pub(crate) const TIME_EXCEEDED: Self = Self::of(TIME_EXCEEDED, 0);
    pub(crate) const OVERLAY: Self = Self::of(OVERLAY, 0);
    pub(crate) const HAND_ON: Self = Self::of(HAND_ON, 0);

    #[inline(always)]
    const fn of(tag: u64, payload: u32) -> Self {
        Self((tag << 32) | payload as u64)
    }

    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self::of(DROP, reason as u32)
    }

    /// A drop by its reason's number.
    #[inline(always)]
    pub(crate) const fn drop_numbered(reason: u32) -> Self {
        Self::of(DROP, reason)
    }

    #[inline(always)]
    pub(crate) const fn to_pod(ifindex: u32) -> Self {
        Self::of(POD, ifindex)
    }

    #[inline(always)]
    pub(crate) const fn to_network(next_hop_peer: u32) -> Self {
        Self::of(NETWORK, next_hop_peer)
    }

    #[inline(always)]
    pub(crate) const fn to_device(ifindex: u32) -> Self {
        Self::of(DEVICE, ifindex)
    }

    #[inline(always)]
    pub(crate) const fn transmit(ifindex: u32) -> Self {
        Self::of(TRANSMIT, ifindex)
    }

    #[inline(always)]
    pub(crate) const fn too_big(mtu: u32) -> Self {
        Self::of(TOO_BIG, mtu)
    }

    #[inline(always)]
    pub(crate) const fn inner4(ecn: u8, peer_id: u32) -> Self {
        Self::of(INNER4, peer_id << ECN_BITS | ecn as u32)
    }

    #[inline(always)]
    pub(crate) const fn inner6(ecn: u8, peer_id: u32) -> Self {
        Self::of(INNER6, peer_id << ECN_BITS | ecn as u32)
    }

    /// A packet that another node hands on starts at `at`.
    #[inline(always)]
    pub(crate) const fn labelled(at: u32, ipv6: bool) -> Self {
        Self::of(LABELLED, at << 1 | ipv6 as u32)
    }

    /// The same of its payload.
    #[inline(always)]
    pub(crate) const fn of_labelled(payload: u32) -> Self {
        Self::of(LABELLED, payload)
    }

    /// Of what is handed on: where it starts.
    #[inline(always)]
    pub(crate) const fn inner_at(self) -> u32 {
        self.payload() >> 1
    }

    /// Of what is handed on: its family.
    #[inline(always)]
    pub(crate) const fn is_ipv6(self) -> bool {
        self.payload() & 1 != 0
    }

    /// Of what came out of the overlay: the ECN field of the outer header.
    #[inline(always)]
    pub(crate) const fn outer_ecn(self) -> u32 {
        self.payload() & ((1 << ECN_BITS) - 1)
    }

    /// Of what came out of the overlay: the peer that sent it.
    #[inline(always)]
    pub(crate) const fn sender(self) -> u32 {
        self.payload() >> ECN_BITS
    }

    #[inline(always)]
    pub(crate) const fn payload(self) -> u32 {
        self.0 as u32
    }

    /// The same, of which the verifier has forgotten what it knew: see [`Packet::forget_range`].
    #[inline(always)]
    pub(crate) fn forgotten<P: Packet>(self, packet: &P) -> Self {
        let tag = packet.forget_range((self.0 >> 32) as u32);
        Self((tag as u64) << 32 | packet.forget_range(self.payload()) as u64)
    }

    #[inline(always)]
    pub(crate) const fn is_drop(self) -> bool {
        self.0 >> 32 == DROP
    }

    #[inline(always)]
    pub(crate) const fn is_to_device(self) -> bool {
        self.0 >> 32 == DEVICE
    }

    #[inline(always)]
    pub(crate) const fn is_to_network(self) -> bool {
        self.0 >> 32 == NETWORK
    }

    /// Whether it is a verdict: most are, so that this is asked before anything else.
    #[inline(always)]
    pub(crate) const fn is_verdict(self) -> bool {
        self.0 < FIRST_NEXT << 32
    }

    #[inline(always)]
    pub(crate) const fn next(self) -> Next {
        match self.0 >> 32 {
            ICMP_ERROR => Next::IcmpError,
            TOO_BIG => Next::TooBig,
            INNER4 => Next::Inner4,
            INNER6 => Next::Inner6,
            OPEN_SERVICE => Next::OpenService,
            OPEN_MASQUERADE => Next::OpenMasquerade,
            OPEN_DIRECT => Next::OpenDirect,
            REFUSE => Next::Refuse,
            TIME_EXCEEDED => Next::TimeExceeded,
            OVERLAY => Next::Overlay,
            LABELLED => Next::Labelled,
            HAND_ON => Next::HandOn,
            _ => Next::Done,
        }
    }

    /// The verdict of a last stage. A step that is none comes of a connection that was opened for this packet and is
    /// gone again: another processor removed it.
    #[inline(always)]
    pub(crate) fn verdict(self) -> Verdict {
        let payload = self.payload();
        match self.0 >> 32 {
            PASS => Verdict::Pass,
            DROP => Verdict::Drop(reason(payload)),
            POD => Verdict::DeliverToPod { ifindex: payload },
            HOST => Verdict::ToHost,
            NETWORK => Verdict::ToNetwork {
                next_hop_peer: payload,
            },
            REFLECT => Verdict::Reflect,
            DEVICE => Verdict::ToDevice { ifindex: payload },
            TRANSMIT => Verdict::Transmit { ifindex: payload },
            _ => Verdict::Drop(DropReason::NoConnection),
        }
    }
}

/// The reason with this number; an unknown number counts as malformed.
#[inline(always)]
const fn reason(number: u32) -> DropReason {
    match number {
        2 => DropReason::NoBackend,
        3 => DropReason::ConnTableFull,
        4 => DropReason::NoNatPort,
        5 => DropReason::TooBig,
        6 => DropReason::FragmentUnknown,
        7 => DropReason::TtlExceeded,
        8 => DropReason::OverlayUnknownPeer,
        9 => DropReason::OverlayNotLocal,
        10 => DropReason::OverlayBadHeader,
        11 => DropReason::RewriteFailed,
        12 => DropReason::NoConnection,
        13 => DropReason::NoPeer,
        14 => DropReason::NoConfig,
        15 => DropReason::OverlayCongestion,
        16 => DropReason::SourceNotAllowed,
        17 => DropReason::NoLocalBackend,
        _ => DropReason::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_survives_its_number() {
        for &r in DropReason::ALL {
            assert_eq!(Step::drop(r).verdict(), Verdict::Drop(r));
            assert_eq!(Step::drop(r).next(), Next::Done);
            assert!(Step::drop(r).is_verdict());
        }
    }

    #[test]
    fn a_step_keeps_its_payload() {
        assert_eq!(Step::PASS.verdict(), Verdict::Pass);
        assert_eq!(Step::TO_HOST.verdict(), Verdict::ToHost);
        assert_eq!(Step::REFLECT.verdict(), Verdict::Reflect);
        assert_eq!(
            Step::to_pod(u32::MAX).verdict(),
            Verdict::DeliverToPod { ifindex: u32::MAX }
        );
        assert_eq!(
            Step::to_network(7).verdict(),
            Verdict::ToNetwork { next_hop_peer: 7 }
        );
        assert_eq!(
            Step::to_device(9).verdict(),
            Verdict::ToDevice { ifindex: 9 }
        );
        assert_eq!(
            Step::transmit(7).verdict(),
            Verdict::Transmit { ifindex: 7 }
        );
        assert_eq!(Step::ICMP_ERROR.next(), Next::IcmpError);
        assert_eq!(
            (Step::too_big(1450).next(), Step::too_big(1450).payload()),
            (Next::TooBig, 1450)
        );
        let inner = Step::inner4(3, 8191);
        assert_eq!(
            (inner.next(), inner.outer_ecn(), inner.sender()),
            (Next::Inner4, 3, 8191)
        );
        let inner = Step::inner6(0, 1);
        assert_eq!(
            (inner.next(), inner.outer_ecn(), inner.sender()),
            (Next::Inner6, 0, 1)
        );
        assert!(!Step::ICMP_ERROR.is_verdict() && Step::REFLECT.is_verdict());
    }
}
