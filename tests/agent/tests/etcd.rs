//! Flannel's etcd registry: nodes of ours, and a node that is set up by the words of flannel's documentation, in one
//! overlay.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tests_agent::{
    Agent, Api, Etcd, FlannelLease, FlannelNode, Registry, Stream, eventually, without_root,
};
use tests_testkit::{Underlay, skip};

/// How long etcd does not answer: longer than any of the agent's own waits for it.
const AWAY: Duration = Duration::from_secs(12);

#[test]
fn nodes_of_ours_and_of_flannels_share_an_overlay_that_etcd_keeps() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let config =
        json!({"Network": "10.64.0.0/16", "SubnetMax": "10.64.99.0", "Backend": {"Type": "vxlan"}});
    let Some(mut etcd) = Etcd::start(&api, &config).unwrap() else {
        return skip("there is no etcd: install etcd-server");
    };
    let endpoints = format!("--flannel-etcd-endpoints={}", etcd.url());
    let agents: Vec<Agent> = (1..=2)
        .map(|number| {
            // Without a podCIDR: the lease in etcd is the node's subnet.
            Agent::node(&underlay, &api, number, &[], &[&endpoints]).unwrap()
        })
        .collect();
    let leases = etcd.leases().unwrap();
    assert_eq!(leases.len(), 2, "{leases:?}");
    let (one, two) = (agents[0].pod("c1").unwrap(), agents[1].pod("c1").unwrap());
    eventually("pods of our nodes", || two.answers_pod(&one)).unwrap();
    // The file is for flannel's own CNI plugin.
    let own = leases
        .iter()
        .find(|(_, lease)| lease["PublicIP"] == "192.0.2.1")
        .unwrap();
    let (base, _) = own.0.split_once(".0-24").unwrap();
    let expected = format!(
        "FLANNEL_NETWORK=10.64.0.0/16\nFLANNEL_SUBNET={base}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    assert_eq!(
        std::fs::read_to_string(agents[0].path("subnet.env")).unwrap(),
        expected
    );
    // A node of flannel's joins.
    let theirs = underlay.machine(200).unwrap();
    let lease = FlannelLease::of(&theirs);
    let known: Vec<FlannelLease> = leases
        .iter()
        .map(|(key, value)| FlannelLease::read(key, value).unwrap())
        .collect();
    let flannels = FlannelNode::by_hand(theirs, lease, &known).unwrap();
    let three = &flannels.pod;
    lease.publish("n200", Registry::Etcd(&etcd)).unwrap();
    for ours in [&one, &two] {
        eventually("from ours to flannel's", || three.answers_pod(ours)).unwrap();
        eventually("from flannel's to ours", || ours.answers_pod(three)).unwrap();
    }
    // An agent that starts again has the same lease and the same MAC: flannel's node has nothing to learn.
    let mut agents = agents;
    agents[0].kill().unwrap();
    one.answers_pod(three).unwrap();
    agents[0].again().unwrap();
    agents[0].wait_ready().unwrap();
    assert_eq!(etcd.leases().unwrap().len(), 3);
    let again = etcd.leases().unwrap();
    assert!(
        leases.iter().all(|lease| again.contains(lease)),
        "{again:?}"
    );
    one.answers_pod(three).unwrap();
    // A registry that is away costs no packet and no lease.
    let stream = Stream::start(&one, &two).unwrap();
    etcd.kill().unwrap();
    std::thread::sleep(AWAY);
    for ours in [&one, &two] {
        three.answers_pod(ours).unwrap();
        ours.answers_pod(three).unwrap();
    }
    etcd.again().unwrap();
    assert_eq!(etcd.leases().unwrap(), again);
    println!(
        "etcd was away for {AWAY:?}: none lost of {:?}",
        stream.settle().unwrap()
    );
    // It leaves.
    etcd.delete("/subnets/10.64.200.0-24").unwrap();
    eventually("the route to a node that left", || {
        let routes = agents[1].ip("route show dev fairlead0")?;
        ensure!(!routes.contains("10.64.200.0/24"), "{routes}");
        Ok(())
    })
    .unwrap();
    two.answers_pod(&one).unwrap();
    println!(
        "ours and flannel's reached each other both ways; a restart kept {}",
        own.0
    );
}
