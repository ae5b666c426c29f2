//! Faults of one node, of the network below it and of the registry: what goes between healthy nodes never stops, packet
//! by packet, and what was hurt comes back by itself.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tests_agent::{Agent, Api, Pod, Stream, eventually, without_root};
use tests_testkit::Underlay;

/// Three nodes with a pod each. The first two talk all the time; things happen to the third.
struct Scene {
    stream: Stream,
    pods: [Pod; 3],
    agents: [Agent; 3],
    api: Api,
    underlay: Underlay,
}

fn cidrs(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ]
}

impl Scene {
    fn start() -> Self {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let agents = [1, 2, 3].map(|number| {
            let [v4, v6] = cidrs(number);
            Agent::node(&underlay, &api, number, &[&v4, &v6], &[]).unwrap()
        });
        let pods = [0, 1, 2].map(|index: usize| agents[index].pod("c1").unwrap());
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            eventually("the first connections", || {
                pods[to].answers_pod(&pods[from])
            })
            .unwrap();
        }
        let stream = Stream::start(&pods[0], &pods[1]).unwrap();
        Self {
            stream,
            pods,
            agents,
            api,
            underlay,
        }
    }

    /// Every packet between the healthy nodes arrived, until now.
    fn undisturbed(&self, what: &str) {
        let settled = self.stream.settle().unwrap_or_else(|error| {
            panic!("{what}: {error:#}");
        });
        println!(
            "{what}: {} packets and answers between the others, none lost; the longest silence {:?}",
            settled.packets, settled.silence
        );
    }

    /// A pod of the third node, both ways with both others.
    fn third_is_reached(&self, pod: &Pod) -> Result<()> {
        for other in &self.pods[..2] {
            pod.answers_pod(other)?;
            other.answers_pod(pod)?;
        }
        Ok(())
    }

    fn third_comes_back(&self, what: &str) {
        let begun = Instant::now();
        eventually(what, || self.third_is_reached(&self.pods[2])).unwrap();
        println!("{what}: reached again after {:?}", begun.elapsed());
    }

    fn routes(&self) -> Result<String> {
        self.agents[0].ip("route show dev fairlead0")
    }
}

#[test]
fn a_peer_that_is_lost_and_comes_back_under_a_new_lease_costs_the_others_no_packet() {
    if without_root() {
        return;
    }
    let mut scene = Scene::start();
    scene.agents[2].kill().unwrap();
    scene.third_is_reached(&scene.pods[2]).unwrap();
    scene.undisturbed("a killed agent of the third node");
    scene.api.delete_node("n3").unwrap();
    eventually("the route to a node that left", || {
        let routes = scene.routes()?;
        ensure!(!routes.contains("10.244.3.0/24"), "{routes}");
        Ok(())
    })
    .unwrap();
    assert!(scene.pods[2].answers_pod(&scene.pods[0]).is_err());
    scene.undisturbed("a node that left");
    let [v4, v6] = cidrs(33);
    scene.api.add_node("n3", &[&v4, &v6], json!({})).unwrap();
    scene.agents[2].again().unwrap();
    scene.agents[2].wait_ready().unwrap();
    let fresh = scene.agents[2].pod("c2").unwrap();
    eventually("a pod of the new lease", || scene.third_is_reached(&fresh)).unwrap();
    let routes = scene.routes().unwrap();
    assert!(
        routes.contains(&v4) && !routes.contains("10.244.3.0/24"),
        "{routes}"
    );
    scene.undisturbed("a node that came back under a new lease");
}

