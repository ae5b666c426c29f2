//! Frontends and services: `frontend4_v1`, `frontend6_v1`, `service_v1`, `slot_v1`, `cursor_v1`.
//!
//! A frontend is an address that clients ask for; several frontends (ClusterIP, NodePort on each address) share one
//! service. A service is a set of backends of one address family: `slot_v1[slot_base .. slot_base + slot_count]`
//! holds their ids. Replacing the service's value in its hash map is the one atomic step in which a new set becomes
//! visible; its slots were written before, in a range that no visible service uses.

use crate::{Address, Plain};

/// Key of `frontend4_v1` and `frontend6_v1`.
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

/// Value of `frontend4_v1` and `frontend6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Frontend {
    /// Index into `service_v1` and `cursor_v1`.
    pub service_id: u32,
    /// See [`frontend_flag`].
    pub flags: u32,
}

// SAFETY: two words.
unsafe impl Plain for Frontend {}

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// Reached from outside the cluster (NodePort): a backend on another node needs source NAT, so that its answer
    /// returns through this node.
    pub const EXTERNAL: u32 = 1;
}

/// Value of `service_v1`, by service id.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Service {
    /// First index in `slot_v1`.
    pub slot_base: u32,
    /// Number of slots; 0 means that the service has no backend.
    pub slot_count: u32,
    /// Bits are yet to be given; zero.
    pub flags: u32,
    pub pad: u32,
}

// SAFETY: four words.
unsafe impl Plain for Service {}
