//! From one Service and its EndpointSlices to the services of the maps that it needs.
//!
//! A port of a Service needs one service of the maps for each address family and each traffic policy that its
//! addresses ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ebpf_abi::{Family, frontend_flag, service_flag};
use ipnetwork::IpNetwork;

use crate::address::{family_of, network_of};
use crate::select::{Here, select};
use crate::turns::Member;
use crate::weights::weights;
use crate::{
    Algorithm, EndpointSlice, ObjectName, PodShare, Protocol, Service, ServicePort, SliceEndpoint,
    TrafficPolicy,
};

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
    /// Frontends of the set of the policy `Local` for whose clients inside the cluster this set stands.
    pub(crate) inside_of: BTreeSet<FrontendAddr>,
    /// Sources that may reach the frontends which have source ranges.
    pub(crate) ranges: BTreeSet<IpNetwork>,
    /// With their weights.
    pub(crate) chosen: BTreeMap<SocketAddr, u32>,
    pub(crate) draining: BTreeSet<SocketAddr>,
    pub(crate) algorithm: Algorithm,
    pub(crate) affinity_seconds: u32,
    /// See [`service_flag`].
    pub(crate) flags: u32,
}

impl SetKey {
    /// The set that clients inside the cluster take at this frontend of the set: an external address means every
    /// endpoint to them, whatever the external traffic policy says.
    pub(crate) fn inside(&self, frontend_flags: u32) -> Self {
        let policy = if frontend_flags & frontend_flag::EXTERNAL != 0 {
            TrafficPolicy::Cluster
        } else {
            self.policy
        };
        Self {
            policy,
            ..self.clone()
        }
    }
}

impl WantedSet {
    /// What takes new connections, in the order of the addresses; `None` if one of them gets no id.
    pub(crate) fn members(
        &self,
        mut id_of: impl FnMut(&SocketAddr) -> Option<u32>,
    ) -> Option<Vec<Member>> {
        let members = self.chosen.iter().map(|(addr, weight)| {
            let id = id_of(addr)?;
            Some(Member {
                addr: *addr,
                id,
                weight: *weight,
            })
        });
        members.collect()
    }

    /// See [`service_flag`].
    pub(crate) fn service_flags(&self) -> u32 {
        self.flags
            | match self.algorithm {
                Algorithm::RoundRobin => 0,
                Algorithm::Random => service_flag::RANDOM,
                Algorithm::Maglev => service_flag::MAGLEV,
            }
    }
}

/// The services of the maps that a Service needs. `node_ports`: the addresses that serve NodePorts.
pub(crate) fn sets<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node_ports: &[IpAddr],
    here: Here<'_>,
) -> BTreeMap<SetKey, WantedSet> {
    let mut sets: BTreeMap<SetKey, WantedSet> = BTreeMap::new();
    for port in &service.ports {
        for (frontend, (flags, policy)) in frontends(service, port, node_ports) {
            let key = SetKey {
                service: name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family: family_of(frontend.addr.ip()),
                policy,
            };
            let inside = key.inside(flags);
            if inside != key {
                let set = sets.entry(inside).or_default();
                set.inside_of.insert(frontend);
            }
            let set = sets.entry(key).or_default();
            if flags & frontend_flag::SOURCE_RANGES != 0 {
                set.ranges = ranges(service, family_of(frontend.addr.ip()));
            }
            set.frontends.insert(frontend, flags);
        }
    }
    for (key, set) in &mut sets {
        set.affinity_seconds = service.affinity_seconds;
        fill(key, set, &service.shares, slices.clone(), here);
    }
    sets
}

/// ClusterIPs take the internal traffic policy; node ports, external IPs and addresses of load balancers the external
/// one. All families are those of the ClusterIPs.
fn frontends(
    service: &Service,
    port: &ServicePort,
    node_ports: &[IpAddr],
) -> BTreeMap<FrontendAddr, (u32, TrafficPolicy)> {
    let at = |ip: &IpAddr, number: u16| FrontendAddr {
        addr: SocketAddr::new(*ip, number),
        protocol: port.protocol.number(),
    };
    let families: BTreeSet<Family> = service
        .cluster_ips
        .iter()
        .map(|ip| family_of(*ip))
        .collect();
    let served = |ip: &&IpAddr| families.contains(&family_of(**ip));
    let external = (frontend_flag::EXTERNAL, service.external_policy);
    let mut frontends = BTreeMap::new();
    for ip in service.load_balancer_ips.iter().filter(served) {
        let filtered = match ranges(service, family_of(*ip)).is_empty() {
            true => 0,
            false => frontend_flag::SOURCE_RANGES,
        };
        let flags = frontend_flag::EXTERNAL | filtered;
        frontends.insert(at(ip, port.port), (flags, service.external_policy));
    }
    for ip in service.external_ips.iter().filter(served) {
        frontends.insert(at(ip, port.port), external);
    }
    if let Some(number) = port.node_port {
        for ip in node_ports.iter().filter(served) {
            let (flags, policy) = external;
            let loopback = match ip.is_loopback() {
                true => frontend_flag::LOOPBACK,
                false => 0,
            };
            frontends.insert(at(ip, number), (flags | loopback, policy));
        }
    }
    for ip in &service.cluster_ips {
        frontends.insert(at(ip, port.port), (0, service.internal_policy));
    }
    frontends
}

/// The source ranges of a family; as with kube-proxy, a family without any admits every source.
fn ranges(service: &Service, family: Family) -> BTreeSet<IpNetwork> {
    let of_family = |range: &&IpNetwork| family_of(range.ip()) == family;
    let ranges = service.source_ranges.iter().filter(of_family);
    ranges.map(network_of).collect()
}

fn fill<'a>(
    key: &SetKey,
    set: &mut WantedSet,
    shares: &[PodShare],
    slices: impl Iterator<Item = &'a EndpointSlice>,
    here: Here<'_>,
) {
    let mut addresses = Vec::new();
    let mut endpoints: Vec<&SliceEndpoint> = Vec::new();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .filter(|port| port.name == key.port && port.protocol == key.protocol);
        for port in ports {
            let of_family = |e: &&SliceEndpoint| family_of(e.addr) == key.family;
            for endpoint in slice.endpoints.iter().filter(of_family) {
                addresses.push(SocketAddr::new(endpoint.addr, port.port));
                endpoints.push(endpoint);
            }
        }
    }
    let selection = select(&endpoints, key.policy, here);
    let pick = |index: &usize| addresses[*index];
    set.draining = selection.draining.iter().map(pick).collect();
    set.chosen = match shares {
        [] => selection
            .chosen
            .iter()
            .map(|index| (pick(index), 1))
            .collect(),
        shares => {
            let chosen = selection.chosen.iter();
            let chosen: Vec<_> = chosen.map(|index| endpoints[*index]).collect();
            let weights = weights(&chosen, shares);
            let weighted = selection.chosen.iter().map(pick).zip(weights);
            weighted.filter(|(_, weight)| *weight > 0).collect()
        }
    };
    if key.policy == TrafficPolicy::Local && selection.elsewhere {
        set.flags |= service_flag::DROP_IF_EMPTY;
    }
}
