//! The interface towards the other nodes, and what the dataplane must know of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::{
    IpVersion,
    packet_route::{
        address::{AddressHeaderFlags, AddressScope},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};

use crate::{
    MacAddr, Network, NetworkError,
    netlink::{Link, address_of, failed},
    route::{output_interface, query},
};

/// The interface towards the other nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    /// In bytes.
    pub mtu: u32,
    pub mac: MacAddr,
    /// Addresses of global scope in the kernel's order: the first is the one that it prefers.
    pub v4: Vec<Ipv4Addr>,
    /// As `v4`; no temporary or deprecated ones.
    pub v6: Vec<Ipv6Addr>,
    /// The prefixes of its own link: what is in them is reached without a router.
    pub on_link: Vec<IpNetwork>,
}

impl Network {
    /// The named interface, or without a name that of the default route (IPv4 before IPv6, the lowest metric first).
    ///
    /// # Errors
    ///
    /// [`NetworkError::NoInterface`], [`NetworkError::NoDefaultRoute`], [`NetworkError::NoMac`] for a device that is
    /// not Ethernet, [`NetworkError::NoAddress`], or a failed netlink request.
    pub async fn uplink(&self, name: Option<&str>) -> Result<Uplink, NetworkError> {
        let link = match name {
            Some(name) => self
                .link(name)
                .await?
                .ok_or_else(|| NetworkError::NoInterface {
                    name: name.to_owned(),
                })?,
            None => self.default_route_link().await?,
        };
        let mac = link.mac.ok_or_else(|| NetworkError::NoMac {
            name: link.name.clone(),
        })?;
        let mut uplink = Uplink {
            name: link.name,
            ifindex: link.index,
            mtu: link.mtu,
            mac,
            v4: Vec::new(),
            v6: Vec::new(),
            on_link: Vec::new(),
        };
        let unusable = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
        for message in self.addresses(uplink.ifindex).await? {
            if message.header.scope != AddressScope::Universe {
                continue;
            }
            let address = address_of(&message);
            let link = address.map(|ip| IpNetwork::new(ip, message.header.prefix_len));
            uplink.on_link.extend(link.into_iter().flatten());
            match address {
                Some(IpAddr::V4(address)) => uplink.v4.push(address),
                // IFA_F_SECONDARY and IFA_F_TEMPORARY are one bit (if_addr.h).
                Some(IpAddr::V6(address))
                    if !message
                        .header
                        .flags
                        .intersects(unusable | AddressHeaderFlags::Secondary) =>
                {
                    uplink.v6.push(address);
                }
                _ => {}
            }
        }
        if uplink.v4.is_empty() && uplink.v6.is_empty() {
            return Err(NetworkError::NoAddress { name: uplink.name });
        }
        Ok(uplink)
    }

    async fn default_route_link(&self) -> Result<Link, NetworkError> {
        let mut index = None;
        for version in [IpVersion::V4, IpVersion::V6] {
            let routes: Vec<RouteMessage> = self
                .list(|handle| handle.route().get(query(version)).execute())
                .await
                .map_err(failed("list the routes"))?;
            index = routes
                .iter()
                .filter(|route| {
                    route.header.destination_prefix_length == 0
                        && route.header.table == RouteHeader::RT_TABLE_MAIN
                        && route.header.kind == RouteType::Unicast
                })
                .min_by_key(|route| metric(route))
                .and_then(output_interface);
            if index.is_some() {
                break;
            }
        }
        let index = index.ok_or(NetworkError::NoDefaultRoute)?;
        self.links()
            .await?
            .into_iter()
            .find(|link| link.index == index)
            .ok_or(NetworkError::NoDefaultRoute)
    }
}

fn metric(route: &RouteMessage) -> u32 {
    let found = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    found.unwrap_or(0)
}
