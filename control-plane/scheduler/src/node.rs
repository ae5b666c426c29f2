//! What a scheduler needs to know of a Node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt;

use crate::pod::Resources;
use crate::quantity::milli;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeFacts {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub ready: bool,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
}

impl NodeFacts {
    pub(crate) fn of(node: &Node) -> Self {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let allocatable = status.and_then(|status| {
            // A Node that reports no allocatable offers its capacity.
            status.allocatable.as_ref().or(status.capacity.as_ref())
        });
        Self {
            name: node.name_any(),
            labels: node.labels().clone(),
            ready: conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            taints: spec
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default(),
            allocatable: allocatable
                .into_iter()
                .flatten()
                .filter_map(|(name, amount)| Some((name.clone(), milli(&amount.0)?)))
                .collect(),
        }
    }
}
