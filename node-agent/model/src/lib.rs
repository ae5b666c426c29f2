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
mod object;
mod ops;
mod plan;
mod ranges;
mod select;
mod tree;

pub use address::MapFamily;
pub use applied::Applied;
pub use capacity::Capacity;
pub use desired::Desired;
pub use object::{
    Change, ChangeId, EndpointSlice, HealthCheck, Node, ObjectName, PeerRoutes, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, TrafficPolicy,
};
pub use ops::{FamilyOp, MapOp, MapSink, SinkError, Snapshot, SnapshotFamily};
pub use plan::{Plan, QUARANTINE, Refusal, plan};
pub use select::{Selection, select};
