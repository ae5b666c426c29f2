//! `fairlead-vxlan`: the kernel's VXLAN device, in the shape that flannel gives it, and whom it reaches.
//!
//! The programs redirect to it what they do not encapsulate themselves, already addressed to the peer's device. So of
//! what flannel programs for each peer (pkg/backend/vxlan) only the forwarding entry is needed, from the peer's MAC
//! address to its underlay address: the neighbour and the route would tell the kernel what the packet says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use rtnetlink::{
    LinkUnspec, LinkVxlan,
    packet_route::{
        AddressFamily,
        link::InfoVxlan,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    },
};

use crate::{
    MacAddr, Network, NetworkError,
    netlink::{errno, failed},
    sysctl,
};

/// Name of the device.
pub const VXLAN_DEVICE: &str = "fairlead-vxlan";

/// What the device shall be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VxlanDeviceSpec {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// This node's underlay address.
    pub local: IpAddr,
    /// Index of the uplink.
    pub uplink: u32,
    /// To which the peers address what they send.
    pub mac: MacAddr,
    /// In bytes: that of the pods.
    pub mtu: u32,
    /// Whether sent packets have an outer UDP checksum. Received ones may lack it.
    pub checksum: bool,
}

/// From a peer's MAC address to its underlay address.
pub type Forwarding = BTreeMap<MacAddr, IpAddr>;

impl Network {
    /// What of the device is not as `spec` says, in words; empty if [`Network::ensure_vxlan_device`] has nothing to do.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotOurs`] if something else has the name, or a failed netlink request.
    pub async fn vxlan_device_faults(
        &self,
        spec: &VxlanDeviceSpec,
    ) -> Result<Vec<String>, NetworkError> {
        let Some(link) = self.link(VXLAN_DEVICE).await? else {
            return Ok(vec![format!("device {VXLAN_DEVICE} was missing")]);
        };
        let Some(found) = &link.vxlan else {
            return Err(NetworkError::NotOurs {
                name: VXLAN_DEVICE.to_owned(),
                mac: link.mac.unwrap_or_default(),
            });
        };
        let mut faults: Vec<String> = Vec::new();
        if !spec.settings().iter().all(|wanted| found.contains(wanted)) {
            faults.push(format!("the settings of {VXLAN_DEVICE} were others"));
        }
        if link.mac != Some(spec.mac) {
            faults.push(format!("the MAC address of {VXLAN_DEVICE} was another"));
        }
        if link.mtu != spec.mtu {
            faults.push(format!("the MTU of {VXLAN_DEVICE} was {}", link.mtu));
        }
        if !link.is_up {
            faults.push(format!("device {VXLAN_DEVICE} was down"));
        }
        Ok(faults)
    }

    /// Creates the device, or anew one that is not as `spec` says; answers its index.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotOurs`] if something else has the name, [`NetworkError::PortTaken`] if another VXLAN device has
    /// the port and the VNI, or a failed netlink request or sysctl.
    pub async fn ensure_vxlan_device(&self, spec: &VxlanDeviceSpec) -> Result<u32, NetworkError> {
        if !self.vxlan_device_faults(spec).await?.is_empty() {
            self.remove_vxlan_device().await?;
            self.add_vxlan_device(spec).await?;
        }
        let link = self.link(VXLAN_DEVICE).await?;
        let link = link.ok_or_else(|| NetworkError::NoInterface {
            name: VXLAN_DEVICE.to_owned(),
        })?;
        Ok(link.index)
    }

