//! The host's routes to pods and services: all lead to `fairlead0`, none needs a neighbour to be resolved.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteVia},
    },
};

use crate::{
    HostDevice, Network, NetworkError,
    host_device::next_hop,
    netlink::{errno, failed},
};

/// The number in `rtm_protocol` that marks our routes (`ip route` shows it as `proto 250`); rtnetlink(7) leaves
/// numbers above `RTPROT_STATIC` to user space.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(250);

/// How many routes were written and removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RouteChanges {
    pub added: usize,
    pub removed: usize,
}

/// What a route of ours says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct HostRoute {
    pub(crate) prefix: IpNetwork,
    source: Option<IpAddr>,
}

impl Network {
    /// Makes the set of our routes through `device` exactly `prefixes`: this node's podCIDRs, those of the other
    /// nodes, and the service CIDRs. Routes that are right already are not written.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NoGatewayForPrefix`] if a prefix is of a family in which the device has no address, or a failed
    /// netlink request.
    pub async fn set_host_routes(
        &self,
        device: &HostDevice,
        prefixes: &[IpNetwork],
    ) -> Result<RouteChanges, NetworkError> {
        self.set_routes(device, RouteHeader::RT_TABLE_MAIN.into(), prefixes)
            .await
    }

    /// As [`Network::set_host_routes`], in any table.
    pub(crate) async fn set_routes(
        &self,
        device: &HostDevice,
        table: u32,
        prefixes: &[IpNetwork],
    ) -> Result<RouteChanges, NetworkError> {
        let (mut wanted, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for prefix in prefixes {
            let source = device
                .gateway_for(prefix.ip())
                .ok_or(NetworkError::NoGatewayForPrefix { prefix: *prefix })?;
            let prefix = IpNetwork::new(prefix.network(), prefix.prefix())
                .expect("the prefix comes from a network");
            kept.insert(prefix);
            wanted.insert(HostRoute {
                prefix,
                source: Some(source),
            });
        }
        let mut changes = RouteChanges::default();
        let mut present = BTreeSet::new();
        for (route, message) in self.routes_of(device.ifindex, table).await? {
            present.insert(route);
            if kept.contains(&route.prefix) {
                continue;
            }
            match self.handle.route().del(message).execute().await {
                Err(error) if errno(&error) == libc::ESRCH => {}
                other => other.map_err(failed(format!("remove the route to {}", route.prefix)))?,
            }
            changes.removed += 1;
        }
        for route in wanted.difference(&present) {
            let message = route_message(route, device, table);
            let operation = failed(format!("write the route to {}", route.prefix));
            self.handle
                .route()
                .add(message)
                .replace()
                .execute()
                .await
                .map_err(operation)?;
            changes.added += 1;
        }
        Ok(changes)
    }

    /// A default route by `gateway`, which needs no route of its own.
    pub(crate) async fn set_default_route(
        &self,
        index: u32,
        gateway: IpAddr,
    ) -> Result<(), NetworkError> {
        let unspecified = IpNetwork::new(
            match gateway {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            },
            0,
        )
        .expect("a prefix of length 0 exists in both families");
        let message = onlink(unspecified, index, gateway);
        self.handle
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("write the default route by {gateway}")))
    }

    pub(crate) async fn routes_of(
        &self,
        ifindex: u32,
        table: u32,
    ) -> Result<Vec<(HostRoute, RouteMessage)>, NetworkError> {
        let mut found = Vec::new();
        for message in self.all_routes().await? {
            let ours = message.header.protocol == PROTOCOL
                && table_of(&message) == table
                && output_interface(&message) == Some(ifindex);
            if let (true, Some(route)) = (ours, host_route(&message)) {
                found.push((route, message));
            }
        }
        Ok(found)
    }

    /// The routers of this machine: next hops of routes that are not ours, in every table.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn routers(&self) -> Result<BTreeSet<IpAddr>, NetworkError> {
        let routes = self.all_routes().await?;
        let others = routes
            .iter()
            .filter(|route| route.header.protocol != PROTOCOL);
        Ok(others
            .flat_map(|route| next_hops(&route.attributes))
            .collect())
    }

    async fn all_routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let of_family: Vec<RouteMessage> = self
                .list(|handle| handle.route().get(query(version)).execute())
                .await
                .map_err(failed("list the routes"))?;
            routes.extend(of_family);
        }
        Ok(routes)
    }
}

/// The number of a route's table; the header has room for the first 255.
fn table_of(route: &RouteMessage) -> u32 {
    let mut attributes = route.attributes.iter();
    let table = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(route.header.table.into())
}

fn next_hops(attributes: &[RouteAttribute]) -> Vec<IpAddr> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip(gateway).into_iter().collect(),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => vec![IpAddr::from(*gateway)],
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => vec![IpAddr::from(*gateway)],
        RouteAttribute::MultiPath(hops) => {
            let hops = hops.iter().map(|hop| next_hops(&hop.attributes));
            hops.flatten().collect()
        }
        _ => Vec::new(),
    };
    attributes.iter().flat_map(of).collect()
}

/// The question for all routes of one family.
pub(crate) fn query(version: IpVersion) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    };
    message
}

/// The interface that a route leads to; the first one of several.
pub(crate) fn output_interface(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        })
}

fn route_message(route: &HostRoute, device: &HostDevice, table: u32) -> RouteMessage {
    let mut message = onlink(route.prefix, device.ifindex, next_hop(route.prefix.ip()));
    message.attributes.push(RouteAttribute::Table(table));
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

fn onlink(prefix: IpNetwork, index: u32, gateway: IpAddr) -> RouteMessage {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.ip(), prefix.prefix())
        .and_then(|builder| builder.gateway(gateway))
        .expect("the gateway is of the prefix's family and the prefix is valid")
        .output_interface(index)
        .protocol(PROTOCOL)
        .onlink()
        .build()
}

fn host_route(message: &RouteMessage) -> Option<HostRoute> {
    let mut prefix = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => prefix = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    let prefix = IpNetwork::new(prefix?, message.header.destination_prefix_length).ok()?;
    Some(HostRoute { prefix, source })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
