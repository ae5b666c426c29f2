//! Where a Pod goes: filter by the hard rules, then the best by the soft ones. Pure and deterministic.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::cluster::{Cluster, NodeState};
use crate::filter::{discouraging_taints, misfits, term_matches};
use crate::pod::PodFacts;

/// No Node fits; the text counts the reasons as kube-scheduler does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable(pub String);

/// What makes a Node better: compared from the first field to the last, the least wins.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    discouraging_taints: usize,
    preference: Reverse<i64>,
    /// Spread: Pods of the same kind that are there already.
    siblings: usize,
    /// The fullest of CPU and memory with this Pod, in thousandths of what the Node offers.
    fullness: u128,
    pods: u128,
    name: &'a str,
}

/// # Errors
/// [`Unschedulable`] when no Node fits.
pub(crate) fn decide<'a>(pod: &PodFacts, cluster: &'a Cluster) -> Result<&'a str, Unschedulable> {
    let count = cluster.nodes().len();
    if count == 0 {
        return Err(Unschedulable("no nodes available to schedule pods".into()));
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for node in cluster.nodes() {
        let misfits = misfits(pod, node);
        if misfits.is_empty() {
            fitting.push(node);
        }
        for reason in misfits {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if fitting.is_empty() {
        let mut reasons: Vec<String> = reasons
            .into_iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        let reasons = reasons.join(", ");
        let text = format!("0/{count} nodes are available: {reasons}.");
        return Err(Unschedulable(text));
    }
    let siblings = cluster.siblings(pod);
    let best = fitting
        .into_iter()
        .map(|node| {
            let there = siblings.get(&*node.facts.name).copied();
            rank(pod, node, there.unwrap_or_default())
        })
        .min();
    best.map(|rank| rank.name)
        .ok_or_else(|| Unschedulable("no nodes available to schedule pods".into()))
}

fn rank<'a>(pod: &PodFacts, node: &'a NodeState, siblings: usize) -> Rank<'a> {
    let preference = pod
        .preferred_affinity
        .iter()
        .filter(|term| term_matches(&term.preference, &node.facts))
        .map(|term| i64::from(term.weight))
        .sum();
    let fullness = ["cpu", "memory"]
        .iter()
        .map(|resource| {
            let amount =
                |of: &crate::pod::Resources| of.get(*resource).copied().unwrap_or_default();
            let used = amount(&node.used) + amount(&pod.requests);
            used.saturating_mul(1_000) / amount(&node.facts.allocatable).max(1)
        })
        .max();
    Rank {
        discouraging_taints: discouraging_taints(pod, &node.facts),
        preference: Reverse(preference),
        siblings,
        fullness: fullness.unwrap_or_default(),
        pods: node.used.get("pods").copied().unwrap_or_default(),
        name: &node.facts.name,
    }
}
