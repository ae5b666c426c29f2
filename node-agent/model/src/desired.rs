//! What the API and the host say that this node's dataplane should do, and what of it changed since the last plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_abi::{Config, Endpoint, endpoint_flag};
use ipnetwork::IpNetwork;
use smallvec::SmallVec;

use crate::address::network_of;
use crate::slices::{Slice, Slices};
use crate::wanted::{self, SetKey, WantedSet};
use crate::{Algorithm, Change, EndpointSlice, HealthCheck, ObjectName, PeerRoutes, Service};

/// All objects, with indexes from each to what depends on it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    node: String,
    algorithm: Algorithm,
    zone: Option<String>,
    services: BTreeMap<ObjectName, Known>,
    /// How many of them there really are: of others only EndpointSlices are known.
    service_count: usize,
    /// The Service of each EndpointSlice.
    service_of: BTreeMap<ObjectName, ObjectName>,
    node_addresses: Vec<IpAddr>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Addresses of Services.
    service_ips: BTreeMap<IpAddr, Owners>,
    pub(crate) peers: BTreeMap<String, PeerRoutes>,
    pub(crate) config: Option<Config>,
    /// Prefixes of destinations to which pods keep their address.
    pub(crate) keep_source: BTreeSet<IpNetwork>,
    dirty: Dirty,
    /// Services whose health check may have another answer since somebody asked.
    unasked: BTreeSet<ObjectName>,
}

/// What is known of a Service: it, its EndpointSlices, or both.
#[derive(Clone, Debug, Default)]
struct Known {
    service: Option<Box<Service>>,
    slices: Slices,
}

/// Services that have an address, nearly always one, with the flags of an [`Endpoint`] that each gives it.
type Owners = SmallVec<[(ObjectName, u32); 1]>;

