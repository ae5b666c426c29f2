//! The objects that the desired state is made of: what the dataplane needs of Services, EndpointSlices, Nodes and Pods.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ebpf_abi::{Config, Endpoint, Peer};
use ipnetwork::IpNetwork;

/// Namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which version of which object caused a change: every stage logs it, so that a log reads like the way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChangeId {
    pub uid: String,
    pub resource_version: String,
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
    /// This node's own addresses that serve NodePorts.
    NodeAddresses(Vec<IpAddr>),
    /// An address on this node: a pod's, or one of the host.
    Endpoint(IpAddr, Option<Endpoint>),
    /// Another node, by its name.
    Peer(String, Option<PeerRoutes>),
    Config(Config),
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
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

/// A Service that has ClusterIPs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
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
}

/// What the overlay needs of a Node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    pub name: String,
    /// Addresses of type `InternalIP`, in the Node's order.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty while the control plane has not given any.
    pub pod_cidrs: Vec<IpNetwork>,
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`, in seconds since 1970; 0 if unknown.
    pub created: i64,
}

/// Another node: how to reach it, and which prefixes lie there.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRoutes {
    pub peer: Peer,
    pub prefixes: Vec<IpNetwork>,
}
