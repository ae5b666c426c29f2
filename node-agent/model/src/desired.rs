//! What the API and the host say that this node's dataplane should do, and what of it changed since the last plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ebpf_abi::{Config, Endpoint, Family, frontend_flag};

use crate::address::family_of;
use crate::select::select;
use crate::{
    Change, EndpointSlice, HealthCheck, ObjectName, PeerRoutes, Protocol, Service, ServicePort,
    SliceEndpoint, TrafficPolicy,
};

/// All objects, with indexes from each to what depends on it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    node: String,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    node_addresses: Vec<IpAddr>,
    pub(crate) endpoints: BTreeMap<IpAddr, Endpoint>,
    pub(crate) peers: BTreeMap<String, PeerRoutes>,
    pub(crate) config: Option<Config>,
    dirty: Dirty,
    /// Services whose health check may have another answer since somebody asked.
    unasked: BTreeSet<ObjectName>,
}

/// What must be planned again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) services: BTreeSet<ObjectName>,
    pub(crate) endpoints: BTreeSet<IpAddr>,
    pub(crate) peers: BTreeSet<String>,
    pub(crate) config: bool,
}

/// A service of the maps: one port of a Service, in one family, with one of the two sets of backends.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SetKey {
    pub(crate) service: ObjectName,
    pub(crate) port: String,
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    pub(crate) policy: TrafficPolicy,
}

/// Where clients ask for a service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FrontendAddr {
    pub(crate) addr: SocketAddr,
    /// IANA protocol number.
    pub(crate) protocol: u8,
}

/// What a service of the maps should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct WantedSet {
    /// With their flags.
    pub(crate) frontends: BTreeMap<FrontendAddr, u32>,
    pub(crate) chosen: BTreeSet<SocketAddr>,
    pub(crate) draining: BTreeSet<SocketAddr>,
}

impl Desired {
    /// `node` is this node's name.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// Takes a change in; false if it changes nothing.
    pub fn change(&mut self, change: Change) -> bool {
        match change {
            Change::Service(name, service) => {
                let changed = replace(&mut self.services, name.clone(), service);
                if changed {
                    self.dirty.services.insert(name);
                }
                changed
            }
            Change::EndpointSlice(name, slice) => self.change_slice(name, slice),
            Change::NodeAddresses(mut addresses) => {
                addresses.sort();
                addresses.dedup();
                let changed = self.node_addresses != addresses;
                if changed {
                    self.node_addresses = addresses;
                    let with_node_port = |service: &Service| {
                        service.ports.iter().any(|port| port.node_port.is_some())
                    };
                    let affected = self
                        .services
                        .iter()
                        .filter(|(_, service)| with_node_port(service));
                    self.dirty
                        .services
                        .extend(affected.map(|(name, _)| name.clone()));
                }
                changed
            }
            Change::Endpoint(addr, endpoint) => {
                let changed = replace(&mut self.endpoints, addr, endpoint);
                if changed {
                    self.dirty.endpoints.insert(addr);
                }
                changed
            }
            Change::Peer(node, peer) => {
                let changed = replace(&mut self.peers, node.clone(), peer);
                if changed {
                    self.dirty.peers.insert(node);
                }
                changed
            }
            Change::Config(config) => {
                let changed = self.config != Some(config);
                self.config = Some(config);
                self.dirty.config |= changed;
                changed
            }
        }
    }

    /// Whether a plan has anything to look at.
    pub fn is_dirty(&self) -> bool {
        let dirty = &self.dirty;
        dirty.config
            || !dirty.services.is_empty()
            || !dirty.endpoints.is_empty()
            || !dirty.peers.is_empty()
    }

