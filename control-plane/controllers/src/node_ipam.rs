//! `spec.podCIDRs` of each Node: one subnet of each block of the cluster, kept for the Node's life.
//!
//! The Nodes themselves are the only record, so a restart changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::cidr::Cidr;
use crate::fault::gone;
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::{Informers, Options};

/// How often a Node is looked at again that found every block full.
const FULL_RETRY: Duration = Duration::from_secs(30);

/// The blocks of the cluster and who holds which subnet. Pure.
#[derive(Debug)]
struct Subnets {
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    cidr: Cidr,
    /// The prefix length of a Node's subnet.
    prefix: u8,
    /// Subnet numbers in use.
    used: BTreeSet<u128>,
}

/// Node -> what it was given here; bridges the time until the informer shows it.
type Given = BTreeMap<String, Vec<Cidr>>;

impl Subnets {
    fn new(options: &Options) -> Self {
        let block = |cidr: &Cidr| Block {
            cidr: *cidr,
            prefix: options.node_prefix(cidr),
            used: BTreeSet::new(),
        };
        Self {
            blocks: options.cluster_cidrs.iter().map(block).collect(),
        }
    }

    fn occupy(&mut self, held: &Cidr) {
        for block in &mut self.blocks {
            if let Some((first, last)) = block.cidr.covered(block.prefix, held) {
                block.used.extend(first..=last);
            }
        }
    }

    /// The lowest free subnet of every block; `None` when one of them is full.
    fn take(&mut self) -> Option<Vec<Cidr>> {
        let free: Option<Vec<u128>> = self.blocks.iter().map(Block::lowest_free).collect();
        let subnets = self.blocks.iter_mut().zip(free?).map(|(block, index)| {
            block.used.insert(index);
            block.cidr.subnet(block.prefix, index)
        });
        Some(subnets.collect())
    }
}

impl Block {
    fn lowest_free(&self) -> Option<u128> {
        let mut free = 0;
        for used in &self.used {
            if *used != free {
                break;
            }
            free += 1;
        }
        (free < self.cidr.subnets(self.prefix)).then_some(free)
    }
}

fn held(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    if options.cluster_cidrs.is_empty() {
        tracing::info!("no cluster CIDR given: Nodes get no podCIDR");
        return std::future::pending().await;
    }
    let queue = Arc::new(Queue::new());
    let given = Arc::new(Mutex::new(Given::new()));
    let (to, forget) = (queue.clone(), given.clone());
    informers.nodes.on_change(move |change| {
        match &change.new {
            Some(node) if held(node).is_empty() => return to.add(ObjectKey::of(&**node)),
            _ => {}
        }
        // Either the informer shows what was given, or the Node is gone and its subnets are free.
        if let Some(node) = change.both().next() {
            let mut given = forget.lock().unwrap_or_else(PoisonError::into_inner);
            given.remove(&node.name_any());
        }
    });
    informers.nodes.synced().await;
    let api: Api<Node> = Api::all(client);
    queue
        .serve("node ipam", 1, async |key| {
            let Some(node) = informers
                .nodes
                .get(&key)
                .filter(|node| held(node).is_empty())
            else {
                return Ok(());
            };
            let subnets = {
                let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
                choose(&key.name, &informers.nodes.all(), &mut given, options)
            };
            let Some(subnets) = subnets else {
                tracing::error!(
                    node = key.name,
                    "no podCIDR is free: give the cluster a larger --cluster-cidr or remove Nodes"
                );
                queue.add_after(key, FULL_RETRY);
                return Ok(());
            };
            gone(assign(&api, &node, &subnets).await)
        })
        .await;
}

/// What the node was given before, else what is free.
fn choose(
    name: &str,
    nodes: &[Arc<Node>],
    given: &mut Given,
    options: &Options,
) -> Option<Vec<Cidr>> {
    if let Some(already) = given.get(name) {
        return Some(already.clone());
    }
    let mut subnets = Subnets::new(options);
    let held_by_nodes = nodes.iter().flat_map(|node| held(node));
    for cidr in held_by_nodes.chain(given.values().flatten().copied()) {
        subnets.occupy(&cidr);
    }
    let taken = subnets.take()?;
    given.insert(name.to_owned(), taken.clone());
    Some(taken)
}

async fn assign(api: &Api<Node>, node: &Node, subnets: &[Cidr]) -> Result<(), kube::Error> {
    let all: Vec<String> = subnets.iter().map(Cidr::to_string).collect();
    // With the resourceVersion, so that a subnet set by somebody else meanwhile is not overwritten.
    let patch = json!({
        "metadata": {"resourceVersion": node.resource_version(), "uid": node.uid()},
        "spec": {"podCIDR": all.first(), "podCIDRs": all},
    });
    let name = node.name_any();
    let done = api
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    tracing::info!(
        node = name,
        pod_cidrs = all.join(","),
        resource_version = done.resource_version().unwrap_or_default(),
        "podCIDR assigned"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(blocks: &[&str]) -> Options {
        Options {
            cluster_cidrs: blocks.iter().map(|block| block.parse().unwrap()).collect(),
            ..Options::default()
        }
    }

    fn node(name: &str, cidrs: &[&str]) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn chosen(name: &str, nodes: &[Arc<Node>], given: &mut Given, options: &Options) -> String {
        choose(name, nodes, given, options).map_or("full".into(), |subnets| {
            subnets
                .iter()
                .map(Cidr::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
    }

    #[test]
    fn each_node_gets_the_lowest_free_subnet_of_each_family() {
        let options = options(&["10.244.0.0/16", "fd00:10:244::/56"]);
        let nodes = [
            node("a", &["10.244.0.0/24", "fd00:10:244::/64"]),
            node("c", &["10.244.2.0/24", "fd00:10:244:1::/64"]),
        ];
        let given = &mut Given::new();
        assert_eq!(
            chosen("b", &nodes, given, &options),
            "10.244.1.0/24 fd00:10:244:2::/64"
        );
        assert_eq!(
            chosen("d", &nodes, given, &options),
            "10.244.3.0/24 fd00:10:244:3::/64"
        );
        assert_eq!(
            chosen("b", &nodes, given, &options),
            "10.244.1.0/24 fd00:10:244:2::/64",
            "asked again before the informer shows it, the answer is the same"
        );
    }

    #[test]
    fn a_full_block_gives_nothing_until_a_node_goes() {
        let options = options(&["10.244.0.0/23"]);
        let mut nodes = vec![node("a", &["10.244.0.0/24"]), node("b", &["10.244.1.0/24"])];
        assert_eq!(chosen("c", &nodes, &mut Given::new(), &options), "full");
        nodes.remove(0);
        assert_eq!(
            chosen("c", &nodes, &mut Given::new(), &options),
            "10.244.0.0/24"
        );
    }

    #[test]
    fn subnets_that_were_set_by_hand_are_left_out_and_foreign_ones_ignored() {
        let options = options(&["10.244.0.0/16"]);
        let nodes = [
            node("wide", &["10.244.0.0/22"]),
            node("foreign", &["192.168.0.0/24"]),
            node("broken", &["nonsense"]),
        ];
        assert_eq!(
            chosen("n", &nodes, &mut Given::new(), &options),
            "10.244.4.0/24"
        );
    }
}
