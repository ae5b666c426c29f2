//! What a scheduler needs to know of a Pod, read once from the API's object.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, NodeSelector, Pod, PodSpec, PreferredSchedulingTerm, Toleration,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::quantity::milli;

pub(crate) const SCHEDULER_NAME: &str = "default-scheduler";

/// Namespace and name.
pub(crate) type PodKey = (String, String);

/// Resource name -> thousandths of its unit.
pub(crate) type Resources = BTreeMap<String, u128>;

/// Host address (empty: all), protocol, port.
pub(crate) type HostPort = (String, String, i32);

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// The uid of the controller that owns the Pod.
    pub owner: Option<String>,
    pub created: Option<Timestamp>,
    pub priority: i32,
    /// Where the Pod is bound to, if it is.
    pub node: Option<String>,
    /// Whether it waits for this scheduler.
    pub waiting: bool,
    /// It has ended and holds no resources any more.
    pub ended: bool,
    pub requests: Resources,
    pub host_ports: BTreeSet<HostPort>,
    pub node_selector: BTreeMap<String, String>,
    pub required_affinity: Option<NodeSelector>,
    pub preferred_affinity: Vec<PreferredSchedulingTerm>,
    pub tolerations: Vec<Toleration>,
    /// A hard rule of the Pod that this scheduler does not know; to ignore it would break it.
    pub unsupported: Option<&'static str>,
}

impl PodFacts {
    pub(crate) fn of(pod: &Pod) -> Self {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let node = spec.node_name.clone().filter(|name| !name.is_empty());
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        let scheduler = spec.scheduler_name.as_deref().unwrap_or_default();
        let ours = ["", SCHEDULER_NAME].contains(&scheduler);
        let gated = spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty());
        let node_affinity = spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref());
        let owners = pod.metadata.owner_references.iter().flatten();
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().clone(),
            owner: owners
                .filter(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone())
                .next(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            priority: spec.priority.unwrap_or_default(),
            waiting: node.is_none()
                && ours
                && !gated
                && !ended
                && pod.metadata.deletion_timestamp.is_none(),
            node,
            ended,
            requests: requests(spec),
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_affinity: node_affinity.and_then(|affinity| {
                affinity
                    .required_during_scheduling_ignored_during_execution
                    .clone()
            }),
            preferred_affinity: node_affinity
                .and_then(|affinity| {
                    affinity
                        .preferred_during_scheduling_ignored_during_execution
                        .clone()
                })
                .unwrap_or_default(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            unsupported: unsupported(spec),
        }
    }

    pub(crate) fn key(&self) -> PodKey {
        (self.namespace.clone(), self.name.clone())
    }
}

/// What the Pod needs at its peak: all containers and sidecars together, or an init container beside the sidecars
/// that started before it, whichever is more
/// (<https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>).
fn requests(spec: &PodSpec) -> Resources {
    let mut running = Resources::new();
    for container in &spec.containers {
        add(&mut running, &container_requests(container));
    }
    let mut sidecars = Resources::new();
    let mut starting = Resources::new();
    for init in spec.init_containers.iter().flatten() {
        let own = container_requests(init);
        if init.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            add(&mut running, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut beside = sidecars.clone();
            add(&mut beside, &own);
            raise(&mut starting, &beside);
        }
    }
    raise(&mut running, &starting);
    let overhead = spec.overhead.iter().flatten();
    let overhead = overhead.filter_map(|(name, amount)| Some((name.clone(), milli(&amount.0)?)));
    add(&mut running, &overhead.collect());
    running.insert("pods".into(), 1_000);
    running.retain(|_, amount| *amount > 0);
    running
}

fn container_requests(container: &Container) -> Resources {
    let resources = container.resources.as_ref();
    let amounts = resources.and_then(|resources| resources.requests.as_ref());
    amounts
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), milli(&amount.0)?)))
        .collect()
}

