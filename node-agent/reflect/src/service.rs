//! What the dataplane needs of a Service.

use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec};
use node_agent_model::{ObjectName, PodShare, ServicePort, TrafficPolicy};
use tracing::warn;

use crate::kind::{is_not_ours, positive, protocol};

/// How a new connection to the Service gets its backend: round-robin, random or maglev.
pub const ALGORITHM: &str = "fairlead/service-algorithm";
/// Shares of the Service's connections by the names of its Pods: `NAME=PERCENT,...`.
pub const SHARES: &str = "fairlead/service-shares";
/// <https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.34/#clientipconfig-v1-core>
const DEFAULT_AFFINITY_SECONDS: u32 = 10800;

/// `None` if it is no proxy's business, or another's.
pub(crate) fn reflect(service: &Service, name: &ObjectName) -> Option<node_agent_model::Service> {
    let spec = service.spec.as_ref()?;
    if is_not_ours(service.metadata.labels.as_ref())
        || spec.type_.as_deref() == Some("ExternalName")
    {
        return None;
    }
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() {
        // "None": headless. Empty: not allocated yet.
        return None;
    }
    let texts = spec.external_ips.iter().flatten();
    let external_ips = parsed(name, "spec.externalIPs", texts);
    let texts = spec.load_balancer_source_ranges.iter().flatten();
    let source_ranges = parsed(name, "spec.loadBalancerSourceRanges", texts);
    Some(node_agent_model::Service {
        cluster_ips,
        families: Vec::new(),
        external_ips,
        load_balancer_ips: load_balancer_ips(service, spec, name),
        source_ranges,
        ports: ports(spec, name),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        health_check_node_port: health_check_node_port(spec),
        affinity_seconds: affinity_seconds(spec),
        algorithm: annotated(service, name, ALGORITHM, str::parse),
        shares: annotated(service, name, SHARES, PodShare::parse_list).unwrap_or_default(),
    })
}

/// The API gives one only to what a load balancer may ask for; another value means nothing.
fn health_check_node_port(spec: &ServiceSpec) -> Option<u16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer")
        && policy(spec.external_traffic_policy.as_deref()) == TrafficPolicy::Local;
    spec.health_check_node_port
        .and_then(positive)
        .filter(|_| asked)
}

/// <https://kubernetes.io/docs/reference/networking/virtual-ips/#session-affinity>
fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(DEFAULT_AFFINITY_SECONDS)
}

/// What an annotation says; one that cannot be read is told and left out.
fn annotated<T, E: Display>(
    service: &Service,
    name: &ObjectName,
    annotation: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = service.metadata.annotations.as_ref()?.get(annotation)?;
    match parse(text.trim()) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(service = %name, annotation, %error, "left out");
            None
        }
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let one = spec.cluster_ip.clone().map(|ip| vec![ip]);
    let texts = spec.cluster_ips.clone().filter(|ips| !ips.is_empty());
    let texts = texts.or(one).unwrap_or_default();
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// An address whose `ipMode` is Proxy is none that packets keep as their destination: they go there to be proxied.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#load-balancer-ip-mode>
fn load_balancer_ips(service: &Service, spec: &ServiceSpec, name: &ObjectName) -> Vec<IpAddr> {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return Vec::new();
    }
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref());
    let is_vip = |ingress: &&LoadBalancerIngress| ingress.ip_mode.as_deref() != Some("Proxy");
    let texts = ingress
        .into_iter()
        .flatten()
        .filter(is_vip)
        .filter_map(|ingress| ingress.ip.as_ref());
    parsed(name, "status.loadBalancer.ingress.ip", texts)
}

fn ports(spec: &ServiceSpec, name: &ObjectName) -> Vec<ServicePort> {
    let with_node_port = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let number = positive(port.port);
        let Some((protocol, number)) = protocol(port.protocol.as_deref()).zip(number) else {
            warn!(service = %name, port = port.port, protocol = port.protocol, "port is not served: neither TCP, UDP nor SCTP");
            return None;
        };
        let node_port = port.node_port.and_then(positive).filter(|_| with_node_port);
        Some(ServicePort { name: port.name.clone().unwrap_or_default(), protocol, port: number, node_port })
    });
    ports.collect()
}

/// Those of the texts that say what they should; the others are told and left out alone.
fn parsed<'a, T: FromStr>(
    name: &ObjectName,
    field: &str,
    texts: impl Iterator<Item = &'a String>,
) -> Vec<T>
where
    T::Err: Debug,
{
    let parse = |text: &'a String| match text.trim().parse() {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(service = %name, field, text, ?error, "left out: cannot be read");
            None
        }
    };
    texts.filter_map(parse).collect()
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

#[cfg(test)]
mod tests {
    use node_agent_model::Change;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, Reflected};

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
        assert_eq!(
            reflect_service(
                spec,
                json!({"service.kubernetes.io/service-proxy-name": "other"})
            ),
            None
        );
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
    fn a_port_of_an_unknown_protocol_is_left_out_alone() {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [
            {"name": "a", "port": 80, "protocol": "DCCP"}, {"name": "b", "port": 53, "protocol": "UDP"}]});
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
    fn only_a_load_balancer_with_the_local_policy_has_a_health_check() {
        let check = |kind: &str, policy: &str| {
            let spec = json!({"clusterIP": "10.96.0.9", "type": kind, "externalTrafficPolicy": policy,
                "healthCheckNodePort": 32000, "ports": [{"port": 80}]});
            reflect_service(spec, json!({}))
                .unwrap()
                .health_check_node_port
        };
        assert_eq!(check("LoadBalancer", "Local"), Some(32000));
        assert_eq!(check("LoadBalancer", "Cluster"), None);
        assert_eq!(check("NodePort", "Local"), None);
    }
}
