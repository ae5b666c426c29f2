//! What an operator sees of the overlay and can set: `fairlead overlay`, metrics of peers, direct routing, addresses that
//! are kept towards the outside, another prefix of annotations.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::ffi::OsString;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Pod, eventually, without_root};
use tests_testkit::{Machine, NetNs, Underlay};

fn start(underlay: &Underlay, api: &Api, number: u8, more: &[&str]) -> Agent {
    let cidrs = [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ];
    Agent::node(underlay, api, number, &[&cidrs[0], &cidrs[1]], more).unwrap()
}

/// Two nodes with a pod each that reach each other.
struct Two {
    pods: [Pod; 2],
    agents: [Agent; 2],
    api: Api,
    underlay: Underlay,
}

impl Two {
    fn start(more: &[&str]) -> Self {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let agents = [1, 2].map(|number| start(&underlay, &api, number, more));
        let pods = [0, 1].map(|index: usize| agents[index].pod("c1").unwrap());
        let two = Self {
            pods,
            agents,
            api,
            underlay,
        };
        eventually("the first connections", || two.talk()).unwrap();
        two
    }

    fn talk(&self) -> Result<()> {
        self.pods[1].answers_pod(&self.pods[0])?;
        self.pods[0].answers_pod(&self.pods[1])
    }
}

/// Runs `fairlead` on an agent's node: what it wrote, and why it failed if it did.
fn fairlead(agent: &Agent, words: &str) -> (String, Option<String>) {
    let pins = agent.pin_dir().display().to_string();
    let words = ["fairlead", "--pin-dir", &pins]
        .into_iter()
        .chain(words.split(' '));
    let words: Vec<OsString> = words.map(OsString::from).collect();
    agent.machine().run(|| {
        let mut out = Vec::new();
        let result = node_agent_cli::run(words, &mut out);
        let text = String::from_utf8(out).unwrap();
        (text, result.err().map(|error| format!("{error:#}")))
    })
}

fn as_json(agent: &Agent, words: &str) -> Value {
    let (text, error) = fairlead(agent, &format!("{words} -o json"));
    assert_eq!(error, None);
    serde_json::from_str(&text).unwrap()
}

/// The last hop of a probe, its state and detail; whether it reached.
fn probe(agent: &Agent, node: &str) -> (Value, Option<String>) {
    let (text, error) = fairlead(
        agent,
        &format!("overlay probe {node} --timeout 300 -o json"),
    );
    let probe: Value = serde_json::from_str(&text).unwrap();
    println!("{text}");
    (probe, error)
}

fn last_hop(probe: &Value) -> (&str, &str, &str) {
    let hop = probe["hops"].as_array().unwrap().last().unwrap();
    let text = |key: &str| hop[key].as_str().unwrap();
    (text("hop"), text("state"), text("detail"))
}

