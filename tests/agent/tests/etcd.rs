//! Flannel's etcd registry: nodes of ours, and a node that is set up by the words of flannel's documentation, in one
//! overlay.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Etcd, Pod, eventually, without_root};
use tests_testkit::{Machine, NetNs, Underlay, VethEnd, skip};

const VTEP: &str = "12:c6:65:89:b4:e3";

/// What flanneld does with the kernel's vxlan device: its own end, and for each lease a neighbour, an FDB entry and a
/// route. The pod stands where flannel's CNI plugin would put one.
fn flannel_node(machine: &Machine, leases: &[(String, Value)]) -> Result<Pod> {
    let host = &machine.netns;
    host.ip(&format!(
        "link add flannel.1 address {VTEP} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
         addr add 10.64.200.0/32 dev flannel.1\n\
         link set flannel.1 up",
        machine.ipv4
    ))?;
    for (key, lease) in leases {
        let (base, length) = key.split_once('-').context("no lease")?;
        let mac = lease["BackendData"]["VtepMAC"]
            .as_str()
            .context("no VtepMAC")?;
        let public = lease["PublicIP"].as_str().context("no PublicIP")?;
        host.ip(&format!(
            "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent\n\
             route replace {base}/{length} via {base} dev flannel.1 onlink"
        ))?;
        let added = host.run(|| {
            std::process::Command::new("bridge")
                .args(["fdb", "append", mac, "dev", "flannel.1", "dst", public])
                .status()
        })?;
        ensure!(added.success(), "bridge fdb: {added}");
    }
    host.sysctl("net/ipv4/ip_forward", "1")?;
    let pod = NetNs::new()?;
    let end = |netns, name, mac| VethEnd { netns, name, mac };
    NetNs::veth(
        end(&pod, "eth0", [2, 0, 0, 0, 9, 1]),
        end(host, "veth1", [2, 0, 0, 0, 9, 2]),
        1450,
    )?;
    host.ip("addr add 10.64.200.1/24 dev veth1")?;
    pod.ip("addr add 10.64.200.2/24 dev eth0\nroute add default via 10.64.200.1")?;
    Ok(Pod {
        netns: pod,
        ips: vec!["10.64.200.2".parse()?],
    })
}

#[test]
fn nodes_of_ours_and_of_flannels_share_an_overlay_that_etcd_keeps() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let config =
        json!({"Network": "10.64.0.0/16", "SubnetMax": "10.64.99.0", "Backend": {"Type": "vxlan"}});
    let Some(etcd) = Etcd::start(&api, &config).unwrap() else {
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
    let theirs = underlay.machine(3).unwrap();
    let three = flannel_node(&theirs, &leases).unwrap();
    let lease = json!({"PublicIP": "192.0.2.3", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": VTEP}});
    etcd.put("/subnets/10.64.200.0-24", &lease.to_string())
        .unwrap();
    for ours in [&one, &two] {
        eventually("from ours to flannel's", || three.answers_pod(ours)).unwrap();
        eventually("from flannel's to ours", || ours.answers_pod(&three)).unwrap();
    }
    // An agent that starts again has the same lease and the same MAC: flannel's node has nothing to learn.
    let mut agents = agents;
    agents[0].kill().unwrap();
    one.answers_pod(&three).unwrap();
    agents[0].again().unwrap();
    agents[0].wait_ready().unwrap();
    assert_eq!(etcd.leases().unwrap().len(), 3);
    let again = etcd.leases().unwrap();
    assert!(
        leases.iter().all(|lease| again.contains(lease)),
        "{again:?}"
    );
    one.answers_pod(&three).unwrap();
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
