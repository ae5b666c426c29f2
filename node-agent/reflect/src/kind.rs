//! What the dataplane needs of each kind of object.

use std::fmt::Debug;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use node_agent_model::{
    Change, ObjectName, Protocol, ServicePort, SliceEndpoint, SlicePort, TrafficPolicy,
};
use tracing::warn;

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

/// Another proxy serves the Service. <https://kubernetes.io/docs/reference/labels-annotations-taints/#servicekubernetesioservice-proxy-name>
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Kind for Service {
    fn reflect(&self, name: ObjectName) -> Reflected {
        Reflected::Change(Change::Service(name.clone(), service(self, &name)))
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
            name: name.name,
        }
    }

    fn removed(name: ObjectName) -> Reflected {
        Reflected::Node {
            name: name.name,
            node: None,
        }
    }
}

fn service(service: &Service, name: &ObjectName) -> Option<node_agent_model::Service> {
    let labels = service.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(PROXY_NAME)) {
        return None;
    }
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let one = spec.cluster_ip.clone().map(|ip| vec![ip]);
    let texts = spec
        .cluster_ips
        .clone()
        .filter(|ips| !ips.is_empty())
        .or(one)
        .unwrap_or_default();
    let cluster_ips: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if cluster_ips.is_empty() {
        // "None": headless. Empty: not allocated yet.
        return None;
    }
    let with_node_port = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let number = positive(port.port);
        let Some((protocol, number)) = protocol(port.protocol.as_deref()).zip(number) else {
            warn!(service = %name, port = port.port, protocol = port.protocol, "port is not served: only TCP and UDP are");
            return None;
        };
        let node_port = port.node_port.and_then(positive).filter(|_| with_node_port);
        Some(ServicePort { name: port.name.clone().unwrap_or_default(), protocol, port: number, node_port })
    });
    Some(node_agent_model::Service {
        cluster_ips,
        ports: ports.collect(),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
    })
}

fn endpoint_slice(
    slice: &EndpointSlice,
    name: &ObjectName,
) -> Option<node_agent_model::EndpointSlice> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.contains_key(PROXY_NAME)
        || labels.contains_key(HEADLESS)
        || slice.address_type == "FQDN"
    {
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
        let ready = conditions.ready.unwrap_or(true);
        Some(SliceEndpoint {
            addr,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.clone(),
        })
    });
    Some(node_agent_model::EndpointSlice {
        service,
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

fn node(node: &Node, name: &str) -> node_agent_model::Node {
    let spec = node.spec.clone().unwrap_or_default();
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
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    node_agent_model::Node {
        name: name.to_owned(),
        internal_ips: internal
            .filter_map(|address| address.address.parse().ok())
            .collect(),
        pod_cidrs: pod_cidrs.collect(),
        annotations: node.metadata.annotations.clone().unwrap_or_default(),
        created: node
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
    }
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

fn positive(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reflect_service(spec: Value, labels: Value) -> Option<node_agent_model::Service> {
        let object: Service = serde_json::from_value(
            json!({"metadata": {"name": "web", "labels": labels}, "spec": spec}),
        )
        .unwrap();
        match object.reflect(ObjectName::new("default", "web")) {
            Reflected::Change(Change::Service(_, service)) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn services_that_need_no_proxy_are_skipped() {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]});
        assert!(reflect_service(spec.clone(), json!({})).is_some());
        assert_eq!(reflect_service(spec, json!({PROXY_NAME: "other"})), None);
        assert_eq!(
            reflect_service(
                json!({"clusterIP": "None", "ports": [{"port": 80}]}),
                json!({})
            ),
            None
        );
        assert_eq!(
            reflect_service(
                json!({"type": "ExternalName", "externalName": "example.org"}),
                json!({})
            ),
            None
        );
        assert_eq!(
            reflect_service(json!({"ports": [{"port": 80}]}), json!({})),
            None
        );
    }

    #[test]
    fn a_port_that_is_neither_tcp_nor_udp_is_left_out_alone() {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [
            {"name": "a", "port": 80, "protocol": "SCTP"}, {"name": "b", "port": 53, "protocol": "UDP"}]});
        let service = reflect_service(spec, json!({})).unwrap();
        assert_eq!(
            service
                .ports
                .iter()
                .map(|port| port.name.as_str())
                .collect::<Vec<_>>(),
            ["b"]
        );
    }

    #[test]
    fn missing_conditions_mean_ready_and_serving() {
        let object: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"]},
                {"addresses": ["10.244.1.3"], "conditions": {"ready": false}}]
        }))
        .unwrap();
        let slice = endpoint_slice(&object, &ObjectName::new("default", "web-1")).unwrap();
        let conditions: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.ready, e.serving, e.terminating))
            .collect();
        assert_eq!(conditions, [(true, true, false), (false, false, false)]);
    }
}
