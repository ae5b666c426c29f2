//! The packet path on the host: packets as byte vectors, tables as trees, every case in both address families.

mod balance;
mod conn_table;
mod direct_return;
mod external;
mod fragments;
mod icmp;
mod nat;
mod overlay;
mod peers;
mod refused;
mod robustness;
mod sctp;
mod services;
mod support;
mod ttl;
mod wrapping;