#[test]
fn an_underlay_that_fails_and_comes_back_carries_pods_again_without_any_hand() {
    if without_root() {
        return;
    }
    let mut scene = Scene::start();
    let pids = scene.agents.each_mut().map(|agent| agent.pid().unwrap());
    let bridge = scene.underlay.netns();
    bridge.ip("link set port3 down").unwrap();
    assert!(scene.pods[2].answers_pod(&scene.pods[0]).is_err());
    scene.undisturbed("a cable pulled");
    bridge.ip("link set port3 up").unwrap();
    scene.third_comes_back("a cable plugged in again");
    let host = &scene.agents[2].machine().netns;
    let ipv6 = scene.agents[2].machine().ipv6;
    host.ip("link set eth0 down").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    // The kernel takes IPv6 addresses from an interface that goes down; who set it gives it back.
    host.ip(&format!(
        "link set eth0 up\naddr replace {ipv6}/64 dev eth0 nodad"
    ))
    .unwrap();
    scene.third_comes_back("an uplink that was down");
    scene.undisturbed("an uplink that was down");
    bridge.ip("link set br0 down").unwrap();
    assert!(scene.pods[1].answers_pod(&scene.pods[0]).is_err());
    bridge.ip("link set br0 up").unwrap();
    scene.third_comes_back("an underlay that was down as a whole");
    scene.pods[1].answers_pod(&scene.pods[0]).unwrap();
    let after = scene.agents.each_mut().map(|agent| agent.pid().unwrap());
    assert_eq!(after, pids, "the agents ran on");
}

#[test]
fn a_node_that_gets_another_address_or_mtu_costs_the_others_no_packet() {
    if without_root() {
        return;
    }
    let scene = Scene::start();
    let host = &scene.agents[2].machine().netns;
    host.ip("addr del 192.0.2.3/24 dev eth0\naddr add 192.0.2.77/24 dev eth0")
        .unwrap();
    let begun = Instant::now();
    eventually("the new address is published", || {
        let node = scene.api.node("n3")?;
        let annotations = node.metadata.annotations.unwrap_or_default();
        let published = annotations.get("flannel.alpha.coreos.com/public-ip");
        ensure!(
            published.is_some_and(|ip| ip == "192.0.2.77"),
            "{published:?}"
        );
        Ok(())
    })
    .unwrap();
    println!("the new address was published after {:?}", begun.elapsed());
    scene.third_comes_back("another address of a node");
    scene.undisturbed("another address of a node");
    for mtu in [1400, 1500] {
        host.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        eventually("the new MTU is in force", || {
            let link = scene.agents[2].ip("link show dev fairlead0")?;
            ensure!(link.contains(&format!("mtu {}", mtu - 50)), "{link}");
            Ok(())
        })
        .unwrap();
        scene.third_comes_back(&format!("an MTU of {mtu}"));
        scene.undisturbed(&format!("an MTU of {mtu}"));
    }
}

#[test]
fn agents_that_are_killed_and_start_again_cost_no_packet() {
    if without_root() {
        return;
    }
    let mut scene = Scene::start();
    for round in 1..=3 {
        for index in 0..2 {
            scene.agents[index].kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
        scene.undisturbed(&format!("round {round}: both agents killed"));
        for index in 0..2 {
            scene.agents[index].again().unwrap();
        }
        for index in 0..2 {
            scene.agents[index].wait_ready().unwrap();
        }
        scene.undisturbed(&format!("round {round}: both agents ready again"));
    }
}

#[test]
fn a_registry_that_is_away_costs_no_packet_and_no_peer() {
    if without_root() {
        return;
    }
    const AWAY: Duration = Duration::from_secs(15);
    let mut scene = Scene::start();
    let routes = scene.routes().unwrap();
    scene.underlay.netns().ip("link set port250 down").unwrap();
    let begun = Instant::now();
    // One agent even starts while nobody can tell it anything.
    scene.agents[0].kill().unwrap();
    scene.agents[0].again().unwrap();
    while begun.elapsed() < AWAY {
        std::thread::sleep(Duration::from_secs(1));
        scene.third_is_reached(&scene.pods[2]).unwrap();
    }
    assert_eq!(scene.routes().unwrap(), routes, "no peer was forgotten");
    scene.undisturbed(&format!("a registry that was away for {AWAY:?}"));
    scene.underlay.netns().ip("link set port250 up").unwrap();
    scene.agents[0].wait_ready().unwrap();
    scene.api.delete_node("n3").unwrap();
    for agent in &scene.agents[..2] {
        eventually("news are heard again", || {
            let routes = agent.ip("route show dev fairlead0")?;
            ensure!(!routes.contains("10.244.3.0/24"), "{routes}");
            Ok(())
        })
        .unwrap();
    }
    scene.undisturbed("a registry that came back");
}
