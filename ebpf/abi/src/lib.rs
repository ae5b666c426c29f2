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
mod drop_reason;
mod endpoint;
mod layout;
pub mod maps;
mod overlay;
mod service;
mod service_name;
mod socket;

pub use address::{Addr4, Addr6, Address, Family};
pub use affinity::{Affinity, AffinityKey, affinity_client};
pub use backend::{Backend, backend_state};
pub use config::{Config, FamilyConfig, config_flag};
pub use conn::{Conn, ConnKey, FragmentKey, FragmentPorts, conn_flag};
pub use drop_reason::{Counter, DropReason};
pub use endpoint::{Endpoint, endpoint_flag};
pub use overlay::{Peer, Route, RouteKey, overlay_header, peer_mode};
pub use service::{Frontend, FrontendKey, RangeKey, Service, frontend_flag, service_flag};
pub use service_name::{NAME_LEN, ServiceName, name_policy};
pub use socket::SocketOrigin;

/// Marker for the types of this crate: `repr(C)`, no padding that the compiler chose, every bit pattern valid.
///
/// # Safety
///
/// The implementor has no implicit padding and no invalid bit pattern, so that its bytes may be read from and
/// written to a map as they are.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers have neither padding nor invalid values.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
