//! Which pods of a DaemonSet must come and which must go, node by node. Pure.

use std::collections::BTreeMap;

use control_plane_scheduler::Placement;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    Toleration,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::workload::{is_active, is_available, is_ready, phase, share};

/// The label that names the revision which a pod was made from.
pub(super) const HASH: &str = "controller-revision-hash";
/// The only field that a node can be chosen by without a label.
const NAME_FIELD: &str = "metadata.name";

/// What is to be done, and what the set then says of itself.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The names of nodes that lack their pod.
    pub make: Vec<String>,
    /// Pods to delete, by their places in the list.
    pub delete: Vec<usize>,
    pub status: DaemonSetStatus,
}

/// `place` says where a new pod of the set may be; `hash` is the present revision's.
pub(super) fn plan(
    set: &DaemonSet,
    nodes: &[&Node],
    pods: &[Pod],
    hash: &str,
    place: &dyn Fn(&Node) -> Placement,
    now: Timestamp,
) -> Plan {
    let mut on_node: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, pod) in pods.iter().enumerate() {
        on_node.entry(node_of(pod)).or_default().push(at);
    }
    let mut plan = Plan::default();
    let mut kept = Vec::new();
    let mut wanted = 0;
    for node in nodes {
        let name = node.name_any();
        let placement = place(node);
        let mut here = on_node.remove(&name).unwrap_or_default();
        wanted += i32::from(placement.run);
        plan.status.current_number_scheduled += i32::from(placement.run && !here.is_empty());
        plan.status.number_misscheduled += i32::from(!placement.run && !here.is_empty());
        // One that has ended is replaced; what is about to go keeps its place until it is gone.
        let ended = here.extract_if(.., |at| matches!(phase(&pods[*at]), "Failed" | "Succeeded"));
        plan.delete
            .extend(ended.filter(|at| pods[*at].metadata.deletion_timestamp.is_none()));
        here.sort_by_key(|at| {
            let pod = &pods[*at];
            (!is_ready(pod), pod.creation_timestamp().map(|time| time.0))
        });
        match here.first() {
            None if placement.run => plan.make.push(name),
            Some(best) if placement.run || placement.stay => {
                plan.delete
                    .extend(here[1..].iter().filter(|at| is_active(&pods[**at])));
                if placement.run {
                    kept.push(*best);
                }
            }
            _ => plan
                .delete
                .extend(here.iter().filter(|at| is_active(&pods[**at]))),
        }
    }
    // Pods of nodes that are no more are taken away with them.
    plan.status.desired_number_scheduled = wanted;
    replace_old(set, pods, hash, &kept, &mut plan, now);
    count(set, pods, hash, &kept, &mut plan.status, now);
    plan
}

/// Deletes pods of earlier revisions, as many as may be missing at a time; those that serve nobody go at once.
fn replace_old(
    set: &DaemonSet,
    pods: &[Pod],
    hash: &str,
    kept: &[usize],
    plan: &mut Plan,
    now: Timestamp,
) {
    let strategy = set.spec.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return;
    }
    let rolling = strategy.rolling_update.unwrap_or_default();
    let wanted = plan.status.desired_number_scheduled;
    // Two pods of a DaemonSet on one node are not made here, so surge counts as unavailability.
    let surge = share(rolling.max_surge.as_ref(), "0", wanted, true);
    let most = share(rolling.max_unavailable.as_ref(), "1", wanted, true)
        .max(surge)
        .max(1);
    let available =
        |at: &usize| is_active(&pods[*at]) && is_available(&pods[*at], min_ready(set), now);
    let serving = kept.iter().filter(|at| available(at)).count();
    let mut may_go = most - (wanted - i32::try_from(serving).unwrap_or(i32::MAX));
    let old = kept
        .iter()
        .filter(|at| is_active(&pods[**at]) && !is_of(&pods[**at], hash));
    for at in old {
        if available(at) {
            if may_go <= 0 {
                continue;
            }
            may_go -= 1;
        }
        plan.delete.push(*at);
    }
}

fn count(
    set: &DaemonSet,
    pods: &[Pod],
    hash: &str,
    kept: &[usize],
    status: &mut DaemonSetStatus,
    now: Timestamp,
) {
    let number = |wanted: &dyn Fn(&Pod) -> bool| {
        let kept = kept.iter().filter(|at| wanted(&pods[**at])).count();
        i32::try_from(kept).unwrap_or(i32::MAX)
    };
    // Zero is written as nothing, as Kubernetes does.
    let some = |number: i32| (number > 0).then_some(number);
    let active = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    let available = number(&|pod| active(pod) && is_available(pod, min_ready(set), now));
    status.number_ready = number(&|pod| active(pod) && is_ready(pod));
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = some(number(&|pod| active(pod) && is_of(pod, hash)));
    status.observed_generation = set.metadata.generation;
    status.collision_count = set
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    status.conditions = set
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
}

pub(super) fn min_ready(set: &DaemonSet) -> i32 {
    set.spec.min_ready_seconds.unwrap_or(0)
}

fn is_of(pod: &Pod, hash: &str) -> bool {
    pod.labels().get(HASH).is_some_and(|found| found == hash)
}

