//! A whole development cluster, driven as its user would: `cargo xtask`, `kubectl`, and processes that end badly.
#![forbid(unsafe_code)]

mod agent;
mod backend;
mod cluster;
mod probe;

pub use agent::Agent;
pub use backend::Backend;
pub use cluster::{Cluster, Pod, Position};
pub use probe::{Probe, Running, Tally};
