//! The CNI plugin against a real agent: results as the reference plugins give them, and nothing leaked by anything.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Plugin, Pod, eventually, reference, without_root};
use tests_testkit::{NetNs, Underlay, skip};

/// A node with room for a thousand pods, and its API server.
struct Node {
    agent: Agent,
    _api: Api,
    _underlay: Underlay,
}

impl Node {
    fn start() -> Result<Self> {
        let underlay = Underlay::new(1500)?;
        let api = Api::start(&underlay)?;
        let cidrs = ["10.244.0.0/20", "fd00:10:244::/64"];
        let agent = Agent::node(&underlay, &api, 1, &cidrs, &[])?;
        Ok(Self {
            agent,
            _api: api,
            _underlay: underlay,
        })
    }

    fn plugin(&self) -> Plugin<'_> {
        self.agent.plugin()
    }

    fn leases(&self) -> BTreeSet<String> {
        names(&self.agent.path("state/leases"))
    }

    /// Everything that an attachment leaves on a node.
    fn traces(&self) -> Result<Vec<String>> {
        let mut traces: Vec<String> = self.leases().into_iter().collect();
        let links = self.agent.ip("-o link show type veth")?;
        let of_pods = links.lines().filter_map(|line| line.split(' ').nth(1));
        traces.extend(
            of_pods
                .filter(|name| name.starts_with("fl"))
                .map(str::to_owned),
        );
        let pins = names(&self.agent.pin_dir().join("links"));
        traces.extend(pins.into_iter().filter(|name| name.starts_with("pod-")));
        let endpoints = pod_endpoints(&self.agent)?;
        traces.extend(
            endpoints
                .into_iter()
                .map(|entry| format!("endpoint {entry}")),
        );
        traces.retain(|name| !name.contains("fairlead"));
        Ok(traces)
    }
}

/// The entries of the endpoint maps that lead to an interface.
fn pod_endpoints(agent: &Agent) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names(&agent.pin_dir()) {
        if !name.starts_with("endpoint") {
            continue;
        }
        let path = agent.pin_dir().join(&name);
        let output = std::process::Command::new("bpftool")
            .args(["--json", "map", "dump", "pinned"])
            .arg(&path)
            .output()?;
        let entries: Value = serde_json::from_slice(&output.stdout)?;
        for entry in entries.as_array().into_iter().flatten() {
            let value = &entry["formatted"]["value"];
            ensure!(value.get("ifindex").is_some(), "{name}: {entry}");
            if value["ifindex"] != 0 {
                found.push(format!("{name} {}", entry["formatted"]["key"]));
            }
        }
    }
    Ok(found)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// What must be equal: names of interfaces on the host, their MACs and paths are each plugin's own.
fn comparable(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().unwrap() {
        for key in ["mac", "sandbox"] {
            if let Some(value) = interface.get_mut(key) {
                assert!(!value.as_str().unwrap().is_empty(), "{key} is empty");
                *value = json!(key);
            }
        }
        if interface.get("sandbox").is_none() {
            interface["name"] = json!("the host's side");
        }
    }
    result
}

/// What `ip` prints in a container.
fn inside(pod: &NetNs, arguments: &str) -> String {
    let run = || {
        std::process::Command::new("ip")
            .args(arguments.split(' '))
            .output()
    };
    String::from_utf8(pod.run(run).unwrap().stdout).unwrap()
}

/// Where a container's packets to others go, and from which address.
fn first_hops(pod: &NetNs) -> Vec<String> {
    // Where packets to another node go.
    ["route get 10.99.0.1", "-6 route get fd99::1"]
        .iter()
        .map(|question| {
            let answer = inside(pod, question);
            let words: Vec<&str> = answer.split_whitespace().collect();
            let after = |word: &str| {
                let at = words.iter().position(|other| *other == word);
                at.and_then(|at| words.get(at + 1).copied()).unwrap_or("")
            };
            format!(
                "via {} dev {} src {}",
                after("via"),
                after("dev"),
                after("src")
            )
        })
        .collect()
}

