//! Frontends and services: `frontend4_v2`, `frontend6_v2`, `range4_v1`, `range6_v1`, `service_v2`, `slot_v1`,
//! `cursor_v1`.
//!
//! A frontend is an address that clients ask for; several frontends (ClusterIP, NodePort on each address) share one
//! service. One that is reached from outside names two: with the external traffic policy `Local`, clients of the cluster
//! take another set of backends than clients outside. A service is a set of backends of one address family: `slot_v1[slot_base .. slot_base + slot_count]`
//! holds their ids. Replacing the service's value in its hash map is the one atomic step in which a new set becomes
//! visible; its slots were written before, in a range that no visible service uses. Where little changes the slots in use
//! are overwritten one by one, each by the id of an active backend of the new set: readers must expect that.

use crate::{Address, Plain};

/// Key of `frontend4_v2` and `frontend6_v2`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct FrontendKey<A> {
    pub addr: A,
    pub port_be: u16,
    /// IANA protocol number.
    pub protocol: u8,
    pub pad: u8,
}

// SAFETY: four-byte aligned address, then four bytes: no implicit padding.
unsafe impl<A: Address> Plain for FrontendKey<A> {}

/// Value of `frontend4_v2` and `frontend6_v2`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Frontend {
    /// Index into `service_v2` and `cursor_v1`, for clients that come from the network.
    pub service_id: u32,
    /// The same for pods and processes of this node.
    pub inside_id: u32,
    /// See [`frontend_flag`].
    pub flags: u32,
}

// SAFETY: three words.
unsafe impl Plain for Frontend {}

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// Reached from outside the cluster (NodePort): a backend on another node needs source NAT, so that its answer
    /// returns through this node.
    pub const EXTERNAL: u32 = 1;
    /// Only sources that `range4_v1` or `range6_v1` hold for the frontend's `service_id` may reach it.
    pub const SOURCE_RANGES: u32 = 1 << 1;
    /// On a loopback address: for sockets in the host's network namespace alone, never for a packet.
    pub const LOOPBACK: u32 = 1 << 2;
}

/// Key of `range4_v1` and `range6_v1`, LPM tries: a prefix of sources that a service admits
/// (`loadBalancerSourceRanges`). A key that is there admits.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct RangeKey<A> {
    /// In bits, the 32 of the service id included.
    pub prefix_len: u32,
    /// In network byte order, so that a trie compares it whole.
    pub service_id_be: u32,
    pub addr: A,
}

// SAFETY: two words and a four-byte aligned address.
unsafe impl<A: Address> Plain for RangeKey<A> {}

/// The id in [`RangeKey`] that no service has: destinations to which pods keep their own address, though these lie
/// outside of the cluster and masquerade is on.
pub const KEEPS_SOURCE: u32 = 0;

impl<A: Address> RangeKey<A> {
    /// The prefix of `len` bits at `addr`, for one service.
    #[inline(always)]
    pub const fn new(service_id: u32, addr: A, len: u32) -> Self {
        Self {
            prefix_len: 32 + len,
            service_id_be: service_id.to_be(),
            addr,
        }
    }
}

/// Value of `service_v2`, by service id.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Service {
    /// First index in `slot_v1`.
    pub slot_base: u32,
    /// Number of slots; 0 means that the service has no backend. A backend may have several: its share of the
    /// connections.
    pub slot_count: u32,
    /// With session affinity: first index in `slot_v1` of the service's backend ids, each once and in rising order, by
    /// which a program finds out whether a client's backend still belongs to the service.
    pub member_base: u32,
    /// Their number; 0 without session affinity.
    pub member_count: u32,
    /// See [`service_flag`].
    pub flags: u32,
    /// How long after its last new connection a client goes to the same backend, in seconds; 0: no session affinity.
    pub affinity_seconds: u32,
}

// SAFETY: six words.
unsafe impl Plain for Service {}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// While there is no slot packets are dropped and not refused: the traffic policy is `Local`, and other nodes have
    /// endpoints.
    pub const DROP_IF_EMPTY: u32 = 1;
    /// A random slot, in place of the next one.
    pub const RANDOM: u32 = 1 << 1;
    /// The slot of the client's hash: the slots are a Maglev table, which is the same on every node.
    pub const MAGLEV: u32 = 1 << 2;
}