    async fn add_vxlan_device(&self, spec: &VxlanDeviceSpec) -> Result<(), NetworkError> {
        let mut message = LinkVxlan::new(VXLAN_DEVICE, spec.vni)
            .address(spec.mac.0.to_vec())
            .mtu(spec.mtu);
        for setting in spec.settings() {
            message = message.append_info_data(setting);
        }
        let added = self.handle.link().add(message.build()).execute().await;
        added.map_err(|error| spec.refused(error))?;
        sysctl::quiet_ipv6(VXLAN_DEVICE)?;
        let link = self.link(VXLAN_DEVICE).await?;
        let index = link.map(|link| link.index).unwrap_or_default();
        // The kernel takes the port only now.
        let up = LinkUnspec::new_with_index(index).up().build();
        match self.handle.link().set(up).execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.delete_link(index).await?;
                Err(spec.refused(error))
            }
        }
    }

    /// Removes the device with its forwarding entries; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotOurs`] if something else has the name, or a failed netlink request.
    pub async fn remove_vxlan_device(&self) -> Result<bool, NetworkError> {
        match self.link(VXLAN_DEVICE).await? {
            None => Ok(false),
            Some(link) if link.vxlan.is_none() => Err(NetworkError::NotOurs {
                name: VXLAN_DEVICE.to_owned(),
                mac: link.mac.unwrap_or_default(),
            }),
            Some(link) => self.delete_link(link.index).await.map(|()| true),
        }
    }

    /// Makes the device's forwarding entries exactly `wanted`; answers how many were written or removed. Entries that are
    /// right already are not touched.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn set_forwarding(
        &self,
        index: u32,
        wanted: &Forwarding,
    ) -> Result<usize, NetworkError> {
        let wanted: BTreeSet<(MacAddr, IpAddr)> =
            wanted.iter().map(|(mac, remote)| (*mac, *remote)).collect();
        let mut present = BTreeSet::new();
        let mut changes = 0;
        for (entry, message) in self.forwarding_entries(index).await? {
            present.insert(entry);
            if wanted.contains(&entry) {
                continue;
            }
            match self.handle.neighbours().del(message).execute().await {
                Err(error) if errno(&error) == libc::ENOENT => {}
                other => other.map_err(failed(format!("remove the way to {}", entry.1)))?,
            }
            changes += 1;
        }
        for (mac, remote) in wanted.difference(&present) {
            self.handle
                .neighbours()
                .add_bridge(index, &mac.0)
                .flags(NeighbourFlags::Own)
                .destination(*remote)
                .replace()
                .execute()
                .await
                .map_err(failed(format!("write the way to {remote}")))?;
            changes += 1;
        }
        Ok(changes)
    }

    async fn forwarding_entries(
        &self,
        index: u32,
    ) -> Result<Vec<((MacAddr, IpAddr), NeighbourMessage)>, NetworkError> {
        let messages: Vec<NeighbourMessage> = self
            .list(|handle| {
                let request = handle.neighbours().get();
                request.set_address_family(AddressFamily::Bridge).execute()
            })
            .await
            .map_err(failed("list the forwarding entries"))?;
        let ours = messages
            .into_iter()
            .filter(|message| message.header.ifindex == index);
        Ok(ours
            .filter_map(|message| Some((entry(&message)?, message)))
            .collect())
    }
}

impl VxlanDeviceSpec {
    /// Why there is no such device.
    fn refused(&self, error: rtnetlink::Error) -> NetworkError {
        match errno(&error) {
            libc::EEXIST | libc::EADDRINUSE => NetworkError::PortTaken {
                port: self.port,
                vni: self.vni,
            },
            _ => failed(format!("create {VXLAN_DEVICE}"))(error),
        }
    }

    /// As flannel sets them, with two additions: whether there are checksums is said, and packets without are taken over
    /// IPv6 too (RFC 6935, RFC 6936), since nodes of ours may send them.
    fn settings(&self) -> Vec<InfoVxlan> {
        let local = match self.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        };
        vec![
            InfoVxlan::Id(self.vni),
            local,
            InfoVxlan::Link(self.uplink),
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(false),
            InfoVxlan::UDPCsum(self.checksum),
            InfoVxlan::UDPZeroCsumTX(!self.checksum),
            InfoVxlan::UDPZeroCsumRX(true),
        ]
    }
}

fn entry(message: &NeighbourMessage) -> Option<(MacAddr, IpAddr)> {
    let mut mac = None;
    let mut remote = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_slice(bytes),
            // Its family is not the message's, which is AF_BRIDGE: the length tells it.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                remote = address(bytes);
            }
            _ => {}
        }
    }
    Some((mac?, remote?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
