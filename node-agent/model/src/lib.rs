//! Desired state of this node's dataplane and the plan that leads there: pure, no IO, no clock, no async.
//!
//! [`Desired`] is what the API says, [`Applied`] is what the maps hold and who holds which id. [`plan`] takes what
//! changed in the first, and returns the operations that the second needs, in the order in which they must become
//! visible. Its cost is proportional to what changed.
#![forbid(unsafe_code)]

mod address;
mod applied;
mod backends;
mod capacity;
mod desired;
mod emit;
mod ids;
mod keep_source;
mod name;
mod object;
mod ops;
mod packed_name;
mod peers;
mod place;
mod plan;
mod ranges;
mod select;
mod slices;
mod slots;
mod touch;
mod tree;
mod turns;
mod wanted;
mod weights;

pub use address::MapFamily;
pub use applied::Applied;
pub use capacity::Capacity;
pub use desired::Desired;
pub use name::{NameParts, ObjectName};
pub use object::{
    Algorithm, BadShares, Change, ChangeId, EndpointSlice, HealthCheck, Node, PeerRoutes, PodShare,
    Protocol, Service, ServicePort, SliceEndpoint, SlicePort, TrafficPolicy, UnknownAlgorithm,
};
pub use ops::{FamilyOp, MapOp, MapSink, SinkError, Snapshot, SnapshotFamily};
pub use packed_name::PackedName;
pub use plan::{Plan, QUARANTINE, Refusal, plan};
pub use select::{Here, Selection, select};
