//! A node with its tables, packets, and the checks that recompute what the path updates incrementally.

mod cluster;
mod frame;
mod label;
mod memory;
mod tables;
mod wire;

pub use cluster::{Scene, TestFamily};
pub use frame::{Frame, Tcp, assert_checksums, internet_checksum};
pub use label::{label, labelled};
pub use memory::Memory;
pub use tables::{Has, TestNode, key};
pub use wire::Wire;

/// Makes two tests of a function that is generic over the address family.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name::<ebpf_abi::Addr4>(); })* }
        mod v6 { $(#[test] fn $name() { super::$name::<ebpf_abi::Addr6>(); })* }
    };
}
pub(crate) use in_both_families;
