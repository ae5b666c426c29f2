//! What tests and benches of the dataplane stand on: namespaces, cgroups and bpffs that clean up after themselves,
//! whole nodes with pods, and packets that are built and checked without the product's code.
//!
//! Everything here needs root. Names carry the process id, and [`sweep`] removes what a killed process left.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use tests_testkit::{Cluster, ServiceSpec};
//!
//! let mut cluster = Cluster::new(2)?;
//! let client = cluster.add_pod(0)?;
//! let server = cluster.add_pod(1)?;
//! let vip = "10.96.0.10:80".parse()?;
//! cluster.publish(&ServiceSpec::tcp(vip, [(server.ipv4(), 8080).into()]))?;
//! let listener = server.run(|| std::net::TcpListener::bind("0.0.0.0:8080"))?;
//! client.run(|| std::net::TcpStream::connect(vip))?;
//! # drop(listener);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bpffs;
mod cgroup;
mod cluster;
mod netns;
mod node;
pub mod packet;
mod plan;
mod pod;
mod program;
mod service;
mod skip;
pub mod traffic;
mod underlay;
mod unique;

pub use bpffs::Bpffs;
pub use cgroup::Cgroup;
pub use cluster::Cluster;
pub use netns::{NetNs, VethEnd, mac_text};
pub use node::{Node, small_maps};
pub use plan::{ByDevice, NodeAddresses, SERVICE_CIDRS, Wrapping};
pub use pod::Pod;
pub use program::{program, program_with};
pub use service::{Frontend, Protocol, ServiceSpec};
pub use skip::{is_root, skip};
pub use underlay::{Machine, Underlay};
pub use unique::sweep;
