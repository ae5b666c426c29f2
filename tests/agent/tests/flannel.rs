//! From flannel to ours, node by node, in both registries: nodes of both kinds share one overlay all the time, and what goes
//! between two nodes never stops while the third one changes over.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use serde_json::json;
use tests_agent::{
    Agent, Api, Etcd, FlannelLease, FlannelNode, Pod, Registry, Stream, eventually, flanneld,
    without_root,
};
use tests_testkit::{Machine, Underlay, skip};

/// A node of the cluster on its way.
enum Member {
    Flannel(Box<FlannelNode>),
    Ours { pod: Pod, _agent: Box<Agent> },
}

impl Member {
    fn pod(&self) -> &Pod {
        match self {
            Self::Flannel(node) => &node.pod,
            Self::Ours { pod, .. } => pod,
        }
    }
}

/// Three nodes of flannel's that reach each other.
fn flannel(underlay: &Underlay, registry: Registry<'_>) -> Vec<Member> {
    let machines: Vec<Machine> = (1..=3)
        .map(|number| underlay.machine(number).unwrap())
        .collect();
    let leases: Vec<FlannelLease> = machines.iter().map(FlannelLease::of).collect();
    let start = |machine: Machine| {
        let name = format!("n{}", machine.number);
        if flanneld().is_some() {
            return FlannelNode::real(machine, &name, registry).unwrap();
        }
        let own = FlannelLease::of(&machine);
        own.publish(&name, registry).unwrap();
        FlannelNode::by_hand(machine, own, &leases).unwrap()
    };
    let nodes = machines.into_iter().map(start);
    nodes.map(|node| Member::Flannel(Box::new(node))).collect()
}

fn all_reach_each_other(members: &[Member]) {
    for (number, one) in members.iter().enumerate() {
        for other in members[..number].iter() {
            eventually("a pod of another node", || {
                one.pod().answers_pod(other.pod())?;
                other.pod().answers_pod(one.pod())
            })
            .unwrap();
        }
    }
}

fn change_over(underlay: &Underlay, api: &Api, registry: Registry<'_>, more: &[&str]) {
    let mut members = flannel(underlay, registry);
    all_reach_each_other(&members);
    for index in 0..members.len() {
        let Member::Flannel(node) = members.remove(index) else {
            panic!("node {index} has changed over already");
        };
        let name = format!("n{}", node.machine.number);
        let stream = Stream::start(members[0].pod(), members[1].pod()).unwrap();
        if let Registry::Etcd(_) = registry {
            // Its lease is in etcd; the Node is for events and conditions.
            api.add_node(&name, &[], json!({})).unwrap();
        }
        let machine = node.leave().unwrap();
        let mut agent =
            Agent::start(&name, machine, &[&[api.flag().as_str()], more].concat()).unwrap();
        agent.wait_ready().unwrap();
        let pod = agent.pod("c1").unwrap();
        let agent = Box::new(agent);
        members.insert(index, Member::Ours { pod, _agent: agent });
        all_reach_each_other(&members);
        let settled = stream.settle().unwrap();
        println!("{name} changed over; between the others none lost of {settled:?}");
    }
}

fn say_which() {
    match flanneld() {
        Some(path) => println!("with {}", path.display()),
        None => skip(
            "the real flanneld: none was given (cargo xtask test --flanneld PATH); the kernel's device in its shape \
                      stands for it",
        ),
    }
}

#[test]
fn a_cluster_whose_leases_are_nodes_changes_over_from_flannel_node_by_node() {
    if without_root() {
        return;
    }
    say_which();
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    change_over(&underlay, &api, Registry::Nodes(&api), &[]);
}

#[test]
fn a_cluster_whose_leases_are_in_etcd_changes_over_from_flannel_node_by_node() {
    if without_root() {
        return;
    }
    say_which();
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let config = json!({"Network": "10.64.0.0/16", "Backend": {"Type": "vxlan"}});
    let Some(etcd) = Etcd::start(&api, &config).unwrap() else {
        return skip("there is no etcd: install etcd-server");
    };
    let endpoints = format!("--flannel-etcd-endpoints={}", etcd.url());
    change_over(&underlay, &api, Registry::Etcd(&etcd), &[&endpoints]);
}
