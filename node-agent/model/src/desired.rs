//! What the API and the host say that this node's dataplane should do, and what of it changed since the last plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_abi::{Config, Endpoint, endpoint_flag};

use crate::select::Here;
use crate::wanted::{self, SetKey, WantedSet};
use crate::{Algorithm, Change, EndpointSlice, HealthCheck, ObjectName, PeerRoutes, Service};

/// All objects, with indexes from each to what depends on it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    node: String,
    algorithm: Algorithm,
    zone: Option<String>,
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    node_addresses: Vec<IpAddr>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Addresses of Services, with the flags of an [`Endpoint`] that each Service gives them.
    service_ips: BTreeMap<IpAddr, BTreeMap<ObjectName, u32>>,
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

impl Desired {
    /// `node` is this node's name.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// What Services get that name no algorithm.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// Takes a change in; false if it changes nothing.
    pub fn change(&mut self, change: Change) -> bool {
        match change {
            Change::Service(name, service) => self.change_service(name, service),
            Change::EndpointSlice(name, slice) => self.change_slice(name, slice),
            Change::NodeAddresses(addresses) => self.change_addresses(addresses),
            Change::Zone(zone) => self.change_zone(zone),
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
        self.dirty.endpoints.extend(self.service_ips.keys());
        self.dirty.peers.extend(self.peers.keys().cloned());
        self.dirty.config = true;
    }

    /// What is at an address: something of this node, or a Service.
    pub(crate) fn endpoint(&self, ip: &IpAddr) -> Option<Endpoint> {
        let own = self.endpoints.get(ip).copied();
        own.or_else(|| {
            let flags = self.service_ips.get(ip)?.values();
            Some(Endpoint {
                flags: flags.fold(0, |all, flags| all | flags),
                ..Endpoint::default()
            })
        })
    }

    /// The services of the maps that this Service needs.
    pub(crate) fn sets(&self, name: &ObjectName) -> BTreeMap<SetKey, WantedSet> {
        let Some(service) = self.services.get(name) else {
            return BTreeMap::new();
        };
        let slices = self
            .slices_of
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|name| self.slices.get(name));
        let here = Here {
            node: &self.node,
            zone: self.zone.as_deref(),
        };
        let mut sets = wanted::sets(name, service, slices, &self.node_addresses, here);
        let algorithm = service.algorithm.unwrap_or(self.algorithm);
        sets.values_mut().for_each(|set| set.algorithm = algorithm);
        sets
    }

    fn change_addresses(&mut self, mut addresses: Vec<IpAddr>) -> bool {
        addresses.sort();
        addresses.dedup();
        if self.node_addresses == addresses {
            return false;
        }
        self.node_addresses = addresses;
        let with_node_port =
            |service: &Service| service.ports.iter().any(|port| port.node_port.is_some());
        let affected = self
            .services
            .iter()
            .filter(|(_, service)| with_node_port(service))
            .map(|(name, _)| name.clone());
        self.dirty.services.extend(affected);
        true
    }

    fn change_zone(&mut self, zone: Option<String>) -> bool {
        if self.zone == zone {
            return false;
        }
        self.zone = zone;
        let hinted = |slice: &&EndpointSlice| {
            let mut endpoints = slice.endpoints.iter();
            endpoints.any(|endpoint| !endpoint.zone_hints.is_empty())
        };
        let affected = self.slices.values().filter(hinted);
        self.dirty
            .services
            .extend(affected.map(|slice| slice.service.clone()));
        true
    }

    fn change_service(&mut self, name: ObjectName, service: Option<Service>) -> bool {
        let after: BTreeMap<IpAddr, u32> = service.iter().flat_map(addresses).collect();
        let before = self.services.get(&name);
        let before: BTreeMap<IpAddr, u32> = before.into_iter().flat_map(addresses).collect();
        if !replace(&mut self.services, name.clone(), service) {
            return false;
        }
        for ip in before.keys().filter(|ip| !after.contains_key(ip)) {
            if let Some(owners) = self.service_ips.get_mut(ip) {
                owners.remove(&name);
                if owners.is_empty() {
                    self.service_ips.remove(ip);
                }
            }
            self.dirty.endpoints.insert(*ip);
        }
        for (ip, flags) in after {
            if before.get(&ip) != Some(&flags) {
                let owners = self.service_ips.entry(ip).or_default();
                owners.insert(name.clone(), flags);
                self.dirty.endpoints.insert(ip);
            }
        }
        self.dirty.services.insert(name);
        true
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

/// The addresses at which nothing is but the Service. An external IP may be a machine's own.
fn addresses(service: &Service) -> impl Iterator<Item = (IpAddr, u32)> {
    let vips = service.load_balancer_ips.iter();
    let vips = vips.map(|ip| (*ip, endpoint_flag::VIP));
    let cluster_ips = service.cluster_ips.iter();
    vips.chain(cluster_ips.map(|ip| (*ip, endpoint_flag::CLUSTER_IP)))
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
