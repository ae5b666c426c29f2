//! Which EndpointSlices a Service should have, and the fewest writes that lead there. Pure.
//!
//! The rules for an endpoint are upstream's (kubernetes/endpointslice `utils.go`). Unlike upstream a slice is kept
//! and rewritten when the target port changes, so that clients never see a moment without endpoints.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const US: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Upstream's `--max-endpoints-per-slice`.
pub(super) const MAX_ENDPOINTS: usize = 100;

/// The writes, in the order in which they must be done: what is added comes before what is removed.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(Arc<EndpointSlice>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// The ports of a slice in a form that can be compared: name, protocol, number, application protocol.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// Desired endpoints by the pod's uid.
type Endpoints = BTreeMap<String, Endpoint>;

impl Family {
    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn has(self, address: &str) -> bool {
        match address.parse() {
            Ok(IpAddr::V4(_)) => self == Self::V4,
            Ok(IpAddr::V6(_)) => self == Self::V6,
            Err(_) => false,
        }
    }
}

/// # Arguments
/// `pods` are those that the selector matches; `existing` are the Service's slices that this controller manages;
/// `zone_of` names the zone of a node.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let families = families(service);
    let unwanted = |slice: &Arc<EndpointSlice>| {
        !families
            .iter()
            .any(|family| family.address_type() == slice.address_type)
    };
    for family in &families {
        let slices = existing
            .iter()
            .filter(|slice| slice.address_type == family.address_type());
        plan_family(
            *family,
            service,
            desired(*family, service, pods, zone_of),
            slices.cloned().collect(),
            &mut actions,
        );
    }
    let deletes = existing.iter().filter(|slice| unwanted(slice)).cloned();
    actions.extend(deletes.map(Action::Delete));
    actions.sort_by_key(|action| matches!(action, Action::Delete(_)));
    actions
}

fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    match (named.is_empty(), &spec.cluster_ip) {
        (false, _) => named,
        (true, Some(address)) if Family::V6.has(address) => vec![Family::V6],
        _ => vec![Family::V4],
    }
}

/// The endpoints of one family, by the ports that their pods offer: named target ports may differ among pods.
fn desired(
    family: Family,
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<Ports, Endpoints> {
    let mut desired: BTreeMap<Ports, Endpoints> = BTreeMap::new();
    for pod in pods {
        let Some(address) = pod_address(pod, family) else {
            continue;
        };
        let endpoint = endpoint(service, pod, address, zone_of);
        desired
            .entry(ports(service, Some(pod)))
            .or_default()
            .insert(pod.uid().unwrap_or_else(|| pod.name_any()), endpoint);
    }
    if desired.is_empty() {
        // A Service has a slice even when nothing backs it, so that its readers know that it was looked at.
        desired.insert(ports(service, None), Endpoints::new());
    }
    desired
}

/// The address that puts a pod into the endpoints, if it belongs there: terminated pods do not, terminating ones do.
fn pod_address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let all = status.pod_ips.iter().flatten().map(|address| &address.ip);
    all.chain(&status.pod_ip)
        .find(|address| family.has(address))
        .cloned()
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let spec = service.spec.as_ref();
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let ready = publish || (serving && !terminating);
    let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let zone = node_name.as_deref().and_then(zone_of);
    let distribution = spec.and_then(|spec| spec.traffic_distribution.as_deref());
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: ready
            .then(|| hints(distribution, node_name.as_deref(), zone.as_deref()))
            .flatten(),
        hostname: hostname(service, pod),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        node_name,
        zone,
        ..Endpoint::default()
    }
}

/// The hints of `spec.trafficDistribution`: each endpoint serves its own zone, or node first and then zone.
fn hints(
    distribution: Option<&str>,
    node: Option<&str>,
    zone: Option<&str>,
) -> Option<EndpointHints> {
    let by_node = distribution == Some("PreferSameNode");
    let by_zone = by_node || matches!(distribution, Some("PreferClose" | "PreferSameZone"));
    let for_nodes = node.filter(|_| by_node).map(|name| {
        vec![ForNode {
            name: name.to_owned(),
        }]
    });
    let for_zones = zone.filter(|_| by_zone).map(|name| {
        vec![ForZone {
            name: name.to_owned(),
        }]
    });
    (for_nodes.is_some() || for_zones.is_some()).then_some(EndpointHints {
        for_nodes,
        for_zones,
    })
}

/// The pod's own DNS name under a headless Service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|hostname| here && !hostname.is_empty())
}

/// The Service's ports as this pod offers them. A named target port that the pod does not have is left out; without
/// a pod so are all named ones.
fn ports(service: &Service, pod: Option<&Arc<Pod>>) -> Ports {
    let declared = service.spec.iter().flat_map(|spec| &spec.ports).flatten();
    declared
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((
                port.name.clone().unwrap_or_default(),
                protocol.clone(),
                target_port(port, &protocol, pod)?,
                port.app_protocol.clone(),
            ))
        })
        .collect()
}

