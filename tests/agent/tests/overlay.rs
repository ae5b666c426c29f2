//! Many nodes, and nodes that contradict each other.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Stream, eventually, without_root};
use tests_testkit::Underlay;

fn start(underlay: &Underlay, api: &Api, number: u8) -> Agent {
    let cidr = format!("10.244.{number}.0/24");
    Agent::node(underlay, api, number, &[&cidr], &[]).unwrap()
}

/// What flannel writes on a Node.
fn flannel(public_ip: &str) -> Value {
    json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
        "flannel.alpha.coreos.com/public-ip": public_ip,
    })
}

#[test]
fn a_subnet_that_two_nodes_claim_goes_to_the_elder_and_both_are_named() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let (one, two) = (start(&underlay, &api, 1), start(&underlay, &api, 2));
    let (client, server) = (one.pod("c1").unwrap(), two.pod("c2").unwrap());
    eventually("the first connection", || server.answers_pod(&client)).unwrap();
    let stream = Stream::start(&client, &server).unwrap();
    // Ages are counted in seconds.
    std::thread::sleep(Duration::from_millis(1100));
    api.add_node("thief", &["10.244.2.0/25"], flannel("192.0.2.66"))
        .unwrap();
    eventually("the conflict is reported", || {
        let events = api.events()?;
        let claims = events.iter().filter(|(reason, message)| {
            reason == "SubnetClaimedTwice" && message.contains("thief") && message.contains("n2")
        });
        let count = claims.count();
        ensure!(count >= 2, "both nodes say it: {events:?}");
        Ok(())
    })
    .unwrap();
    let routes = one.ip("route show dev fairlead0").unwrap();
    assert!(!routes.contains("10.244.2.0/25"), "{routes}");
    println!("the elder lost nothing: {:?}", stream.settle().unwrap());
    drop(stream);
    // Where the elder goes, the younger is reached.
    api.delete_node("n2").unwrap();
    eventually("the younger has it", || {
        let routes = one.ip("route show dev fairlead0")?;
        ensure!(routes.contains("10.244.2.0/25"), "{routes}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_thousand_nodes_that_join_at_once_disturb_no_connection_between_others() {
    if without_root() {
        return;
    }
    const NODES: usize = 1000;
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let (one, two) = (start(&underlay, &api, 1), start(&underlay, &api, 2));
    let (client, server) = (one.pod("c1").unwrap(), two.pod("c2").unwrap());
    eventually("the peer is known", || {
        let routes = one.ip("route show dev fairlead0")?;
        ensure!(routes.contains("10.244.2.0/24"), "{routes}");
        Ok(())
    })
    .unwrap();
    eventually("the first connection", || server.answers_pod(&client)).unwrap();
    let stream = Stream::start(&client, &server).unwrap();
    let begun = Instant::now();
    join(&api, NODES).unwrap();
    eventually("all nodes have routes", || {
        let routes = one.ip("route show dev fairlead0")?;
        let joined = ["10.100.", "10.101.", "10.102.", "10.103."];
        let is_joined = |line: &&str| joined.iter().any(|start| line.starts_with(start));
        let count = routes.lines().filter(is_joined).count();
        ensure!(count == NODES, "{count}");
        Ok(())
    })
    .unwrap();
    let took = begun.elapsed();
    let settled = stream.settle().unwrap();
    println!(
        "{NODES} nodes joined and were reached in {took:?}; meanwhile none lost of {settled:?}"
    );
    assert!(settled.packets > 100);
    let peers: BTreeSet<String> = one
        .ip("route show dev fairlead0")
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    // The thousand, both nodes and the services.
    assert_eq!(peers.len(), NODES + 3, "{peers:?}");
}

/// Makes Nodes as fast as the API server takes them.
fn join(api: &Api, nodes: usize) -> Result<()> {
    api.ask(async move |client| {
        let nodes_api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
        let mut joining = tokio::task::JoinSet::new();
        for number in 0..nodes {
            let cidr = format!("10.{}.{}.0/24", 100 + number / 256, number % 256);
            let ip = format!("198.51.{}.{}", 100 + number / 250, number % 250 + 1);
            let node = serde_json::from_value(json!({
                "metadata": {"name": format!("join{number}"), "annotations": flannel(&ip)},
                "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            }))?;
            let nodes_api = nodes_api.clone();
            joining.spawn(async move { nodes_api.create(&Default::default(), &node).await });
        }
        while let Some(made) = joining.join_next().await {
            made??;
        }
        Ok(())
    })
}

#[test]
fn pods_reach_each_other_by_every_backend_over_both_underlays() {
    if without_root() {
        return;
    }
    for (backend, over_ipv6, mtu) in [
        ("vxlan", false, 1450),
        ("udp", false, 1472),
        ("direct", false, 1500),
        ("vxlan", true, 1430),
        ("udp", true, 1452),
    ] {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let server = match over_ipv6 {
            true => api.flag_v6(),
            false => api.flag(),
        };
        let nodes = [1, 2].map(|number| {
            let name = format!("n{number}");
            let cidrs = [
                format!("10.244.{number}.0/24"),
                format!("fd00:10:244:{number}::/64"),
            ];
            api.add_node(&name, &[&cidrs[0], &cidrs[1]], json!({}))
                .unwrap();
            let machine = underlay.machine(number).unwrap();
            if over_ipv6 {
                let address = format!("addr del {}/24 dev eth0", machine.ipv4);
                machine.netns.ip(&address).unwrap();
            }
            let overlay = format!("--overlay={backend}");
            Agent::start(&name, machine, &[&server, &overlay]).unwrap()
        });
        let pods = nodes.map(|mut node| {
            node.wait_ready().unwrap();
            let (pod, result) = node.attach("c1", &json!({})).unwrap();
            assert_eq!(result["interfaces"][1]["mtu"], mtu, "{backend}");
            (node, pod)
        });
        let [(_, one), (_, two)] = &pods;
        let what = format!("{backend}, over IPv6: {over_ipv6}");
        eventually(&what, || {
            two.answers_pod(one)?;
            one.answers_pod(two)
        })
        .unwrap();
        println!("{what}: pods reach each other, MTU {mtu}");
    }
}