#[test]
fn the_reference_plugins_give_the_same_results_for_the_same_input() {
    if without_root() {
        return;
    }
    let node = Node::start().unwrap();
    let host = NetNs::new().unwrap();
    let Some(ptp) = reference("ptp", &host) else {
        return skip("the reference plugins are missing: install containernetworking-plugins");
    };
    let ours = node.plugin();
    for (number, version) in ["0.3.1", "0.4.0", "1.0.0"].into_iter().enumerate() {
        let data = tempfile::tempdir().unwrap();
        let dns = json!({"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"]});
        let more = json!({"dns": dns, "mtu": 1400, "ipam": {"type": "host-local", "dataDir": data.path(),
            "ranges": [[{"subnet": "10.244.0.0/20"}], [{"subnet": "fd00:10:244::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
        let conf = ptp.conf(version, &more);
        let own = ours.conf(version, &json!({"dns": dns, "mtu": 1400}));
        let container = format!("c{number}");
        let (theirs_in, ours_in) = (NetNs::new().unwrap(), NetNs::new().unwrap());
        let expected = ptp
            .call("ADD", &container, &theirs_in.path(), &conf)
            .unwrap();
        let result = ours.call("ADD", &container, &ours_in.path(), &own).unwrap();
        // Each plugin's first free address is the next after the last given.
        let mut expected_ips = comparable(expected.clone());
        let mut result_ips = comparable(result.clone());
        for (index, expected) in expected_ips["ips"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            let given = result_ips["ips"][index]["address"]
                .as_str()
                .unwrap()
                .to_owned();
            let theirs = expected["address"].as_str().unwrap().to_owned();
            if number == 0 {
                assert_eq!(given, theirs);
            }
            let prefix = |text: &str| text.split_once('/').unwrap().1.to_owned();
            assert_eq!(prefix(&given), prefix(&theirs));
            expected["address"] = json!("address");
            result_ips["ips"][index]["address"] = json!("address");
        }
        assert_eq!(result_ips, expected_ips, "version {version}");
        println!("{version}: equal to ptp with host-local: {result}");
        if number == 0 {
            assert_eq!(first_hops(&ours_in), first_hops(&theirs_in));
        }
        assert!(inside(&ours_in, "link show dev eth0").contains("mtu 1400"));
        if version != "0.3.1" {
            let with = |conf: &Value, result: &Value| {
                let mut conf = conf.clone();
                conf["prevResult"] = result.clone();
                conf
            };
            let (theirs, our) = (with(&conf, &expected), with(&own, &result));
            let check = |plugin: &Plugin, netns: &NetNs, conf: &Value| {
                plugin
                    .call("CHECK", &container, &netns.path(), conf)
                    .unwrap()
            };
            assert_eq!(check(&ptp, &theirs_in, &theirs), Value::Null);
            assert_eq!(check(&ours, &ours_in, &our), Value::Null);
            // Both notice that the address is gone.
            for (plugin, netns, conf) in [(&ptp, &theirs_in, &theirs), (&ours, &ours_in, &our)] {
                netns.ip("addr flush dev eth0 scope global").unwrap();
                let error = plugin
                    .refused("CHECK", &container, &netns.path(), conf)
                    .unwrap();
                assert!(error["code"].as_u64().unwrap() > 0, "{error}");
            }
        }
        for (plugin, netns, conf) in [(&ptp, &theirs_in, &conf), (&ours, &ours_in, &own)] {
            for _ in 0..2 {
                let answer = plugin.call("DEL", &container, &netns.path(), conf).unwrap();
                assert_eq!(answer, Value::Null);
            }
            assert!(netns.ifindex("eth0").is_err());
        }
        assert_eq!(
            names(&data.path().join("pods"))
                .iter()
                .filter(|name| name.contains("10."))
                .count(),
            0
        );
    }
    assert_eq!(node.traces().unwrap(), Vec::<String>::new());
    same_errors(&ptp, &ours);
}

/// The same numbers for the same bad input.
fn same_errors(ptp: &Plugin<'_>, ours: &Plugin<'_>) {
    let netns = NetNs::new().unwrap();
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/20"}]]});
    for (what, command, container, path, version) in [
        (
            "a container ID with a slash",
            "ADD",
            "a/b",
            netns.path(),
            "1.0.0",
        ),
        ("no namespace", "ADD", "c1", String::new(), "1.0.0"),
        ("an unknown command", "PING", "c1", netns.path(), "1.0.0"),
        (
            "a version that nobody speaks",
            "ADD",
            "c1",
            netns.path(),
            "9.9.9",
        ),
    ] {
        let code = |plugin: &Plugin, more: &Value| {
            let conf = plugin.conf(version, more);
            let error = plugin.refused(command, container, &path, &conf).unwrap();
            error["code"].clone()
        };
        let (theirs, our) = (code(ptp, &json!({"ipam": ipam})), code(ours, &json!({})));
        assert_eq!(our, theirs, "{what}");
        println!("{what}: both answer {our}");
    }
}

#[test]
fn attached_pods_reach_each_other_and_the_node_after_a_killed_agent_too() {
    if without_root() {
        return;
    }
    let mut node = Node::start().unwrap();
    let conf = node.plugin().conf("1.1.0", &json!({}));
    let sysctl = json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "2"}});
    let pods: Vec<Pod> = (0..2)
        .map(|number| {
            let container = format!("c{number}");
            let (pod, result) = node.agent.attach(&container, &sysctl).unwrap();
            assert_eq!(result["interfaces"][1]["mtu"], 1450);
            pod
        })
        .collect();
    let set = pods[0]
        .netns
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_ignore"));
    assert_eq!(set.unwrap().trim(), "2");
    let talk = |agent: &Agent| {
        pods[1].answers_pod(&pods[0]).unwrap();
        pods[1].answers(&agent.machine().netns).unwrap();
    };
    talk(&node.agent);
    node.agent.kill().unwrap();
    talk(&node.agent);
    // A runtime that calls now is told to come again.
    let netns = NetNs::new().unwrap();
    let error = node
        .plugin()
        .refused("ADD", "c9", &netns.path(), &conf)
        .unwrap();
    assert_eq!(error["code"], 11, "{error}");
    node.agent.again().unwrap();
    node.agent.wait_ready().unwrap();
    talk(&node.agent);
    let status = eventually("STATUS", || node.plugin().call("STATUS", "", "", &conf)).unwrap();
    assert_eq!(status, Value::Null);
    let mut list = conf.clone();
    list["cni.dev/valid-attachments"] = json!([{"containerID": "c0", "ifname": "eth0"}]);
    node.plugin().call("GC", "", "", &list).unwrap();
    assert!(pods[1].netns.ifindex("eth0").is_err());
    assert!(pods[0].netns.ifindex("eth0").is_ok());
    assert_eq!(node.leases().len(), 2);
    // Of another network, nothing is valid here, and nothing of ours goes.
    list["name"] = json!("other");
    list["cni.dev/valid-attachments"] = json!([]);
    node.plugin().call("GC", "", "", &list).unwrap();
    assert_eq!(node.leases().len(), 2);
}

#[test]
fn a_thousand_pods_attached_and_detached_at_once_share_no_address_and_leak_none() {
    if without_root() {
        return;
    }
    const PODS: usize = 1000;
    const AT_ONCE: usize = 50;
    let node = Node::start().unwrap();
    let conf = node.plugin().conf("1.0.0", &json!({}));
    let namespaces: Vec<NetNs> = (0..PODS).map(|_| NetNs::new().unwrap()).collect();
    let all = |command: &str| -> Vec<Value> {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|worker| {
                    let (namespaces, conf, node) = (&namespaces, &conf, &node);
                    scope.spawn(move || {
                        let mine = (worker..PODS).step_by(AT_ONCE);
                        mine.map(|pod| {
                            let container = format!("c{pod}");
                            node.plugin()
                                .call(command, &container, &namespaces[pod].path(), conf)
                                .unwrap()
                        })
                        .collect::<Vec<_>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect()
        })
    };
    let begun = std::time::Instant::now();
    let results = all("ADD");
    let added = begun.elapsed();
    let addresses: BTreeSet<String> = results
        .iter()
        .flat_map(|result| result["ips"].as_array().unwrap())
        .map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(addresses.len(), 2 * PODS);
    assert_eq!(node.leases().len(), 2 * PODS);
    assert_eq!(pod_endpoints(&node.agent).unwrap().len(), 2 * PODS);
    all("DEL");
    assert_eq!(node.traces().unwrap(), Vec::<String>::new());
    println!(
        "{PODS} ADD in {added:?}, {PODS} DEL in {:?}, {AT_ONCE} at once: {} addresses, none twice, none left",
        begun.elapsed() - added,
        addresses.len()
    );
}

#[test]
fn a_runtime_killed_200_times_in_the_middle_of_an_attachment_leaks_nothing_after_collection() {
    if without_root() {
        return;
    }
    const KILLS: u64 = 200;
    let mut node = Node::start().unwrap();
    let conf = node.plugin().conf("1.1.0", &json!({}));
    let namespaces: Vec<NetNs> = (0..8).map(|_| NetNs::new().unwrap()).collect();
    let mut finished = 0;
    for kill in 0..KILLS {
        let netns = &namespaces[usize::try_from(kill % 8).unwrap()];
        let container = format!("c{kill}");
        let mut child = node
            .plugin()
            .start("ADD", &container, &netns.path(), &conf)
            .unwrap();
        thread::sleep(Duration::from_micros(kill * 397 % 30_000));
        child.kill().unwrap();
        finished += u32::from(child.wait().unwrap().success());
        // The agent itself too, now and then: its leases and links must tell the next one everything.
        if kill % 25 == 24 {
            node.agent.kill().unwrap();
            node.agent.again().unwrap();
            node.agent.wait_ready().unwrap();
        }
        // Only one attachment may have the interface's name in a namespace.
        let mut list = conf.clone();
        list["cni.dev/valid-attachments"] = json!([]);
        if kill % 8 == 7 {
            eventually("GC", || node.plugin().call("GC", "", "", &list)).unwrap();
            eventually("the killed plugin's request is still worked on", || {
                let traces = node.traces()?;
                if !traces.is_empty() {
                    // A request that was under way when GC came is collected by the next.
                    node.plugin().call("GC", "", "", &list)?;
                }
                ensure!(traces.is_empty(), "{traces:?}");
                Ok(())
            })
            .unwrap();
        }
    }
    // The node is as good as new.
    let netns = NetNs::new().unwrap();
    node.plugin()
        .call("ADD", "last", &netns.path(), &conf)
        .unwrap();
    node.plugin()
        .call("DEL", "last", &netns.path(), &conf)
        .unwrap();
    assert_eq!(node.traces().unwrap(), Vec::<String>::new());
    println!("{KILLS} kills, {finished} too late to hit an ADD under way: nothing left after GC");
    assert!(
        finished < 150,
        "most kills must hit an ADD under way: {finished} came too late"
    );
}
