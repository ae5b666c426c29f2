//! The packet path on the host: packets as byte vectors, tables as trees, every case in both address families.

mod balance;
mod external;
mod fragments;
mod icmp;
mod nat;
mod overlay;
mod refused;
mod robustness;
mod sctp;
mod services;
mod support;
mod wrapping;
