//! The cluster as the scheduler sees it: Nodes with what runs on them, placed Pods, Services. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::node::NodeFacts;
use crate::pod::{HostPort, PodFacts, PodKey, Resources, add};

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<String, NodeState>,
    /// Per namespace, the Pods that have a place.
    placed: HashMap<String, HashMap<String, Placed>>,
    /// Per namespace and name, the selectors of the Services.
    services: HashMap<String, HashMap<String, Selector>>,
}

pub(crate) type Selector = BTreeMap<String, String>;

/// A Node and the sum of what its Pods hold.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub facts: NodeFacts,
    pub used: Resources,
    /// How many Pods use each port of the host.
    pub host_ports: BTreeMap<HostPort, usize>,
}

#[derive(Debug)]
struct Placed {
    node: String,
    pod: PodFacts,
}

impl NodeState {
    fn new(facts: NodeFacts) -> Self {
        Self {
            facts,
            used: Resources::new(),
            host_ports: BTreeMap::new(),
        }
    }

    /// How much of a resource is not requested yet; nothing of one that the Node does not offer.
    pub(crate) fn free(&self, resource: &str) -> u128 {
        let all = self.facts.allocatable.get(resource).copied();
        let used = self.used.get(resource).copied();
        all.unwrap_or_default()
            .saturating_sub(used.unwrap_or_default())
    }

    fn take(&mut self, pod: &PodFacts) {
        add(&mut self.used, &pod.requests);
        for port in &pod.host_ports {
            *self.host_ports.entry(port.clone()).or_default() += 1;
        }
    }

    fn give_back(&mut self, pod: &PodFacts) {
        for (name, amount) in &pod.requests {
            if let Some(used) = self.used.get_mut(name) {
                *used = used.saturating_sub(*amount);
            }
        }
        for port in &pod.host_ports {
            if let Some(count) = self.host_ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.host_ports.remove(port);
                }
            }
        }
    }
}

impl Cluster {
    pub(crate) fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeState> {
        self.nodes.values()
    }

    /// Takes in a Node as it is now; says whether anything changed that matters for scheduling.
    pub(crate) fn set_node(&mut self, facts: NodeFacts) -> bool {
        if let Some(node) = self.nodes.get_mut(&facts.name) {
            let changed = node.facts != facts;
            node.facts = facts;
            return changed;
        }
        let mut node = NodeState::new(facts);
        for placed in self.placed.values().flat_map(HashMap::values) {
            if placed.node == node.facts.name {
                node.take(&placed.pod);
            }
        }
        self.nodes.insert(node.facts.name.clone(), node);
        true
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    pub(crate) fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Counts the Pod on `node` and nowhere else.
    pub(crate) fn place(&mut self, pod: PodFacts, node: &str) {
        self.remove_pod(&pod.key());
        if let Some(state) = self.nodes.get_mut(node) {
            state.take(&pod);
        }
        let namespace = self.placed.entry(pod.namespace.clone()).or_default();
        let placed = Placed {
            node: node.to_owned(),
            pod,
        };
        namespace.insert(placed.pod.name.clone(), placed);
    }

    /// Whether the Pod had a place.
    pub(crate) fn remove_pod(&mut self, (namespace, name): &PodKey) -> bool {
        let Some(pods) = self.placed.get_mut(namespace) else {
            return false;
        };
        let removed = pods.remove(name);
        if pods.is_empty() {
            self.placed.remove(namespace);
        }
        if let Some(placed) = &removed
            && let Some(node) = self.nodes.get_mut(&placed.node)
        {
            node.give_back(&placed.pod);
        }
        removed.is_some()
    }

    pub(crate) fn placed_pods(&self) -> Vec<PodKey> {
        let all = self.placed.values().flat_map(HashMap::values);
        all.map(|placed| placed.pod.key()).collect()
    }

    pub(crate) fn set_service(&mut self, namespace: &str, name: &str, selector: Selector) {
        let services = self.services.entry(namespace.to_owned()).or_default();
        services.insert(name.to_owned(), selector);
    }

    pub(crate) fn remove_service(&mut self, namespace: &str, name: &str) {
        if let Some(services) = self.services.get_mut(namespace) {
            services.remove(name);
        }
    }

    pub(crate) fn clear_services(&mut self) {
        self.services.clear();
    }

    /// How many Pods of the same kind each Node has: with the same owner, behind a common Service, or with the very
    /// same labels.
    pub(crate) fn siblings(&self, pod: &PodFacts) -> HashMap<&str, usize> {
        let matches = |selector: &Selector, labels: &BTreeMap<String, String>| {
            let same = |(key, value)| labels.get(key) == Some(value);
            !selector.is_empty() && selector.iter().all(same)
        };
        let services = self.services.get(&pod.namespace);
        let common: Vec<&Selector> = services
            .into_iter()
            .flat_map(HashMap::values)
            .filter(|selector| matches(selector, &pod.labels))
            .collect();
        let mut counts = HashMap::new();
        let neighbours = self.placed.get(&pod.namespace);
        for Placed { node, pod: other } in neighbours.into_iter().flat_map(HashMap::values) {
            let same_owner = pod.owner.is_some() && pod.owner == other.owner;
            let same_labels = !pod.labels.is_empty() && pod.labels == other.labels;
            let same_service = || common.iter().any(|service| matches(service, &other.labels));
            if same_owner || same_labels || same_service() {
                *counts.entry(node.as_str()).or_default() += 1;
            }
        }
        counts
    }
}
