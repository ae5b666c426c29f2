//! What happens to a node by other hands: put back, followed, reported.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, eventually, without_root};
use tests_testkit::Underlay;

fn cidrs(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ]
}

fn start(underlay: &Underlay, api: &Api, number: u8) -> Agent {
    let cidrs = cidrs(number);
    Agent::node(underlay, api, number, &[&cidrs[0], &cidrs[1]], &[]).unwrap()
}

fn annotation(api: &Api, node: &str, key: &str) -> Result<String> {
    let annotations = api.node(node)?.metadata.annotations.unwrap_or_default();
    let key = format!("flannel.alpha.coreos.com/{key}");
    annotations
        .get(&key)
        .cloned()
        .with_context(|| format!("{node} has no {key}"))
}

/// What is removed, how, and what the event says of it.
type Step<'a> = (&'a str, &'a dyn Fn() -> Result<()>, &'a str);

#[test]
fn whatever_is_removed_by_hand_is_put_back_and_reported() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let agent = start(&underlay, &api, 1);
    let pod = agent.pod("c1").unwrap();
    let host = &agent.machine().netns;
    pod.answers(host).unwrap();
    let link = |name: &str| agent.pin_dir().join("links").join(name);
    let pod_link = std::fs::read_dir(agent.pin_dir().join("links"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("pod-"))
        .unwrap();
    let steps: [Step<'_>; 8] = [
        (
            "an address",
            &|| host.ip("addr del 10.244.1.1/32 dev fairlead0"),
            "address 10.244.1.1",
        ),
        (
            "an IPv6 address",
            &|| host.ip("addr del fd00:10:244:1::1/128 dev fairlead0"),
            "address fd00:10:244:1::1",
        ),
        ("a route", &|| host.ip("route del 10.244.1.0/24"), "routes"),
        (
            "a neighbour",
            &|| host.ip("neigh del 169.254.1.1 dev fairlead0"),
            "neighbour 169.254.1.1",
        ),
        (
            "a device that was down",
            &|| host.ip("link set fairlead0 down"),
            "device fairlead0 was down",
        ),
        (
            "a device",
            &|| host.ip("link del fairlead0"),
            "device fairlead0 was missing",
        ),
        (
            "the uplink's link",
            &|| Ok(std::fs::remove_file(link("from_network"))?),
            "from_network",
        ),
        (
            "a pod's link",
            &|| Ok(std::fs::remove_file(link(&pod_link))?),
            "link of fl",
        ),
    ];
    for (number, (what, remove, said)) in steps.iter().enumerate() {
        let before = events(&api, said);
        remove().unwrap();
        let begun = std::time::Instant::now();
        eventually(what, || {
            ensure!(events(&api, said) > before, "no event says {said:?}");
            pod.answers(host)
        })
        .unwrap();
        println!("{what}: put back and reported in {:?}", begun.elapsed());
        let metrics = agent.get("/metrics").unwrap();
        let restored: f64 = metrics
            .lines()
            .find_map(|line| line.strip_prefix("fairlead_host_restored_total "))
            .unwrap()
            .parse()
            .unwrap();
        assert!(restored > number as f64, "{what}: {restored}");
    }
}

fn events(api: &Api, said: &str) -> usize {
    let all = api.events().unwrap();
    all.iter()
        .filter(|(reason, message)| reason == "HostStateRestored" && message.contains(said))
        .count()
}

#[test]
fn a_node_that_changes_its_address_or_mtu_is_followed_while_it_runs() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let (one, two) = (start(&underlay, &api, 1), start(&underlay, &api, 2));
    let (client, server) = (one.pod("c1").unwrap(), two.pod("c2").unwrap());
    eventually("the first connection", || server.answers_pod(&client)).unwrap();
    let mac = annotation(&api, "n2", "backend-data").unwrap();
    let host = &two.machine().netns;
    // The first address goes, and a second one of its prefix would go with it.
    host.ip("addr del 192.0.2.2/24 dev eth0\naddr add 192.0.2.77/24 dev eth0")
        .unwrap();
    let begun = std::time::Instant::now();
    eventually("the new address is published", || {
        let published = annotation(&api, "n2", "public-ip")?;
        ensure!(published == "192.0.2.77", "{published}");
        Ok(())
    })
    .unwrap();
    let published = begun.elapsed();
    eventually("pods are reached again", || server.answers_pod(&client)).unwrap();
    println!(
        "the new address was published after {published:?}, pods were reached after {:?}",
        begun.elapsed()
    );
    assert_eq!(
        annotation(&api, "n2", "backend-data").unwrap(),
        mac,
        "its peers keep its MAC"
    );
    // MTU: both families need 1280.
    host.ip("link set eth0 mtu 1400").unwrap();
    eventually("pods that come get the new MTU", || {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (pod, result) = two.attach(&format!("later{number}"), &json!({}))?;
        let mtu = &result["interfaces"][1]["mtu"];
        ensure!(*mtu == 1350, "{mtu}");
        pod.answers_pod(&client)
    })
    .unwrap();
    assert!(
        two.ip("link show dev fairlead0")
            .unwrap()
            .contains("mtu 1350")
    );
    let said = api.events().unwrap();
    assert!(
        said.iter().any(|(reason, _)| reason == "UplinkChanged"),
        "{said:?}"
    );
    assert!(two.get("/readyz").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_node_that_gets_another_pod_cidr_goes_on_with_its_old_pods_and_the_new_range() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let mut agent = start(&underlay, &api, 1);
    let old = agent.pod("old").unwrap();
    let pid = agent.pid().unwrap();
    api.delete_node("n1").unwrap();
    let new = cidrs(9);
    api.add_node("n1", &[&new[0], &new[1]], json!({})).unwrap();
    eventually("the new range is wired", || {
        let addresses = agent.ip("addr show dev fairlead0")?;
        ensure!(addresses.contains("10.244.9.1/32"), "{addresses}");
        Ok(())
    })
    .unwrap();
    agent.wait_ready().unwrap();
    assert_eq!(agent.pid().unwrap(), pid, "the process goes on");
    let fresh = eventually("a pod of the new range", || agent.pod("fresh")).unwrap();
    assert!(
        fresh.ips[0].to_string().starts_with("10.244.9."),
        "{:?}",
        fresh.ips
    );
    fresh.answers_pod(&old).unwrap();
    old.answers_pod(&fresh).unwrap();
    eventually("the old pod from the node", || {
        old.answers(&agent.machine().netns)
    })
    .unwrap();
    let said: Vec<Value> = api
        .events()
        .unwrap()
        .into_iter()
        .map(|event| json!(event))
        .collect();
    assert!(
        said.iter().any(|event| event[0] == "PodCIDRChanged"),
        "{said:?}"
    );
    // The old pod's addresses come back to nobody when it goes.
    let conf = agent.plugin().conf("1.1.0", &json!({}));
    agent.plugin().call("DEL", "old", "", &conf).unwrap();
    assert!(old.netns.ifindex("eth0").is_err());
}
