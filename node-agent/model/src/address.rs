//! What the model asks of an address family beyond the contract: conversion, and its half of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::{Addr4, Addr6, Address, Family};
use ipnetwork::IpNetwork;

use crate::{FamilyOp, MapOp, Snapshot, SnapshotFamily};

/// An address family of the maps.
pub trait MapFamily: Address {
    /// `None` if the address is of the other family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    fn to_ip(self) -> IpAddr;
    fn op(op: FamilyOp<Self>) -> MapOp;
    fn half(snapshot: &Snapshot) -> &SnapshotFamily<Self>;
    fn half_mut(snapshot: &mut Snapshot) -> &mut SnapshotFamily<Self>;
}

impl MapFamily for Addr4 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self.bytes).into()
    }

    fn op(op: FamilyOp<Self>) -> MapOp {
        MapOp::V4(op)
    }

    fn half(snapshot: &Snapshot) -> &SnapshotFamily<Self> {
        &snapshot.v4
    }

    fn half_mut(snapshot: &mut Snapshot) -> &mut SnapshotFamily<Self> {
        &mut snapshot.v4
    }
}

impl MapFamily for Addr6 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.into()),
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.bytes).into()
    }

    fn op(op: FamilyOp<Self>) -> MapOp {
        MapOp::V6(op)
    }

    fn half(snapshot: &Snapshot) -> &SnapshotFamily<Self> {
        &snapshot.v6
    }

    fn half_mut(snapshot: &mut Snapshot) -> &mut SnapshotFamily<Self> {
        &mut snapshot.v6
    }
}

/// Address and port, in as few bytes as there are: `SocketAddr` has a third more.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct IpPort {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

/// The family of an address, in the contract's terms.
pub(crate) fn family_of(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// With the host bits cleared.
pub(crate) fn network_of(prefix: &IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(*prefix)
}

/// Two of something, one for each family.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerFamily<T> {
    v4: T,
    v6: T,
}

impl<T> PerFamily<T> {
    pub(crate) fn new(v4: T, v6: T) -> Self {
        Self { v4, v6 }
    }

    pub(crate) fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub(crate) fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