#[test]
fn the_overlay_is_told_and_counted_by_node_while_no_agent_runs() {
    if without_root() {
        return;
    }
    let mut two = Two::start(&[]);
    let metric = |agent: &Agent, name: &str| -> Result<u64> {
        let text = agent.get("/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .context("no such metric")?;
        Ok(line.trim().parse()?)
    };
    let sent = metric(
        &two.agents[0],
        r#"fairlead_peer_sent_packets_total{peer="n2"}"#,
    )
    .unwrap();
    let received = metric(
        &two.agents[0],
        r#"fairlead_peer_received_packets_total{peer="n2"}"#,
    )
    .unwrap();
    assert!(sent >= 8 && received >= 8, "{sent} {received}");
    for agent in &mut two.agents {
        agent.kill().unwrap();
    }
    let before = as_json(&two.agents[0], "overlay peers")["peers"][0].clone();
    two.talk().unwrap();
    let after = as_json(&two.agents[0], "overlay peers")["peers"][0].clone();
    for counter in ["sent", "received"] {
        for unit in ["packets", "bytes"] {
            let [before, after] =
                [&before, &after].map(|peer| peer[counter][unit].as_u64().unwrap());
            assert!(after > before, "{counter} {unit}: {before}, {after}");
        }
    }
    assert_eq!(
        (&after["name"], &after["underlay"], &after["mode"]),
        (&json!("n2"), &json!("192.0.2.2"), &json!("vxlan"))
    );
    assert_eq!(
        after["subnets"],
        json!(["10.244.2.0/24", "fd00:10:244:2::/64"])
    );
    assert_eq!(after["dropped"]["packets"], 0);
    let routes = as_json(&two.agents[0], "overlay routes");
    assert_eq!(routes["routes"].as_array().unwrap().len(), 2);
    assert_eq!(routes["routes"][0]["node"], "n2");
    let mtu = as_json(&two.agents[0], "overlay mtu");
    assert_eq!((&mtu["uplink"], &mtu["pods"]), (&json!(1500), &json!(1450)));
    assert_eq!(mtu["peers"][0]["overhead"], 50);
    for words in ["overlay peers", "overlay routes", "overlay mtu"] {
        let (table, error) = fairlead(&two.agents[0], words);
        assert!(error.is_none() && table.contains("n2"), "{table}");
        let (yaml, error) = fairlead(&two.agents[0], &format!("{words} -o yaml"));
        assert!(error.is_none() && yaml.contains("n2"), "{yaml}");
        println!("{table}");
    }
}

#[test]
fn a_probe_says_at_which_hop_a_packet_dies() {
    if without_root() {
        return;
    }
    let two = Two::start(&[]);
    let [one, other] = &two.agents;
    for name in ["n2", "192.0.2.2", "10.244.2.77", "fd00:10:244:2::9"] {
        let (found, error) = probe(one, name);
        assert_eq!((error, &found["reached"]), (None, &json!(true)), "{found}");
    }
    // Only small packets pass.
    let bridge = two.underlay.netns();
    bridge.ip("link set port2 mtu 1400").unwrap();
    let (found, error) = probe(one, "n2");
    let (hop, state, detail) = last_hop(&found);
    assert_eq!((hop, state), ("underlay", "dead"), "{detail}");
    assert!(detail.contains("does not carry 1500 bytes"), "{detail}");
    assert!(error.unwrap().contains("n2 is not reached"));
    bridge.ip("link set port2 mtu 1500").unwrap();
    assert_eq!(probe(one, "n2").0["reached"], true);
    // The other node's programs are gone, its kernel is there.
    std::fs::remove_file(other.pin_dir().join("links/from_network")).unwrap();
    let (found, _) = probe(one, "n2");
    if found["reached"] == false {
        let (hop, state, detail) = last_hop(&found);
        assert_eq!((hop, state), ("peer's answer", "dead"), "{detail}");
        assert!(detail.contains("192.0.2.2 itself is reached"), "{detail}");
    }
    eventually("the link is put back", || {
        ensure!(probe(one, "n2").0["reached"] == true, "not reached");
        Ok(())
    })
    .unwrap();
    // The cable is pulled.
    bridge.ip("link set port2 down").unwrap();
    let (found, _) = probe(one, "n2");
    let (hop, state, detail) = last_hop(&found);
    assert_eq!((hop, state), ("underlay", "dead"), "{detail}");
    assert!(detail.contains("not reached at all"), "{detail}");
    bridge.ip("link set port2 up").unwrap();
    let (_, error) = fairlead(one, "overlay probe n9");
    assert!(error.unwrap().contains("n9 is no peer of this node"));
}

#[test]
fn a_probe_notices_that_packets_do_not_leave_the_node() {
    if without_root() {
        return;
    }
    let mut two = Two::start(&[]);
    two.agents[0].kill().unwrap();
    let host = &two.agents[0].machine().netns;
    host.ip("route add blackhole 10.244.2.1/32").unwrap();
    let (_, error) = fairlead(&two.agents[0], "overlay probe n2 --timeout 300");
    let error = error.unwrap();
    assert!(error.contains("asking 10.244.2.1"), "{error}");
    host.ip("route del blackhole 10.244.2.1/32\nroute add 10.244.2.1/32 dev lo")
        .unwrap();
    let (found, _) = probe(&two.agents[0], "n2");
    let (hop, state, detail) = last_hop(&found);
    assert_eq!((hop, state), ("encapsulation", "dead"), "{detail}");
    assert!(detail.contains("does not lead into fairlead0"), "{detail}");
}

#[test]
fn with_direct_routing_packets_on_one_link_go_as_they_are_and_mixed_nodes_reach_each_other() {
    if without_root() {
        return;
    }
    let two = Two::start(&["--direct-routing"]);
    let third = start(&two.underlay, &two.api, 3, &[]);
    let pod = third.pod("c1").unwrap();
    eventually("a node without direct routing", || {
        for other in &two.pods {
            pod.answers_pod(other)?;
            other.answers_pod(&pod)?;
        }
        Ok(())
    })
    .unwrap();
    let modes = |agent: &Agent| -> Vec<(String, String)> {
        let routes = as_json(agent, "overlay routes");
        let routes = routes["routes"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        routes
            .map(|route| (text(&route["subnet"]), text(&route["mode"])))
            .collect()
    };
    let direct = modes(&two.agents[0]);
    assert!(
        direct.contains(&("10.244.2.0/24".to_owned(), "direct".to_owned())),
        "{direct:?}"
    );
    assert!(
        direct.contains(&("fd00:10:244:2::/64".to_owned(), "vxlan".to_owned())),
        "{direct:?}"
    );
    assert!(modes(&third).iter().all(|(_, mode)| mode == "vxlan"));
    // The pods' own addresses are on the wire.
    let seen = frames_with_inner_source(&two.underlay, &two.pods[0], || two.talk().unwrap());
    assert!(seen > 0, "no plain packet was seen on the underlay");
    assert_eq!(probe(&two.agents[0], "n2").0["reached"], true);
    println!("{direct:?}; {seen} plain packets seen on the underlay");
}

/// How many IPv4 packets from this pod pass the underlay as they are while `work` runs.
fn frames_with_inner_source(underlay: &Underlay, pod: &Pod, work: impl FnOnce()) -> usize {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, socket};
    use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
    use std::os::fd::AsRawFd;

    let tap = underlay.netns().run(|| {
        let flags = SockFlag::SOCK_NONBLOCK;
        socket(
            AddressFamily::Packet,
            SockType::Raw,
            flags,
            SockProtocol::EthAll,
        )
    });
    let tap = tap.unwrap();
    setsockopt(&tap, sockopt::RcvBufForce, &(8 << 20)).unwrap();
    work();
    let std::net::IpAddr::V4(source) = pod.ips[0] else {
        panic!("a pod's first address is of IPv4");
    };
    let (mut frame, mut found) = ([0; 2048], 0);
    // Behind Ethernet an IPv4 header, its source at byte 12.
    while let Ok(len) = recv(tap.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        let is_ipv4 = frame[12..14] == [8, 0] && len >= 34;
        found += usize::from(is_ipv4 && frame[26..30] == source.octets());
    }
    found
}

/// A machine beside the nodes that has routes back to their pods: who it sees.
fn seen_by(outside: &Machine, pod: &Pod) -> Result<std::net::IpAddr> {
    let listener = outside.run(|| TcpListener::bind((outside.ipv4, 0)))?;
    let address = listener.local_addr()?;
    let patience = std::time::Duration::from_secs(2);
    let connect = || std::net::TcpStream::connect_timeout(&address, patience);
    let _client = pod.netns.run(connect).context("connect to the outside")?;
    Ok(listener.accept()?.1.ip())
}

#[test]
fn destinations_that_are_named_see_the_pod_and_all_others_the_node() {
    if without_root() {
        return;
    }
    let two = Two::start(&["--non-masquerade-cidrs=192.0.2.8/32,2001:db8:9::/48"]);
    let machines = [8, 9].map(|number| two.underlay.machine(number).unwrap());
    for machine in &machines {
        machine
            .netns
            .ip("route add 10.244.1.0/24 via 192.0.2.1")
            .unwrap();
    }
    let pod = &two.pods[0];
    assert_eq!(seen_by(&machines[0], pod).unwrap(), pod.ips[0]);
    let node = two.agents[0].machine().ipv4;
    assert_eq!(seen_by(&machines[1], pod).unwrap(), node);
    two.talk().unwrap();
    println!(
        "{} is seen as {} by 192.0.2.8 and as {node} by 192.0.2.9",
        pod.ips[0], pod.ips[0]
    );
}

#[test]
fn nodes_with_another_prefix_of_annotations_find_each_other_and_no_others() {
    if without_root() {
        return;
    }
    let two = Two::start(&["--kube-annotation-prefix=example.org/net"]);
    let annotations = two.api.node("n2").unwrap().metadata.annotations.unwrap();
    assert_eq!(annotations["example.org/net-public-ip"], "192.0.2.2");
    assert!(
        !annotations.keys().any(|key| key.starts_with("flannel.")),
        "{annotations:?}"
    );
    let third = start(&two.underlay, &two.api, 3, &[]);
    assert_eq!(as_json(&third, "overlay peers"), json!({"peers": []}));
}

/// The three demands of <https://kubernetes.io/docs/concepts/services-networking/#the-kubernetes-network-model>.
#[test]
fn pods_reach_pods_without_nat_nodes_reach_pods_and_a_pod_sees_itself_as_others_do() {
    if without_root() {
        return;
    }
    let two = Two::start(&[]);
    let neighbour = two.agents[0].pod("c2").unwrap();
    let pods = [&two.pods[0], &two.pods[1], &neighbour];
    for (number, pod) in pods.iter().enumerate() {
        for (other_number, other) in pods.iter().enumerate() {
            if number != other_number {
                // Fails where the peer's address is not the other's own.
                pod.answers_pod(other).unwrap();
            }
        }
    }
    let host: &NetNs = &two.agents[0].machine().netns;
    two.pods[0].answers(host).unwrap();
    neighbour.answers(host).unwrap();
    for pod in pods {
        let shown = pod.netns.run(|| {
            let output = std::process::Command::new("ip")
                .args(["-o", "addr", "show", "dev", "eth0"])
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        });
        assert!(
            pod.ips.iter().all(|ip| shown.contains(&format!(" {ip}/"))),
            "{shown}"
        );
    }
}
