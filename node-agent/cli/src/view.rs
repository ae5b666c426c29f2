//! The services of the maps as people think of them: names, frontends and backends instead of ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use ebpf_abi::{Addr4, Addr6, Family, ServiceName, frontend_flag, name_policy};
use node_agent_maps::Maps;
use node_agent_model::{MapFamily, MapSink, PackedName, Snapshot};
use serde::Serialize;

use crate::words;

/// What the maps hold, and an index from each frontend to its service.
#[derive(Debug)]
pub struct View {
    pub held: Snapshot,
    pub services: BTreeMap<u32, Service>,
}

/// A service of the maps: one port of a Service, in one family, with the backends of one traffic policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub id: u32,
    /// Empty if the map of names does not hold the id.
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    pub protocol: String,
    pub traffic_policy: &'static str,
    pub frontends: Vec<Frontend>,
    /// In the order of their turns.
    pub backends: Vec<Backend>,
    /// Connections that have got a backend so far.
    pub turns: u32,
    #[serde(skip)]
    pub protocol_number: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frontend {
    pub address: SocketAddr,
    /// Whether it is reached from outside the cluster, as a NodePort is.
    pub external: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    pub id: u32,
    pub address: SocketAddr,
    pub state: &'static str,
    /// How often the id changed hands.
    pub epoch: u32,
}

impl View {
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn read(maps: &Maps) -> Result<Self> {
        let held = maps.snapshot().context("reading the services")?;
        let mut services = BTreeMap::new();
        add_frontends::<Addr4>(&held, &mut services);
        add_frontends::<Addr6>(&held, &mut services);
        // Services whose frontends all belong to another one are there too.
        for (&id, name) in &held.service_names {
            let name = name.full();
            services
                .entry(id)
                .or_insert_with(|| Service::named(id, Some(&name), name.protocol));
        }
        for (id, service) in &mut services {
            service.turns = maps
                .cursor
                .get(id)
                .context("reading the turns")?
                .unwrap_or(0);
            service.backends = match service.family(&held) {
                Family::V4 => slots::<Addr4>(&held, *id),
                Family::V6 => slots::<Addr6>(&held, *id),
            };
        }
        Ok(Self { held, services })
    }

    /// The service behind an address.
    pub fn behind(&self, ip: IpAddr, port: u16, protocol: u8) -> Option<&Service> {
        fn find<A: MapFamily>(held: &Snapshot, ip: IpAddr, port: u16, protocol: u8) -> Option<u32> {
            let key = ebpf_abi::FrontendKey {
                addr: A::from_ip(ip)?,
                port_be: port.to_be(),
                protocol,
                pad: 0,
            };
            Some(A::half(held).frontends.get(&key)?.service_id)
        }
        let id = find::<Addr4>(&self.held, ip, port, protocol)
            .or_else(|| find::<Addr6>(&self.held, ip, port, protocol))?;
        self.services.get(&id)
    }
}

impl Service {
    fn named(id: u32, name: Option<&ServiceName>, protocol: u8) -> Self {
        let policy = match name.map(|name| name.policy) {
            None => "unknown",
            Some(name_policy::LOCAL) => "Local",
            Some(_) => "Cluster",
        };
        let text = |part: fn(&ServiceName) -> &str| name.map(part).unwrap_or_default().to_owned();
        Self {
            id,
            namespace: text(ServiceName::namespace),
            name: text(ServiceName::name),
            port_name: text(ServiceName::port),
            protocol: words::protocol(protocol),
            traffic_policy: policy,
            frontends: Vec::new(),
            backends: Vec::new(),
            turns: 0,
            protocol_number: protocol,
        }
    }

    /// `namespace/name`, or what can be said without a name.
    pub fn label(&self) -> String {
        if self.name.is_empty() {
            format!("(service id {})", self.id)
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    fn family(&self, held: &Snapshot) -> Family {
        let named = held.service_names.get(&self.id);
        let named = named.map(|name| name.full().family);
        let of_frontend = self.frontends.first().map(|first| first.address.is_ipv6());
        if of_frontend.unwrap_or(named == Some(Family::V6 as u8)) {
            Family::V6
        } else {
            Family::V4
        }
    }
}

fn add_frontends<A: MapFamily>(held: &Snapshot, services: &mut BTreeMap<u32, Service>) {
    for (key, frontend) in &A::half(held).frontends {
        // Clients outside and inside may take different services.
        for id in BTreeSet::from([frontend.service_id, frontend.inside_id]) {
            let name = held.service_names.get(&id).map(PackedName::full);
            services
                .entry(id)
                .or_insert_with(|| Service::named(id, name.as_ref(), key.protocol))
                .frontends
                .push(Frontend {
                    address: SocketAddr::new(key.addr.to_ip(), u16::from_be(key.port_be)),
                    external: frontend.flags & frontend_flag::EXTERNAL != 0,
                });
        }
    }
}

fn slots<A: MapFamily>(held: &Snapshot, service_id: u32) -> Vec<Backend> {
    let Some(service) = held.services.get(&service_id) else {
        return Vec::new();
    };
    let slots = service.slot_base..service.slot_base.saturating_add(service.slot_count);
    // A backend has as many slots as its share asks for.
    let ids: BTreeSet<u32> = slots
        .filter_map(|slot| held.slots.get(&slot).copied())
        .collect();
    ids.into_iter()
        .filter_map(|id| backend_of::<A>(held, id))
        .collect()
}

/// A backend by its id; `None` if the array has nothing there.
pub fn backend_of<A: MapFamily>(held: &Snapshot, id: u32) -> Option<Backend> {
    let backend = A::half(held).backends.get(&id)?;
    Some(Backend {
        id,
        address: SocketAddr::new(backend.addr.to_ip(), u16::from_be(backend.port_be)),
        state: words::backend(backend.state),
        epoch: backend.epoch,
    })
}