/// What must be planned again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) services: BTreeSet<ObjectName>,
    pub(crate) endpoints: BTreeSet<IpAddr>,
    pub(crate) peers: BTreeSet<String>,
    pub(crate) config: bool,
    pub(crate) keep_source: bool,
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
            Change::KeepSource(prefixes) => {
                let prefixes = prefixes.iter().map(network_of).collect();
                let changed = self.keep_source != prefixes;
                self.keep_source = prefixes;
                self.dirty.keep_source |= changed;
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
            || dirty.keep_source
            || !dirty.services.is_empty()
            || !dirty.endpoints.is_empty()
            || !dirty.peers.is_empty()
    }

    /// How many Services there are, and how many EndpointSlices.
    pub fn counts(&self) -> (usize, usize) {
        (self.service_count, self.service_of.len())
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
        let known = self.services.get(name)?;
        let port = known.service.as_ref()?.health_check_node_port?;
        let local: BTreeSet<IpAddr> = known.slices.local_and_ready().collect();
        Some(HealthCheck {
            port,
            local_endpoints: local.len(),
        })
    }

    pub(crate) fn dirty_mut(&mut self) -> &mut Dirty {
        &mut self.dirty
    }

    pub(crate) fn all_dirty(&mut self) {
        self.all_dirty_where(|_| true);
        self.dirty.endpoints.extend(self.endpoints.keys());
        self.dirty.endpoints.extend(self.service_ips.keys());
        self.dirty.peers.extend(self.peers.keys().cloned());
        self.dirty.config = true;
        self.dirty.keep_source = true;
    }

    /// What is at an address: something of this node, or a Service.
    pub(crate) fn endpoint(&self, ip: &IpAddr) -> Option<Endpoint> {
        let own = self.endpoints.get(ip).copied();
        own.or_else(|| {
            let owners = self.service_ips.get(ip)?.iter();
            Some(Endpoint {
                flags: owners.fold(0, |all, (_, flags)| all | flags),
                ..Endpoint::default()
            })
        })
    }

    /// The services of the maps that this Service needs.
    pub(crate) fn sets(&self, name: &ObjectName) -> BTreeMap<SetKey, WantedSet> {
        let known = self.services.get(name);
        let Some((known, service)) = known.and_then(|known| Some((known, known.service.as_ref()?)))
        else {
            return BTreeMap::new();
        };
        let zone = self.zone.as_deref();
        let mut sets = wanted::sets(service, &known.slices, &self.node_addresses, zone);
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
        let with_node_port = |known: &Known| {
            let mut ports = known.service.iter().flat_map(|service| &service.ports);
            ports.any(|port| port.node_port.is_some())
        };
        self.all_dirty_where(with_node_port);
        true
    }

    fn change_zone(&mut self, zone: Option<String>) -> bool {
        if self.zone == zone {
            return false;
        }
        self.zone = zone;
        self.all_dirty_where(|known| known.slices.has_zone_hints());
        true
    }

    fn all_dirty_where(&mut self, affected: impl Fn(&Known) -> bool) {
        let affected = self.services.iter().filter(|(_, known)| affected(known));
        let names = affected.map(|(name, _)| name.clone());
        self.dirty.services.extend(names);
    }

    fn change_service(&mut self, name: ObjectName, service: Option<Service>) -> bool {
        let name = self.canonical(name);
        let known = self.services.get(&name);
        let before = known.and_then(|known| known.service.as_deref());
        if before == service.as_ref() {
            return false;
        }
        self.service_count -= usize::from(before.is_some());
        self.service_count += usize::from(service.is_some());
        let [before, after] = [before, service.as_ref()]
            .map(|service| service.into_iter().flat_map(addresses).collect());
        self.change_service_ips(&name, &before, &after);
        let service = service.map(shrunk);
        self.services.entry(name.clone()).or_default().service = service;
        self.forget_if_empty(&name);
        self.dirty.services.insert(name);
        true
    }

    fn change_service_ips(
        &mut self,
        name: &ObjectName,
        before: &BTreeMap<IpAddr, u32>,
        after: &BTreeMap<IpAddr, u32>,
    ) {
        for (ip, _) in before.iter().filter(|(ip, _)| !after.contains_key(ip)) {
            if let Some(owners) = self.service_ips.get_mut(ip) {
                owners.retain(|(owner, _)| owner != name);
                if owners.is_empty() {
                    self.service_ips.remove(ip);
                }
            }
            self.dirty.endpoints.insert(*ip);
        }
        for (ip, flags) in after {
            if before.get(ip) != Some(flags) {
                let owners = self.service_ips.entry(*ip).or_default();
                owners.retain(|(owner, _)| owner != name);
                owners.push((name.clone(), *flags));
                self.dirty.endpoints.insert(*ip);
            }
        }
    }

    fn change_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>) -> bool {
        let before = self.service_of.get(&name).cloned();
        let after = slice.as_ref().map(|slice| slice.service.clone());
        let after = after.map(|service| self.canonical(service));
        let mut changed = false;
        if let Some(service) = before.filter(|before| Some(before) != after.as_ref()) {
            self.service_of.remove(&name);
            if let Some(known) = self.services.get_mut(&service) {
                known.slices.remove(&name);
            }
            self.forget_if_empty(&service);
            self.dirty.services.insert(service);
            changed = true;
        }
        if let Some((slice, service)) = slice.zip(after) {
            let known = self.services.entry(service.clone()).or_default();
            if known
                .slices
                .put(Slice::new(name.clone(), slice, &self.node))
            {
                self.service_of.insert(name, service.clone());
                self.dirty.services.insert(service);
                changed = true;
            }
        }
        changed
    }

    /// The same name as it is kept already: one text for all who have it.
    fn canonical(&self, name: ObjectName) -> ObjectName {
        let known = self.services.get_key_value(&name);
        known.map_or(name.clone(), |(name, _)| name.clone())
    }

    fn forget_if_empty(&mut self, name: &ObjectName) {
        let empty = |known: &Known| known.service.is_none() && known.slices.is_empty();
        if self.services.get(name).is_some_and(empty) {
            self.services.remove(name);
        }
    }
}

/// Without what its lists have reserved for more: they were collected from an event, and stay as they are.
fn shrunk(mut service: Service) -> Box<Service> {
    service.cluster_ips.shrink_to_fit();
    service.external_ips.shrink_to_fit();
    service.load_balancer_ips.shrink_to_fit();
    service.source_ranges.shrink_to_fit();
    service.shares.shrink_to_fit();
    service.ports.shrink_to_fit();
    let names = service.ports.iter_mut().map(|port| &mut port.name);
    names.for_each(String::shrink_to_fit);
    Box::new(service)
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
