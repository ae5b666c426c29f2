//! A whole development cluster, driven as its user would: `cargo xtask`, `kubectl`, and processes that end badly.
#![forbid(unsafe_code)]

mod agent;
mod cluster;
mod probe;

pub use agent::Agent;
pub use cluster::{Cluster, Pod, Position};
pub use probe::{Probe, Running, Tally};
