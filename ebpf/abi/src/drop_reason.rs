//! Why a packet was dropped: the number is the index of `drop_v1`, the name is the metric's label and the log's word.

use crate::Plain;

/// Value of `drop_v1`, an array per CPU indexed by [`DropReason`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

// SAFETY: two double words.
unsafe impl Plain for Counter {}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal => $label:literal,)*) => {
        /// Numbered, append-only: a number is never given twice and never means something else.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum DropReason { $($(#[$doc])* $name = $number,)* }

        impl DropReason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The metric's label and the log's word.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// A header is shorter than its protocol says, or a length field contradicts the packet.
    Malformed = 1 => "malformed",
    /// The service has no backend, or its address no such port, and the packet is none that can be refused.
    NoBackend = 2 => "no_backend",
    /// The connection table is full: the new connection is refused, the old ones stay.
    ConnTableFull = 3 => "conn_table_full",
    /// No source port was free for source NAT.
    NoNatPort = 4 => "no_nat_port",
    /// The packet is longer than the way to its destination allows.
    TooBig = 5 => "too_big",
    /// A later fragment whose first fragment was not seen.
    FragmentUnknown = 6 => "fragment_unknown",
    /// The TTL or hop limit ran out.
    TtlExceeded = 7 => "ttl_exceeded",
    /// Overlay packet from an address that is no known peer, or for a source outside that peer's subnet.
    OverlayUnknownPeer = 8 => "overlay_unknown_peer",
    /// Overlay packet for an address that is not on this node.
    OverlayNotLocal = 9 => "overlay_not_local",
    /// Overlay packet with another VNI or malformed VXLAN header.
    OverlayBadHeader = 10 => "overlay_bad_header",
    /// The kernel refused to change the packet's length or to write to it.
    RewriteFailed = 11 => "rewrite_failed",
    /// An answer came for source NAT, but no tracked connection waits for it.
    NoConnection = 12 => "no_connection",
    /// The route names a peer that the peer array does not hold.
    NoPeer = 13 => "no_peer",
    /// The node's configuration is not there yet.
    NoConfig = 14 => "no_config",
    /// The underlay marked congestion on an overlay packet whose sender could not take notice of a mark (RFC 6040
    /// section 4.2): the loss tells it.
    OverlayCongestion = 15 => "overlay_congestion",
    /// The Service admits other sources only (`loadBalancerSourceRanges`).
    SourceNotAllowed = 16 => "source_not_allowed",
    /// The traffic policy is `Local`, and only other nodes have backends of the service.
    NoLocalBackend = 17 => "no_local_backend",
}
