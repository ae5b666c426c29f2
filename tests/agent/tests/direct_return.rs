//! Direct server return: the backend's node answers clients outside, whichever node they asked.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests_agent::{
    Agent, Api, DualService, Flow, Kind, NODE_PORT, Servers, Traffic, WEB_PORT, eventually,
    lost_segments, without_root,
};
use tests_testkit::{Machine, Underlay};

const FLAG: &str = "--direct-server-return";
/// Requests and answers in each of the steps.
const PACKETS: u64 = 20_000;

/// Two nodes that hand connections on, and a machine outside. All pods behind the NodePort are on the second node.
struct Scene {
    agents: [Agent; 2],
    outside: Machine,
    _servers: Servers,
    _api: Api,
    _underlay: Underlay,
}

impl Scene {
    /// `xdp`: what stands before the other programs.
    fn new(xdp: &str) -> Self {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let agents = [1, 2].map(|number| {
            let cidrs = [
                format!("10.244.{number}.0/24"),
                format!("fd00:10:244:{number}::/64"),
            ];
            Agent::node(
                &underlay,
                &api,
                number,
                &[&cidrs[0], &cidrs[1]],
                &[FLAG, xdp],
            )
            .unwrap()
        });
        let servers = ["one", "two"].map(|name| agents[1].pod(name).unwrap());
        let service = DualService::make(&api, "numbers", &json!({"type": "NodePort"})).unwrap();
        service
            .publish(&api, &[(&servers[0], 2), (&servers[1], 2)])
            .unwrap();
        let running = Servers::start(servers.iter().map(|pod| &pod.netns), WEB_PORT).unwrap();
        let scene = Self {
            agents,
            outside: underlay.machine(200).unwrap(),
            _servers: running,
            _api: api,
            _underlay: underlay,
        };
        for to in node_port(scene.agents[0].machine()) {
            eventually("the NodePort is there", || {
                let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
                scene.outside.run(connect)?;
                Ok(())
            })
            .unwrap();
        }
        scene
    }
}

/// The NodePort at a node.
fn node_port(machine: &Machine) -> [SocketAddr; 2] {
    [machine.ipv4.into(), machine.ipv6.into()].map(|ip| SocketAddr::new(ip, NODE_PORT))
}

fn flows<'a>(outside: &'a Machine, asked: [SocketAddr; 2], kinds: &[Kind]) -> Vec<Flow<'a>> {
    let of = |to| {
        kinds.iter().map(move |&kind| Flow {
            kind,
            from: &outside.netns,
            from_name: "outside",
            to,
            // A connection that lives is one that was handed on.
            seen_as_itself: true,
        })
    };
    asked.into_iter().flat_map(of).collect()
}

/// Until so many more packets have passed.
fn wait(traffic: &Traffic, more: u64) {
    let (until, begun) = (traffic.packets() + more, Instant::now());
    while traffic.packets() < until {
        assert_eq!(traffic.faults(), [""; 0]);
        assert!(begun.elapsed() < Duration::from_secs(120), "no packets");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Packets that came to an agent's node by the overlay.
fn received(agent: &Agent) -> Result<u64> {
    let metrics = agent.get("/metrics")?;
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with("fairlead_peer_received_packets_total"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.context("no such metric")?.parse().context("a number")
}

#[test]
fn the_backends_node_answers_clients_outside_and_its_pods_see_them() {
    if without_root() {
        return;
    }
    let scene = Scene::new("--xdp=generic");
    let [asked, answering] = &scene.agents;
    let before = [received(asked).unwrap(), received(answering).unwrap()];
    let traffic = Traffic::default();
    let all = flows(&scene.outside, node_port(asked.machine()), &Kind::ALL);
    traffic.during(&all, |traffic| wait(traffic, PACKETS));
    assert_eq!(traffic.faults(), [""; 0]);
    assert_eq!(lost_segments(&scene.outside.netns).unwrap(), 0);
    eventually("the packets are counted", || {
        let handed_on = received(answering)? - before[1];
        ensure!(handed_on >= PACKETS / 2, "{handed_on} packets handed on");
        Ok(())
    })
    .unwrap();
    assert_eq!(
        received(asked).unwrap(),
        before[0],
        "an answer went by the node that was asked"
    );
}

#[test]
fn a_node_that_stops_answering_itself_keeps_the_connections_that_it_has() {
    if without_root() {
        return;
    }
    let mut scene = Scene::new("--xdp=off");
    let asked = node_port(scene.agents[0].machine());
    let living = flows(&scene.outside, asked, &[Kind::UdpLiving, Kind::TcpLiving]);
    let [first, second] = &mut scene.agents;
    let traffic = Traffic::default();
    traffic.during(&living, |traffic| {
        wait(traffic, PACKETS / 10);
        second.kill().unwrap();
        second.say(FLAG, false);
        second.again().unwrap();
        second.wait_ready().unwrap();
        wait(traffic, PACKETS / 10);
        let before = received(first).unwrap();
        // Their answers come back by the node that was asked.
        eventually("new connections are no more handed on", || {
            for to in asked {
                let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
                scene.outside.run(connect).context("connect")?;
            }
            ensure!(received(first)? > before, "none came back");
            Ok(())
        })
        .unwrap();
        wait(traffic, PACKETS);
    });
    assert_eq!(traffic.faults(), [""; 0]);
    assert_eq!(lost_segments(&scene.outside.netns).unwrap(), 0);
}
