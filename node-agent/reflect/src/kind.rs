//! What the dataplane needs of each kind of object.

use std::collections::BTreeMap;
use std::fmt::Debug;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use node_agent_model::{Change, ObjectName, Protocol, SliceEndpoint, SlicePort};
use tracing::warn;

use crate::service;

/// What became of an object. `None` in it: the object is gone, or is none of the dataplane's business.
#[derive(Clone, Debug, PartialEq)]
pub enum Reflected {
    Change(Change),
    Node {
        name: String,
        node: Option<node_agent_model::Node>,
    },
}

/// A kind of object that the agent watches.
pub trait Kind:
    kube::Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned + Send + 'static
{
    /// What this object says.
    fn reflect(&self, name: ObjectName) -> Reflected;
    /// That there is no such object.
    fn removed(name: ObjectName) -> Reflected;
}

/// Another proxy serves the Service, or nobody needs one.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#servicekubernetesioservice-proxy-name>
const NOT_OURS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];
const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler is about to remove the node.
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Kind for Service {
    fn reflect(&self, name: ObjectName) -> Reflected {
        Reflected::Change(Change::Service(name.clone(), service::reflect(self, &name)))
    }

    fn removed(name: ObjectName) -> Reflected {
        Reflected::Change(Change::Service(name, None))
    }
}

impl Kind for EndpointSlice {
    fn reflect(&self, name: ObjectName) -> Reflected {
        let slice = endpoint_slice(self, &name);
        Reflected::Change(Change::EndpointSlice(name, slice))
    }

    fn removed(name: ObjectName) -> Reflected {
        Reflected::Change(Change::EndpointSlice(name, None))
    }
}

impl Kind for Node {
    fn reflect(&self, name: ObjectName) -> Reflected {
        Reflected::Node {
            node: Some(node(self, &name.name)),
            name: name.name.clone(),
        }
    }

    fn removed(name: ObjectName) -> Reflected {
        Reflected::Node {
            name: name.name.clone(),
            node: None,
        }
    }
}

/// Whether the Node is about to go (KEP-3836): then load balancers must stop sending it connections.
fn is_leaving(node: &Node) -> bool {
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some()
        || taints
            .into_iter()
            .any(|taint| taint.key == AUTOSCALER_TAINT)
}

fn endpoint_slice(
    slice: &EndpointSlice,
    name: &ObjectName,
) -> Option<node_agent_model::EndpointSlice> {
    let labels = slice.metadata.labels.as_ref()?;
    if is_not_ours(Some(labels)) || slice.address_type == "FQDN" {
        return None;
    }
    let service = ObjectName::new(&name.namespace, labels.get(SERVICE_NAME)?);
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        Some(SlicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol(port.protocol.as_deref())?,
            port: positive(port.port?)?,
        })
    });
    let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
        // Only the first address counts; the API says that all of one endpoint are the same.
        let text = endpoint.addresses.first()?;
        let Ok(addr) = text.parse() else {
            warn!(endpoint_slice = %name, address = text, "endpoint is not served: its address is none");
            return None;
        };
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let hints = endpoint.hints.clone().unwrap_or_default();
        Some(SliceEndpoint {
            addr,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.clone(),
            pod: endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"))
                .and_then(|target| target.name.clone()),
            node_hints: hints
                .for_nodes
                .into_iter()
                .flatten()
                .map(|hint| hint.name)
                .collect(),
            zone_hints: hints
                .for_zones
                .into_iter()
                .flatten()
                .map(|hint| hint.name)
                .collect(),
        })
    });
    Some(node_agent_model::EndpointSlice {
        service,
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

fn node(node: &Node, name: &str) -> node_agent_model::Node {
    let leaving = is_leaving(node);
    let spec = node.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.as_ref();
    let one = spec.pod_cidr.map(|cidr| vec![cidr]);
    let cidrs = spec
        .pod_cidrs
        .filter(|cidrs| !cidrs.is_empty())
        .or(one)
        .unwrap_or_default();
    let pod_cidrs = cidrs
        .iter()
        .filter_map(|text| match text.parse::<IpNetwork>() {
            Ok(cidr) => Some(cidr),
            Err(error) => {
                warn!(node = name, pod_cidr = text, %error, "podCIDR is not served");
                None
            }
        });
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    // Names are among them.
    let ips = addresses.filter_map(|address| Some((&address.type_, address.address.parse().ok()?)));
    let (internal, other): (Vec<_>, Vec<_>) = ips.partition(|(kind, _)| *kind == "InternalIP");
    node_agent_model::Node {
        name: name.to_owned(),
        internal_ips: internal.into_iter().map(|(_, ip)| ip).collect(),
        other_ips: other.into_iter().map(|(_, ip)| ip).collect(),
        pod_cidrs: pod_cidrs.collect(),
        zone: labels.and_then(|labels| labels.get(ZONE)).cloned(),
        annotations: node.metadata.annotations.clone().unwrap_or_default(),
        created: node
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        leaving,
    }
}

pub(crate) fn is_not_ours(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|labels| NOT_OURS.iter().any(|label| labels.contains_key(*label)))
}

pub(crate) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

pub(crate) fn positive(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_that_is_deleted_or_tainted_by_the_autoscaler_is_leaving() {
        let leaving = |object: Value| {
            let object: Node = serde_json::from_value(object).unwrap();
            node(&object, "n1").leaving
        };
        let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
        assert!(!leaving(json!({})));
        assert!(!leaving(taint("node.kubernetes.io/unschedulable")));
        assert!(leaving(taint("ToBeDeletedByClusterAutoscaler")));
        assert!(leaving(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
        ));
    }

    #[test]
    fn missing_conditions_mean_ready_and_serving() {
        let object: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"]},
                {"addresses": ["10.244.1.3"], "conditions": {"ready": false}},
                {"addresses": ["10.244.1.4"], "conditions": {"ready": false, "terminating": true}}]
        }))
        .unwrap();
        let slice = endpoint_slice(&object, &ObjectName::new("default", "web-1")).unwrap();
        let conditions: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.ready, e.serving, e.terminating))
            .collect();
        // As the API says of each: serving does not follow from what is said of ready.
        assert_eq!(
            conditions,
            [
                (true, true, false),
                (false, true, false),
                (false, true, true)
            ]
        );
    }
}