/// Where a pod is, or where its affinity sends it; empty if neither says.
fn node_of(pod: &Pod) -> String {
    let Some(spec) = &pod.spec else {
        return String::new();
    };
    if let Some(node) = spec.node_name.as_ref().filter(|name| !name.is_empty()) {
        return node.clone();
    }
    let required = spec.affinity.as_ref().and_then(|affinity| {
        let node = affinity.node_affinity.as_ref()?;
        node.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let terms = required
        .iter()
        .flat_map(|required| &required.node_selector_terms);
    let mut fields = terms.flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == NAME_FIELD);
    let name = name.and_then(|field| field.values.as_ref()?.first());
    name.cloned().unwrap_or_default()
}

/// A pod that only this node may have: each term of its affinity is narrowed to it, and the scheduler does the rest.
pub(super) fn for_node(mut pod: Pod, node: &str) -> Pod {
    let only = NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let spec = pod.spec.get_or_insert_default();
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let affinity = affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default);
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![only.clone()]);
    }
    pod
}

/// What every daemon tolerates: it belongs to its node in good and in bad times
/// (<https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#taints-and-tolerations>).
pub(super) fn with_tolerations(mut pod: Pod) -> Pod {
    let spec = pod.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect, wanted) in [
        ("not-ready", "NoExecute", true),
        ("unreachable", "NoExecute", true),
        ("disk-pressure", "NoSchedule", true),
        ("memory-pressure", "NoSchedule", true),
        ("pid-pressure", "NoSchedule", true),
        ("unschedulable", "NoSchedule", true),
        ("network-unavailable", "NoSchedule", host_network),
    ] {
        if wanted {
            tolerations.push(Toleration {
                key: Some(format!("node.kubernetes.io/{key}")),
                operator: Some("Exists".to_owned()),
                effect: Some(effect.to_owned()),
                ..Toleration::default()
            });
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use control_plane_scheduler::placement;
    use serde_json::{Value, json};

    use super::*;

    fn set(strategy: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d"},
            "spec": {"selector": {}, "template": {}, "updateStrategy": strategy},
        }))
        .unwrap()
    }

    fn node(name: &str, spec: Value) -> Node {
        let labels = json!({"kubernetes.io/hostname": name});
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let node =
            json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": ready});
        serde_json::from_value(node).unwrap()
    }

    fn template() -> Pod {
        with_tolerations(
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": []}})).unwrap(),
        )
    }

    fn pod(node: &str, hash: &str, ready: bool) -> Pod {
        let mut pod = for_node(template(), node);
        pod.labels_mut().insert(HASH.into(), hash.into());
        let condition = json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
        pod.status =
            serde_json::from_value(json!({"phase": "Running", "conditions": condition})).unwrap();
        pod
    }

    fn run(strategy: Value, nodes: &[Node], pods: &[Pod]) -> Plan {
        let nodes: Vec<&Node> = nodes.iter().collect();
        let place = |node: &Node| placement(&template(), node);
        plan(
            &set(strategy),
            &nodes,
            pods,
            "new",
            &place,
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn each_node_has_one_pod_unless_a_taint_keeps_it_away() {
        let taint = |effect: &str| json!({"taints": [{"key": "x", "effect": effect}]});
        let nodes = [
            node("a", json!({})),
            node("b", json!({"unschedulable": true})),
            node("c", taint("NoSchedule")),
            node("d", taint("NoExecute")),
            node("e", taint("PreferNoSchedule")),
        ];
        let first = run(json!({}), &nodes, &[]);
        assert_eq!(first.make, ["a", "b", "e"]);
        assert_eq!(first.status.desired_number_scheduled, 3);
        // On c it may stay, on d it may not.
        let pods = [
            pod("a", "new", true),
            pod("c", "new", true),
            pod("d", "new", true),
        ];
        let second = run(json!({}), &nodes, &pods);
        assert_eq!(
            (second.make, second.delete),
            (vec!["b".to_owned(), "e".to_owned()], vec![2])
        );
        assert_eq!(second.status.number_misscheduled, 2);
    }

    #[test]
    fn a_node_keeps_its_best_pod_and_a_failed_one_is_replaced() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let mut failed = pod("b", "new", false);
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let pods = [pod("a", "new", false), pod("a", "new", true), failed];
        let next = run(json!({}), &nodes, &pods);
        assert_eq!((next.make, next.delete), (vec!["b".to_owned()], vec![0, 2]));
    }

    #[test]
    fn an_update_takes_no_more_pods_away_than_may_be_missing() {
        let nodes = ["a", "b", "c"].map(|name| node(name, json!({})));
        let old = |ready: [bool; 3]| {
            [("a", 0), ("b", 1), ("c", 2)].map(|(name, at)| pod(name, "old", ready[at]))
        };
        let rolling = |most: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
        assert_eq!(run(rolling(json!(1)), &nodes, &old([true; 3])).delete, [0]);
        assert_eq!(
            run(rolling(json!("50%")), &nodes, &old([true; 3])).delete,
            [0, 1]
        );
        // One that serves nobody goes at once, and its place counts as missing.
        assert_eq!(
            run(rolling(json!(1)), &nodes, &old([true, false, true])).delete,
            [1]
        );
        assert!(
            run(json!({"type": "OnDelete"}), &nodes, &old([true; 3]))
                .delete
                .is_empty()
        );
        let mixed = [
            pod("a", "new", true),
            pod("b", "old", true),
            pod("c", "old", true),
        ];
        let next = run(rolling(json!(1)), &nodes, &mixed);
        assert_eq!(
            (next.delete, next.status.updated_number_scheduled),
            (vec![1], Some(1))
        );
        let starting = [
            pod("a", "new", false),
            pod("b", "old", true),
            pod("c", "old", true),
        ];
        assert!(run(rolling(json!(1)), &nodes, &starting).delete.is_empty());
    }
}
