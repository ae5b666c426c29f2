//! Whether a Pod may run on a Node, and if not why: the hard rules, in the words of kube-scheduler.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use crate::cluster::NodeState;
use crate::node::NodeFacts;
use crate::pod::{HostPort, PodFacts};

/// What `NodeName` of `matchFields` refers to; no other field can be selected.
const NAME_FIELD: &str = "metadata.name";

/// Every reason of the first rule that the Node breaks; empty when it fits.
pub(crate) fn misfits(pod: &PodFacts, node: &NodeState) -> Vec<String> {
    let facts = &node.facts;
    if let Some(rule) = pod.unsupported {
        return vec![format!("scheduler(s) do not support {rule}")];
    }
    let unschedulable = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if facts.unschedulable && !tolerates(&pod.tolerations, &unschedulable) {
        return vec!["node(s) were unschedulable".into()];
    }
    if let Some(taint) = untolerated(pod, facts) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        )];
    }
    if !facts.ready && !tolerates_not_ready(pod, facts) {
        return vec!["node(s) were not ready".into()];
    }
    if !selected(pod, facts) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if ports_clash(&pod.host_ports, &node.host_ports) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    pod.requests
        .iter()
        .filter(|(name, amount)| **amount > node.free(name))
        .map(|(name, _)| match name.as_str() {
            "pods" => "Too many pods".into(),
            other => format!("Insufficient {other}"),
        })
        .collect()
}

/// Where a Pod that some Node must have may be: the rules of Node and Pod alone, without what runs there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// It belongs there.
    pub run: bool,
    /// If it is there, it may stay.
    pub stay: bool,
}

/// Whether a DaemonSet's Pod belongs on a Node (`NodeShouldRunDaemonPod` of Kubernetes). A taint that only keeps from
/// coming drives nobody away.
#[must_use]
pub fn placement(pod: &Pod, node: &Node) -> Placement {
    let (pod, node) = (PodFacts::of(pod), NodeFacts::of(node));
    let fits = selected(&pod, &node);
    let driven_away = node
        .taints
        .iter()
        .any(|taint| taint.effect == "NoExecute" && !tolerates(&pod.tolerations, taint));
    Placement {
        run: fits && untolerated(&pod, &node).is_none(),
        stay: fits && !driven_away,
    }
}

fn untolerated<'a>(pod: &PodFacts, node: &'a NodeFacts) -> Option<&'a Taint> {
    let hard = |taint: &&Taint| ["NoSchedule", "NoExecute"].contains(&&*taint.effect);
    node.taints
        .iter()
        .filter(hard)
        .find(|taint| !tolerates(&pod.tolerations, taint))
}

/// How many taints ask to stay away without forbidding to come.
pub(crate) fn discouraging_taints(pod: &PodFacts, node: &NodeFacts) -> usize {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule")
        .filter(|taint| !tolerates(&pod.tolerations, taint))
        .count()
}

/// A Node that is tainted for not being ready has been judged by its taints; one that is not tainted yet has not.
fn tolerates_not_ready(pod: &PodFacts, node: &NodeFacts) -> bool {
    let about_readiness = |taint: &Taint| {
        [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ]
        .contains(&&*taint.key)
    };
    node.taints.iter().any(about_readiness)
        || [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ]
        .iter()
        .all(|key| {
            let taint = Taint {
                key: (*key).into(),
                effect: "NoSchedule".into(),
                ..Taint::default()
            };
            tolerates(&pod.tolerations, &taint)
        })
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    tolerations.iter().any(|toleration| {
        let effect = set(&toleration.effect).is_none_or(|effect| effect == taint.effect);
        let key = set(&toleration.key);
        let operator = set(&toleration.operator);
        let exists = operator.as_deref() == Some("Exists");
        let equal = operator.is_none() || operator.as_deref() == Some("Equal");
        let value = toleration.value.as_deref().unwrap_or_default();
        let same_value = value == taint.value.as_deref().unwrap_or_default();
        effect
            && match key {
                // An empty key with Exists tolerates everything.
                None => exists,
                Some(key) => key == taint.key && (exists || equal && same_value),
            }
    })
}

fn selected(pod: &PodFacts, node: &NodeFacts) -> bool {
    let by_selector = pod
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let by_affinity = pod.required_affinity.as_ref().is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| term_matches(term, node))
    });
    by_selector && by_affinity
}

/// All requirements of the term hold. A term without any matches nothing.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = BTreeMap::from([(NAME_FIELD.to_owned(), node.name.clone())]);
    expressions
        .iter()
        .all(|requirement| holds(requirement, &node.labels))
        && fields.iter().all(|requirement| holds(requirement, &name))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let label = labels.get(&requirement.key);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |by: fn(i64, i64) -> bool| {
        let (Some(have), [bound]) = (label.and_then(|label| number(label)), values) else {
            return false;
        };
        number(bound).is_some_and(|bound| by(have, bound))
    };
    match requirement.operator.as_str() {
        "In" => label.is_some_and(|label| values.contains(label)),
        "NotIn" => label.is_none_or(|label| !values.contains(label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => compare(|have, bound| have > bound),
        "Lt" => compare(|have, bound| have < bound),
        _ => false,
    }
}

/// Two ports clash when number and protocol are the same and the addresses overlap; an empty address is all.
fn ports_clash(wanted: &BTreeSet<HostPort>, used: &BTreeMap<HostPort, usize>) -> bool {
    wanted.iter().any(|(address, protocol, port)| {
        used.keys().any(|(other, other_protocol, other_port)| {
            port == other_port
                && protocol == other_protocol
                && (address.is_empty() || other.is_empty() || address == other)
        })
    })
}
