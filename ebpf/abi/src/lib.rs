//! The contract between user space and the kernel: every type that crosses, every map's name, every drop reason.
//!
//! All types are `#[repr(C)]` with explicit padding; no `bool`, `Option` or enum with data crosses. Fields named
//! `*_be` are in network byte order, addresses are byte arrays in network order, everything else is in host order.
//! Types that exist once an address family are generic over [`Address`]; there is no copied twin.
//!
//! A changed layout gets a new map name (`_v2`): the old pin stays readable until the agent has moved on.
#![no_std]

mod address;
mod affinity;
mod backend;
mod config;
mod conn;
mod conn_index;
mod drop_reason;
mod endpoint;
mod layout;
pub mod maps;
mod overlay;
mod service;
mod service_name;
mod socket;
mod text;

pub use address::{Addr4, Addr6, Address, Family};
pub use affinity::{Affinity, AffinityKey, affinity_client};
pub use backend::{Backend, backend_state};
pub use config::{Config, FamilyConfig, config_flag};
pub use conn::{Conn, ConnKey, FragmentKey, FragmentPorts, IpHeader, conn_flag, conn_generation};
pub use conn_index::{
    BUCKET_WORDS, ConnBucket, ConnTable, SLOTS_PER_WORD, buckets_for, conn_fill, conn_word,
    fill_words_for, used_words_for,
};
pub use drop_reason::{Counter, DropReason};
pub use endpoint::{Endpoint, endpoint_flag};
pub use overlay::{
    PEER_NAME_LEN, Peer, PeerCount, PeerName, Route, RouteKey, direct_label, overlay_header,
    peer_flag, peer_mode,
};
pub use service::{
    Frontend, FrontendKey, KEEPS_SOURCE, RangeKey, Service, frontend_flag, service_flag,
};
pub use service_name::{NAME_LEN, ServiceName, name_policy};
pub use socket::SocketOrigin;

/// Marker for the types of this crate: `repr(C)`, no padding that the compiler chose, every bit pattern valid.
///
/// # Safety
///
/// The implementor has no implicit padding and no invalid bit pattern, so that its bytes may be read from and
/// written to a map as they are.
pub unsafe trait Plain: Copy + 'static {
    /// The value as it lies in memory.
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the implementor's promise: as many bytes as the type has, all of them initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// [`Plain::bytes`], to write to.
    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        let start = core::ptr::from_mut(self).cast();
        // SAFETY: as above, and every bit pattern is valid.
        unsafe { core::slice::from_raw_parts_mut(start, size_of::<Self>()) }
    }
}

// SAFETY: integers have neither padding nor invalid values.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above; an array adds nothing between its elements.
unsafe impl<const N: usize> Plain for [u32; N] {}