pub(crate) fn add(sum: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let sum = sum.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(highest: &mut Resources, other: &Resources) {
    for (name, amount) in other {
        let highest = highest.entry(name.clone()).or_default();
        *highest = (*highest).max(*amount);
    }
}

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let own_network = spec.host_network != Some(true);
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            // In the host's network every port is a port of the host.
            let number = match port.host_port {
                None | Some(0) if own_network => return None,
                None | Some(0) => port.container_port,
                Some(number) => number,
            };
            let address = port.host_ip.clone().unwrap_or_default();
            let everywhere = ["0.0.0.0", "::"].contains(&&*address);
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let address = if everywhere { String::new() } else { address };
            Some((address, protocol, number))
        })
        .collect()
}

fn unsupported(spec: &PodSpec) -> Option<&'static str> {
    let affinity = spec.affinity.as_ref();
    let required_pods = affinity
        .and_then(|affinity| affinity.pod_affinity.as_ref())
        .and_then(|pods| {
            pods.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let required_anti = affinity
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|pods| {
            pods.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let spread = spec.topology_spread_constraints.iter().flatten();
    if required_pods.is_some_and(|terms| !terms.is_empty()) {
        Some("a required spec.affinity.podAffinity")
    } else if required_anti.is_some_and(|terms| !terms.is_empty()) {
        Some("a required spec.affinity.podAntiAffinity")
    } else if spread
        .map(|rule| &*rule.when_unsatisfiable)
        .any(|then| then == "DoNotSchedule")
    {
        Some("spec.topologySpreadConstraints with DoNotSchedule")
    } else if spec
        .resource_claims
        .as_ref()
        .is_some_and(|claims| !claims.is_empty())
    {
        Some("spec.resourceClaims")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(spec: Value) -> PodFacts {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        PodFacts::of(&serde_json::from_value(pod).unwrap())
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "0"}}})
    }

    #[test]
    fn requests_are_the_peak_over_the_life_of_the_pod() {
        let init = |cpu: &str| container(cpu);
        let sidecar = |cpu: &str| {
            let mut init = container(cpu);
            init["restartPolicy"] = json!("Always");
            init
        };
        for (inits, cpu) in [
            (vec![], 300),
            (vec![init("1")], 1_000),
            (vec![init("250m")], 300),
            (vec![sidecar("50m")], 350),
            (vec![sidecar("100m"), init("1")], 1_100),
            (vec![init("1"), sidecar("100m")], 1_000),
        ] {
            let pod = facts(
                json!({"containers": [container("100m"), container("200m")], "initContainers": inits, "overhead": {"cpu": "5m"}}),
            );
            let expected = Resources::from([("cpu".into(), cpu + 5), ("pods".into(), 1_000)]);
            assert_eq!(pod.requests, expected, "{inits:?}");
        }
    }

    #[test]
    fn only_pods_that_wait_for_this_scheduler_are_its_own() {
        for (spec, waiting) in [
            (json!({"containers": []}), true),
            (
                json!({"containers": [], "schedulerName": "default-scheduler"}),
                true,
            ),
            (json!({"containers": [], "schedulerName": "other"}), false),
            (json!({"containers": [], "nodeName": "n"}), false),
            (json!({"containers": [], "nodeName": ""}), true),
            (
                json!({"containers": [], "schedulingGates": [{"name": "g"}]}),
                false,
            ),
        ] {
            assert_eq!(facts(spec.clone()).waiting, waiting, "{spec}");
        }
    }

    #[test]
    fn host_ports_are_those_asked_for_and_all_in_the_hosts_network() {
        let ports = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 8081, "protocol": "UDP", "hostIP": "0.0.0.0"}]);
        let spec = |host: bool| json!({"containers": [{"name": "c", "ports": ports}], "hostNetwork": host});
        let udp = (String::new(), "UDP".to_owned(), 8081);
        let tcp = (String::new(), "TCP".to_owned(), 80);
        assert_eq!(facts(spec(false)).host_ports, BTreeSet::from([udp.clone()]));
        assert_eq!(facts(spec(true)).host_ports, BTreeSet::from([tcp, udp]));
    }
}