    /// How many Services there are, and how many EndpointSlices.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.slices.len())
    }

    pub(crate) fn take_dirty(&mut self) -> Dirty {
        self.unasked.extend(self.dirty.services.iter().cloned());
        std::mem::take(&mut self.dirty)
    }

    /// The health checks that may have changed since the last call, of Services that were planned; `None` for one that
    /// has no health check.
    pub fn take_health_checks(&mut self) -> Vec<(ObjectName, Option<HealthCheck>)> {
        let names = std::mem::take(&mut self.unasked);
        let answer = |name: ObjectName| {
            let check = self.health_check(&name);
            (name, check)
        };
        names.into_iter().map(answer).collect()
    }

    fn health_check(&self, name: &ObjectName) -> Option<HealthCheck> {
        let port = self.services.get(name)?.health_check_node_port?;
        let slices = self.slices_of.get(name).into_iter().flatten();
        let local: BTreeSet<IpAddr> = slices
            .filter_map(|slice| self.slices.get(slice))
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&self.node))
            .map(|endpoint| endpoint.addr)
            .collect();
        Some(HealthCheck {
            port,
            local_endpoints: local.len(),
        })
    }

    pub(crate) fn dirty_mut(&mut self) -> &mut Dirty {
        &mut self.dirty
    }

    pub(crate) fn all_dirty(&mut self) {
        self.dirty.services.extend(self.services.keys().cloned());
        self.dirty.endpoints.extend(self.endpoints.keys());
        self.dirty.peers.extend(self.peers.keys().cloned());
        self.dirty.config = true;
    }

    /// The services of the maps that this Service needs.
    pub(crate) fn sets(&self, name: &ObjectName) -> BTreeMap<SetKey, WantedSet> {
        let mut sets: BTreeMap<SetKey, WantedSet> = BTreeMap::new();
        let Some(service) = self.services.get(name) else {
            return sets;
        };
        for port in &service.ports {
            let ports = self.frontends(service, port);
            for (frontend, flags, policy) in ports {
                let key = SetKey {
                    service: name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    family: family_of(frontend.addr.ip()),
                    policy,
                };
                sets.entry(key)
                    .or_default()
                    .frontends
                    .insert(frontend, flags);
            }
        }
        for (key, set) in &mut sets {
            self.fill(key, set);
        }
        sets
    }

    /// ClusterIPs take the internal traffic policy, node ports the external one; the families of the node ports are
    /// those of the ClusterIPs.
    fn frontends<'a>(
        &'a self,
        service: &'a Service,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = (FrontendAddr, u32, TrafficPolicy)> + 'a {
        let at = move |ip: IpAddr, number: u16| FrontendAddr {
            addr: SocketAddr::new(ip, number),
            protocol: port.protocol.number(),
        };
        let cluster = service
            .cluster_ips
            .iter()
            .map(move |ip| (at(*ip, port.port), 0, service.internal_policy));
        let families: BTreeSet<Family> = service
            .cluster_ips
            .iter()
            .map(|ip| family_of(*ip))
            .collect();
        let node = port.node_port.into_iter().flat_map(move |number| {
            let families = families.clone();
            let addresses = self
                .node_addresses
                .iter()
                .filter(move |ip| families.contains(&family_of(**ip)));
            addresses.map(move |ip| {
                (
                    at(*ip, number),
                    frontend_flag::EXTERNAL,
                    service.external_policy,
                )
            })
        });
        cluster.chain(node)
    }

    fn fill(&self, key: &SetKey, set: &mut WantedSet) {
        let mut addresses = Vec::new();
        let mut endpoints: Vec<SliceEndpoint> = Vec::new();
        for slice in self
            .slices_of
            .get(&key.service)
            .into_iter()
            .flatten()
            .filter_map(|name| self.slices.get(name))
        {
            let ports = slice
                .ports
                .iter()
                .filter(|port| port.name == key.port && port.protocol == key.protocol);
            for port in ports {
                for endpoint in slice
                    .endpoints
                    .iter()
                    .filter(|e| family_of(e.addr) == key.family)
                {
                    addresses.push(SocketAddr::new(endpoint.addr, port.port));
                    endpoints.push(endpoint.clone());
                }
            }
        }
        let selection = select(&endpoints, key.policy, &self.node);
        set.chosen = selection
            .chosen
            .into_iter()
            .map(|index| addresses[index])
            .collect();
        set.draining = selection
            .draining
            .into_iter()
            .map(|index| addresses[index])
            .collect();
    }

    fn change_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>) -> bool {
        let before = self.slices.get(&name).map(|slice| slice.service.clone());
        let after = slice.as_ref().map(|slice| slice.service.clone());
        if !replace(&mut self.slices, name.clone(), slice) {
            return false;
        }
        if let Some(service) = before {
            if let Some(names) = self.slices_of.get_mut(&service) {
                names.remove(&name);
                if names.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            self.dirty.services.insert(service);
        }
        if let Some(service) = after {
            self.slices_of
                .entry(service.clone())
                .or_default()
                .insert(name);
            self.dirty.services.insert(service);
        }
        true
    }
}

fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    true
}
