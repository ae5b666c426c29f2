//! The objects that the desired state is made of: what the dataplane needs of Services, EndpointSlices, Nodes and Pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::SystemTime;

use ebpf_abi::{Config, Endpoint, Family, Peer};
use ipnetwork::IpNetwork;

use crate::ObjectName;

/// Which version of which object caused a change: every stage logs it, so that a log reads like the way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChangeId {
    pub uid: String,
    pub resource_version: String,
    /// When what made the object change happened, such as a Pod's becoming ready; of EndpointSlices only, by the
    /// control plane's clock.
    pub triggered_at: Option<SystemTime>,
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.uid, self.resource_version)
    }
}

/// One change of the desired state. `None` removes.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Service(ObjectName, Option<Service>),
    /// By the name of the EndpointSlice.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// This node's own addresses that serve NodePorts; a loopback address serves processes of the host.
    NodeAddresses(Vec<IpAddr>),
    /// This node's zone, from its label `topology.kubernetes.io/zone`.
    Zone(Option<String>),
    /// An address on this node: a pod's, or one of the host.
    Endpoint(IpAddr, Option<Endpoint>),
    /// Another node, by its name.
    Peer(String, Option<PeerRoutes>),
    /// Destinations outside of the cluster to which pods keep their own address.
    KeepSource(BTreeSet<IpNetwork>),
    Config(Config),
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
/// <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies>
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// How a new connection gets its backend.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Algorithm {
    /// Strictly one after the other.
    #[default]
    RoundRobin,
    Random,
    /// By the client's address and port, the same on every node (Maglev).
    Maglev,
}

/// No [`Algorithm`] has this name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is no algorithm: choose round-robin, random or maglev")]
pub struct UnknownAlgorithm(String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "random" => Ok(Self::Random),
            "maglev" => Ok(Self::Maglev),
            _ => Err(UnknownAlgorithm(text.to_owned())),
        }
    }
}

/// The share of a Service's connections that some of its pods have together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodShare {
    /// What the pods' names start with, up to a hyphen: the name of their Deployment.
    pub pods: String,
    /// Of all new connections.
    pub percent: u8,
}

/// No [`PodShare`]s are written like this.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BadShares {
    #[error("{0:?} is no share: write NAME=PERCENT, separated by commas")]
    Form(String),
    #[error("the shares are more than a hundred percent together")]
    TooMuch,
}

impl PodShare {
    /// Reads `NAME=PERCENT,...`.
    ///
    /// # Errors
    ///
    /// When a part has another form, or the percents add up to more than a hundred.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, BadShares> {
        let parse = |part: &str| {
            let (pods, percent) = part.split_once('=')?;
            let (pods, percent) = (pods.trim(), percent.trim().parse().ok()?);
            (!pods.is_empty()).then(|| Self {
                pods: pods.to_owned(),
                percent,
            })
        };
        let parts = text.split(',');
        let shares = parts
            .map(|part| parse(part).ok_or_else(|| BadShares::Form(part.to_owned())))
            .collect::<Result<Vec<_>, _>>()?;
        let sum: u32 = shares.iter().map(|share| u32::from(share.percent)).sum();
        if sum > 100 {
            return Err(BadShares::TooMuch);
        }
        Ok(shares)
    }
}

/// A Service that has ClusterIPs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    pub cluster_ips: Vec<IpAddr>,
    /// Of what has no ClusterIP, as the ports of the node that lead to a pod; those of a ClusterIP are its own.
    pub families: Vec<Family>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Of `status.loadBalancer.ingress`, those whose `ipMode` is VIP.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may reach the load balancer's addresses.
    pub source_ranges: Vec<IpNetwork>,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// With `sessionAffinity: ClientIP`, its timeout; else 0.
    pub affinity_seconds: u32,
    /// `None`: the node's default.
    pub algorithm: Option<Algorithm>,
    /// Empty: every endpoint has the same share.
    pub shares: Vec<PodShare>,
    /// `spec.healthCheckNodePort`: where a load balancer asks this node for local endpoints.
    pub health_check_node_port: Option<u16>,
}

/// What a load balancer that asks at the healthCheckNodePort of a Service is told.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#load-balancer-nodeport-allocation>
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    pub port: u16,
    /// Ready endpoints on this node, each address once.
    pub local_endpoints: usize,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Empty if the Service has one unnamed port.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointSlice {
    /// From the label `kubernetes.io/service-name`.
    pub service: ObjectName,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// One address of an EndpointSlice with its conditions, defaults applied.
/// <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions>
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SliceEndpoint {
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Node on which it runs.
    pub node: Option<String>,
    /// Name of the Pod.
    pub pod: Option<String>,
    /// `hints.forNodes`: nodes whose clients should use it.
    pub node_hints: Vec<String>,
    /// `hints.forZones`: zones whose clients should use it.
    pub zone_hints: Vec<String>,
}

impl SliceEndpoint {
    /// A ready endpoint of which nothing more is known.
    pub const fn at(addr: IpAddr) -> Self {
        Self {
            addr,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            pod: None,
            node_hints: Vec::new(),
            zone_hints: Vec::new(),
        }
    }
}

/// What the overlay needs of a Node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    pub name: String,
    /// Addresses of type `InternalIP`, in the Node's order.
    pub internal_ips: Vec<IpAddr>,
    /// Of its other types.
    pub other_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty while the control plane has not given any.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`, in seconds since 1970; 0 if unknown.
    pub created: i64,
    /// About to go: it is being deleted, or its autoscaler has said so. Load balancers should leave it.
    pub leaving: bool,
}

/// Another node: how to reach it, and which prefixes lie there.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRoutes {
    pub peer: Peer,
    pub prefixes: Vec<IpNetwork>,
}
