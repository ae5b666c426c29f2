//! The packet path on the host: packets as byte vectors, tables as trees, every case in both address families.

mod fragments;
mod icmp;
mod nat;
mod overlay;
mod robustness;
mod services;
mod support;
mod wrapping;
