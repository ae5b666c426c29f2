//! What the programs must know of this node: `config_v3`, an array with one entry.

use crate::{Addr4, Addr6, Address, Plain};

/// Value of `config_v3`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Config {
    /// The interface towards the other nodes.
    pub uplink_ifindex: u32,
    /// `fairlead0`: the interface by which the host's own processes reach pods and services.
    pub host_ifindex: u32,
    /// See [`config_flag`].
    pub flags: u32,
    /// MAC address of the uplink.
    pub uplink_mac: [u8; 6],
    /// UDP destination port of the overlay.
    pub overlay_port_be: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// MTU of the uplink in bytes.
    pub uplink_mtu: u32,
    /// First and last port, in host order, that masquerade may use; reserved in the kernel's
    /// `net.ipv4.ip_local_reserved_ports`.
    pub nat_port_first: u16,
    pub nat_port_last: u16,
    pub v4: FamilyConfig<Addr4>,
    pub v6: FamilyConfig<Addr6>,
    /// What the kernel calls the host's network namespace (`SO_NETNS_COOKIE`): sockets there reach NodePorts on
    /// loopback addresses.
    pub host_netns_cookie: u64,
}

// SAFETY: three words, six bytes and a half word, three words with their half words paired, structs of ten words, and a
// double word at a multiple of 8.
unsafe impl Plain for Config {}

/// The part of [`Config`] that exists once a family. An unset address is all zero.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct FamilyConfig<A> {
    /// This node's address on the uplink.
    pub node_addr: A,
    /// The address that NodePort and hairpin connections get as their source: the first address of the node's
    /// podCIDR, used by nothing else, so that every port is free.
    pub source_nat_addr: A,
}

// SAFETY: two four-byte aligned addresses.
unsafe impl<A: Address> Plain for FamilyConfig<A> {}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// Decapsulate what arrives on the uplink for the overlay's port: VXLAN, or with [`OVERLAY_UDP`] bare packets.
    pub const OVERLAY: u32 = 1;
    /// Give pod traffic that leaves the cluster the node's address.
    pub const MASQUERADE: u32 = 1 << 1;
    /// The overlay's packets lie in UDP without any header of their own.
    pub const OVERLAY_UDP: u32 = 1 << 2;
    /// Take connections from outside that another node hands on, and answer their clients from here.
    pub const DIRECT_RETURN: u32 = 1 << 3;
}