fn target_port(port: &ServicePort, protocol: &str, pod: Option<&Arc<Pod>>) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod?.spec.as_ref()?;
            // Init containers that keep running (sidecars) offer ports too.
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|offered| {
                    offered.name.as_deref() == Some(name)
                        && offered.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|offered| offered.container_port)
        }
    }
}

/// A slice on its way to its desired content.
struct Draft {
    /// What it was made from; `None`: it is new.
    from: Option<Arc<EndpointSlice>>,
    ports: Ports,
    endpoints: Vec<Endpoint>,
}

fn plan_family(
    family: Family,
    service: &Service,
    desired: BTreeMap<Ports, Endpoints>,
    existing: Vec<Arc<EndpointSlice>>,
    actions: &mut Vec<Action>,
) {
    let (fitting, spare): (Vec<_>, Vec<_>) = existing
        .iter()
        .cloned()
        .partition(|slice| desired.contains_key(&slice_ports(slice)));
    let mut spare = VecDeque::from(spare);
    let mut drafts = Vec::new();
    for (ports, mut missing) in desired {
        let mut own: Vec<Draft> = fitting
            .iter()
            .filter(|slice| slice_ports(slice) == ports)
            .map(|slice| keep(slice, &ports, &mut missing))
            .collect();
        for draft in &mut own {
            let room = MAX_ENDPOINTS.saturating_sub(draft.endpoints.len());
            draft.endpoints.extend(take(&mut missing, room));
        }
        while !missing.is_empty() || own.is_empty() {
            own.push(Draft {
                from: spare.pop_front(),
                ports: ports.clone(),
                endpoints: take(&mut missing, MAX_ENDPOINTS),
            });
        }
        // An empty slice stays only if there is no other one for these ports.
        own.sort_by_key(|draft| draft.endpoints.is_empty());
        while own.len() > 1 && own.last().is_some_and(|draft| draft.endpoints.is_empty()) {
            spare.extend(own.pop().and_then(|draft| draft.from));
        }
        drafts.extend(own);
    }

    let mut names: Vec<String> = existing.iter().map(|slice| slice.name_any()).collect();
    for draft in drafts {
        let name = match &draft.from {
            Some(slice) => slice.name_any(),
            None => free_name(service, family, &mut names),
        };
        let slice = build(family, service, name, &draft);
        match draft.from {
            None => actions.push(Action::Create(slice)),
            Some(old) if differs(&old, &slice) => actions.push(Action::Update(slice)),
            Some(_) => {}
        }
    }
    actions.extend(spare.into_iter().map(Action::Delete));
}

/// A slice's endpoints that are still wanted, each as it is wanted now, in the slice's order.
fn keep(slice: &Arc<EndpointSlice>, ports: &Ports, missing: &mut Endpoints) -> Draft {
    let endpoints = slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| {
            let uid = endpoint.target_ref.as_ref()?.uid.as_deref()?;
            missing.remove(uid)
        })
        .take(MAX_ENDPOINTS)
        .collect();
    Draft {
        from: Some(slice.clone()),
        ports: ports.clone(),
        endpoints,
    }
}

fn take(missing: &mut Endpoints, count: usize) -> Vec<Endpoint> {
    std::iter::from_fn(|| missing.pop_first().map(|(_, endpoint)| endpoint))
        .take(count)
        .collect()
}

fn slice_ports(slice: &EndpointSlice) -> Ports {
    let ports = slice.ports.iter().flatten();
    ports
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port.port.unwrap_or_default(),
                port.app_protocol.clone(),
            )
        })
        .collect()
}

/// Names count up and are not random: a create that a stale cache repeats is refused instead of doubled.
fn free_name(service: &Service, family: Family, taken: &mut Vec<String>) -> String {
    let prefix = format!(
        "{}-{}",
        service.name_any(),
        family.address_type().to_lowercase()
    );
    let mut number = 0;
    let name = loop {
        let name = format!("{prefix}-{number}");
        if !taken.contains(&name) {
            break name;
        }
        number += 1;
    };
    taken.push(name.clone());
    name
}

fn build(family: Family, service: &Service, name: String, draft: &Draft) -> EndpointSlice {
    let old = draft.from.as_ref().map(|slice| &slice.metadata);
    EndpointSlice {
        address_type: family.address_type().into(),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            annotations: old.and_then(|old| old.annotations.clone()),
            resource_version: old.and_then(|old| old.resource_version.clone()),
            uid: old.and_then(|old| old.uid.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: service.name_any(),
                uid: service.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        ports: Some(draft.ports.iter().map(endpoint_port).collect()),
        endpoints: Some(draft.endpoints.clone()),
    }
}

fn endpoint_port(
    (name, protocol, port, app_protocol): &(String, String, i32, Option<String>),
) -> EndpointPort {
    EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        app_protocol: app_protocol.clone(),
    }
}

/// The Service's own labels, and those that say whose slice it is.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    let cluster_ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    if cluster_ip == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

fn differs(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.endpoints.as_deref().unwrap_or_default() != new.endpoints.as_deref().unwrap_or_default()
        || slice_ports(old) != slice_ports(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.owner_references != new.metadata.owner_references
}
