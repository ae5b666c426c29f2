//! Session affinity: `affinity_v1`, an LRU hash. A client that came within the service's timeout goes where it went.

use crate::{Addr6, Plain};

/// Key of `affinity_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct AffinityKey {
    /// The client: an IPv6 address, an IPv4 address in the first four bytes, or the cookie of a network namespace in the
    /// first eight, as it lies in memory.
    pub client: Addr6,
    /// See [`affinity_client`].
    pub kind: u32,
    pub service_id: u32,
}

// SAFETY: a four-byte aligned address and two words.
unsafe impl Plain for AffinityKey {}

/// Values of [`AffinityKey::kind`].
pub mod affinity_client {
    /// A socket of a network namespace, which is a pod or the host: its address is not known when it connects.
    pub const NETNS: u32 = 1;
    /// As `AF_INET`.
    pub const IPV4: u32 = 2;
    /// As `AF_INET6`.
    pub const IPV6: u32 = 10;
}

/// Value of `affinity_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Affinity {
    /// When the client last opened a connection, by `CLOCK_MONOTONIC_COARSE`, in nanoseconds.
    pub last_ns: u64,
    pub backend_id: u32,
    /// The backend's epoch then.
    pub backend_epoch: u32,
}

// SAFETY: a double word and two words.
unsafe impl Plain for Affinity {}
