//! What to do with a packet: parse, select, track, rewrite, encapsulate, answer with ICMP.
//!
//! Pure: the packet, the tables, the clock and the random numbers are arguments ([`Packet`], [`Node`]). The eBPF
//! programs give them with the kernel's helpers, the tests with byte vectors and trees. One code path serves IPv4 and
//! IPv6: everything is generic over [`Ip`].
//!
//! The order for each packet: parse -> connection -> service -> way -> write -> encapsulate. Nothing is written to
//! the packet before every decision is taken, so that an ICMP error quotes what the sender sent.
#![no_std]
#![forbid(unsafe_code)]

mod affinity;
mod checksum;
pub mod conn_table;
mod decapsulate;
pub mod direct_return;
mod encapsulate;
mod forward;
mod fragment;
mod icmp_answer;
mod icmp_error;
mod icmp_limit;
mod ip;
mod node;
mod open;
mod outer_checksum;
mod packet;
mod parse;
mod path;
mod refuse;
mod relay;
mod sctp;
mod select;
mod socket;
mod track;
mod verdict;
mod write;

pub use checksum::apply_to_checksum;
pub use ip::{Header, Ip};
pub use node::{ConnState, Entry, Inserted, Node, PeerEvent};
pub use packet::{ChecksumField, Device, Neighbour, OutOfBounds, Packet};
pub use path::{from_host, from_network, from_pod, from_vxlan};
pub use relay::from_device;
pub use sctp::crc_after;
pub use socket::{Caller, Connect, connect, peer_name};
pub use verdict::Verdict;

#[cfg(test)]
extern crate std;
