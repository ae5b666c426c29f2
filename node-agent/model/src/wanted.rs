//! From one Service and its EndpointSlices to the services of the maps that it needs.
//!
//! A port of a Service needs one service of the maps for each address family and each traffic policy that its
//! addresses ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ebpf_abi::{Family, frontend_flag, service_flag};
use ipnetwork::IpNetwork;

use crate::address::{IpPort, family_of, network_of};
use crate::select::choose;
use crate::slices::{KeptEndpoint, Slices};
use crate::turns::Member;
use crate::weights::weights;
use crate::{Algorithm, PodShare, Protocol, Service, ServicePort, TrafficPolicy};

/// A service of the maps, of those that a Service needs: one port, in one family, with one of the two sets of backends.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SetKey {
    /// Name of the port.
    pub(crate) port: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    pub(crate) policy: TrafficPolicy,
}

/// Where clients ask for a service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FrontendAddr {
    pub(crate) at: IpPort,
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
    /// With their weights, in the order of the addresses, each once.
    pub(crate) chosen: Vec<(IpPort, u32)>,
    /// As `chosen`.
    pub(crate) draining: Vec<IpPort>,
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
        mut id_of: impl FnMut(IpPort) -> Option<u32>,
    ) -> Option<Vec<Member>> {
        let members = self.chosen.iter().map(|(addr, weight)| {
            let id = id_of(*addr)?;
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

/// The services of the maps that a Service needs. `node_ports`: the addresses that serve NodePorts; `zone`: this node's.
pub(crate) fn sets(
    service: &Service,
    slices: &Slices,
    node_ports: &[IpAddr],
    zone: Option<&str>,
) -> BTreeMap<SetKey, WantedSet> {
    let mut sets: BTreeMap<SetKey, WantedSet> = BTreeMap::new();
    for port in &service.ports {
        let name: Arc<str> = port.name.as_str().into();
        for (frontend, (flags, policy)) in frontends(service, port, node_ports) {
            let key = SetKey {
                port: name.clone(),
                protocol: port.protocol,
                family: family_of(frontend.at.ip),
                policy,
            };
            let inside = key.inside(flags);
            if inside != key {
                let set = sets.entry(inside).or_default();
                set.inside_of.insert(frontend);
            }
            let set = sets.entry(key).or_default();
            if flags & frontend_flag::SOURCE_RANGES != 0 {
                set.ranges = ranges(service, family_of(frontend.at.ip));
            }
            set.frontends.insert(frontend, flags);
        }
    }
    for (key, set) in &mut sets {
        set.affinity_seconds = service.affinity_seconds;
        fill(key, set, &service.shares, slices, zone);
    }
    sets
}

/// ClusterIPs take the internal traffic policy; node ports, external IPs and addresses of load balancers the external
/// one.
fn frontends(
    service: &Service,
    port: &ServicePort,
    node_ports: &[IpAddr],
) -> BTreeMap<FrontendAddr, (u32, TrafficPolicy)> {
    let at = |ip: &IpAddr, number: u16| FrontendAddr {
        at: IpPort {
            ip: *ip,
            port: number,
        },
        protocol: port.protocol.number(),
    };
    let of_cluster_ips = service.cluster_ips.iter().map(|ip| family_of(*ip));
    let families: BTreeSet<Family> = service
        .families
        .iter()
        .copied()
        .chain(of_cluster_ips)
        .collect();
    let served = |ip: &&IpAddr| families.contains(&family_of(**ip));
    let external = |ip: &IpAddr| {
        let loopback = match ip.is_loopback() {
            true => frontend_flag::LOOPBACK,
            false => 0,
        };
        (frontend_flag::EXTERNAL | loopback, service.external_policy)
    };
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
        frontends.insert(at(ip, port.port), external(ip));
    }
    if let Some(number) = port.node_port {
        for ip in node_ports.iter().filter(served) {
            frontends.insert(at(ip, number), external(ip));
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

fn fill(
    key: &SetKey,
    set: &mut WantedSet,
    shares: &[PodShare],
    slices: &Slices,
    zone: Option<&str>,
) {
    let endpoints = candidates(key, slices);
    let standings: Vec<_> = endpoints.iter().map(|(_, e)| e.standing(zone)).collect();
    let selection = choose(&standings, key.policy);
    let pick = |index: &usize| endpoints[*index].0;
    set.draining = selection.draining.iter().map(pick).collect();
    let chosen = selection.chosen.iter().map(pick);
    set.chosen = match shares {
        [] => chosen.map(|addr| (addr, 1)).collect(),
        shares => {
            let pods = selection.chosen.iter();
            let pods: Vec<_> = pods
                .map(|index| endpoints[*index].1.pod.as_deref())
                .collect();
            let weighted = chosen.zip(weights(&pods, shares));
            weighted.filter(|(_, weight)| *weight > 0).collect()
        }
    };
    if key.policy == TrafficPolicy::Local && selection.elsewhere {
        set.flags |= service_flag::DROP_IF_EMPTY;
    }
}

/// The endpoints of a set in the order of their addresses, each address once. A network may give a pod the address of one
/// that terminates still, and an endpoint that moves from one EndpointSlice to another is in both for a moment: what does
/// not terminate comes first, as with kube-proxy.
fn candidates<'a>(key: &SetKey, slices: &'a Slices) -> Vec<(IpPort, &'a KeptEndpoint)> {
    let mut found: Vec<(IpPort, &KeptEndpoint)> = Vec::new();
    for slice in slices.iter() {
        let ports = slice
            .ports
            .iter()
            .filter(|port| *port.name == *key.port && port.protocol == key.protocol);
        for port in ports {
            let of_family = |e: &&KeptEndpoint| family_of(e.addr) == key.family;
            let endpoints = slice.endpoints.iter().filter(of_family);
            found.extend(endpoints.map(|endpoint| {
                let (ip, port) = (endpoint.addr, port.port);
                (IpPort { ip, port }, endpoint)
            }));
        }
    }
    found.sort_by_key(|(addr, endpoint)| (*addr, endpoint.terminates()));
    found.dedup_by_key(|(addr, _)| *addr);
    found
}
