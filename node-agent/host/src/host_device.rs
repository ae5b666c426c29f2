//! `fairlead0`: the interface by which the host's own processes reach pods and services.
//!
//! It is one side of a veth pair whose other side, `fairlead1`, stays in the same namespace and is merely up. The
//! dataplane's program on `fairlead0` takes every packet before it would cross to the other side. What the program
//! passes on dies at `fairlead1`: it is addressed to [`NEXT_HOP_MAC`], which no interface has, so a packet for nobody
//! cannot circle between the routing table and the pair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    MacAddr, Network, NetworkError,
    netlink::{VethSide, address_of},
    sysctl::{self, Family},
};

/// Name of the host's interface towards pods and services.
pub const HOST_DEVICE: &str = "fairlead0";
/// Name of its other side.
pub const HOST_DEVICE_PEER: &str = "fairlead1";

/// The address that stands for "the dataplane" in the host's routes: link-local, on this interface only.
const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet address that host packets carry when the dataplane's program meets them.
const NEXT_HOP_MAC: MacAddr = MacAddr([0x02, 0xfa, 0x1e, 0xad, 0x00, 0x01]);

/// What the host's interface shall be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostDeviceSpec {
    /// In bytes: that of the pods.
    pub mtu: u32,
    /// The gateway of each podCIDR of this node, see [`crate::PodCidr::gateway`]: at most one a family.
    pub gateways: Vec<IpAddr>,
}

/// The host's interface as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostDevice {
    pub ifindex: u32,
    /// Packets for the host that are redirected to this interface must be addressed to it.
    pub mac: MacAddr,
    pub mtu: u32,
    /// The node's own addresses towards pods; the host's packets to pods and services come from them.
    pub gateways: Vec<IpAddr>,
}

impl HostDevice {
    /// The node's own address of the family of `other`.
    #[must_use]
    pub fn gateway_for(&self, other: IpAddr) -> Option<IpAddr> {
        self.gateways
            .iter()
            .copied()
            .find(|gateway| gateway.is_ipv4() == other.is_ipv4())
    }
}

impl Network {
    /// What of `fairlead0` is not as `spec` says, in words; empty if [`Network::ensure_host_device`] has nothing to do.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn host_device_faults(
        &self,
        spec: &HostDeviceSpec,
    ) -> Result<Vec<String>, NetworkError> {
        let mut faults = Vec::new();
        for name in [HOST_DEVICE, HOST_DEVICE_PEER] {
            match self.link(name).await? {
                None => return Ok(vec![format!("device {name} was missing")]),
                Some(link) if !link.is_up => faults.push(format!("device {name} was down")),
                Some(link) if link.mtu != spec.mtu => {
                    faults.push(format!("the MTU of {name} was {}", link.mtu));
                }
                Some(_) => {}
            }
        }
        let Some(device) = self.link(HOST_DEVICE).await? else {
            return Ok(faults);
        };
        let addresses = self.addresses(device.index).await?;
        let neighbours = self.neighbours(device.index).await?;
        for gateway in &spec.gateways {
            if !addresses
                .iter()
                .filter_map(address_of)
                .any(|ip| ip == *gateway)
            {
                faults.push(format!("address {gateway} was missing from {HOST_DEVICE}"));
            }
            let next_hop = next_hop(*gateway);
            if !neighbours.contains(&next_hop) {
                faults.push(format!("neighbour {next_hop} of {HOST_DEVICE} was missing"));
            }
        }
        Ok(faults)
    }

    /// Creates `fairlead0` or brings it to `spec`; an interface that is right already is not touched.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotOurs`] if something else has the name, or a failed netlink request or sysctl.
    pub async fn ensure_host_device(
        &self,
        spec: &HostDeviceSpec,
    ) -> Result<HostDevice, NetworkError> {
        if self.link(HOST_DEVICE).await?.is_none() {
            let side = VethSide {
                name: HOST_DEVICE,
                mac: MacAddr::derived(&seed(HOST_DEVICE)),
                namespace: None,
            };
            let peer = VethSide {
                name: HOST_DEVICE_PEER,
                mac: MacAddr::derived(&seed(HOST_DEVICE_PEER)),
                namespace: None,
            };
            self.add_veth(&side, &peer, spec.mtu).await?;
        }
        let mut index = 0;
        let mut mac = MacAddr::default();
        for name in [HOST_DEVICE_PEER, HOST_DEVICE] {
            let link = self
                .link(name)
                .await?
                .ok_or_else(|| NetworkError::NoInterface {
                    name: name.to_owned(),
                })?;
            mac = link.mac.unwrap_or_default();
            if !link.is_veth {
                return Err(NetworkError::NotOurs {
                    name: name.to_owned(),
                    mac,
                });
            }
            sysctl::quiet_ipv6(name)?;
            self.set_up(link.index, spec.mtu, None).await?;
            index = link.index;
        }
        // Answers come in here whose source the routing table expects elsewhere, or which is an address of this host
        // (a hostNetwork backend on this node). Only the dataplane's programs put packets here.
        sysctl::set_interface(Family::V4, HOST_DEVICE, "rp_filter", "0")?;
        sysctl::set_interface(Family::V4, HOST_DEVICE, "accept_local", "1")?;
        self.set_addresses(index, &spec.gateways).await?;
        for gateway in &spec.gateways {
            self.set_neighbour(index, next_hop(*gateway), NEXT_HOP_MAC)
                .await?;
        }
        Ok(HostDevice {
            ifindex: index,
            mac,
            mtu: spec.mtu,
            gateways: spec.gateways.clone(),
        })
    }
}

/// The next hop of the host's routes in the family of `address`.
pub(crate) fn next_hop(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => NEXT_HOP_V4.into(),
        IpAddr::V6(_) => NEXT_HOP_V6.into(),
    }
}

/// Every node has the pair, so its Ethernet addresses need be unique only within a node.
fn seed(name: &str) -> String {
    format!("fairlead host device {name}")
}
