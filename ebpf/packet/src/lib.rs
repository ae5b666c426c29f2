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
mod decapsulate;
mod encapsulate;
mod forward;
mod fragment;
mod icmp_answer;
mod icmp_error;
mod ip;
mod node;
mod open;
mod packet;
mod parse;
mod path;
mod refuse;
mod sctp;
mod select;
mod socket;
mod track;
mod verdict;
mod write;

pub use ip::{Frame, Ip};
pub use node::{ConnState, Entry, Inserted, Node};
pub use packet::{ChecksumField, OutOfBounds, Packet};
pub use path::{from_host, from_network, from_pod};
pub use sctp::crc_after;
pub use socket::{Caller, Connect, connect, peer_name};
pub use verdict::Verdict;

#[cfg(test)]
extern crate std;
