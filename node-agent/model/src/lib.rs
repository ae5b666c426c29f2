//! Desired state of this node's dataplane and the plan that leads there: pure, no IO, no clock, no async.

mod ops;

pub use ops::{FamilyOp, MapOp, MapSink, SinkError, Snapshot, SnapshotFamily};
