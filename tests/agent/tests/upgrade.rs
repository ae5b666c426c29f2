//! An agent that is killed, replaced by another version and brought back, under numbered packets.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests_agent::{
    Agent, Api, DualService, Flow, Kind, NODE_PORT, Servers, Traffic, WEB_PORT, eventually,
    lost_segments, overflown_datagrams, without_root,
};
use tests_testkit::{NetNs, Underlay, program_with};

/// Requests and answers in which each step happens.
const PACKETS: u64 = 1_000_000;
/// What a program of the other version writes for a packet that it drops.
const DROP_LINE: &str = "drop ";
const REPLACED_LINE: &str = "program replaced";

#[test]
fn restart_upgrade_and_downgrade_each_under_a_million_packets_lose_none_and_misroute_none() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    // Its programs log each packet that they drop.
    let other = program_with("node-agent-daemon", "fairlead-node-agent", "ebpf-log").unwrap();
    let mut agents = [1, 2].map(|number| {
        let cidrs = [
            format!("10.244.{number}.0/24"),
            format!("fd00:10:244:{number}::/64"),
        ];
        Agent::node(&underlay, &api, number, &[&cidrs[0], &cidrs[1]], &[]).unwrap()
    });
    let clients = [0, 1].map(|node: usize| agents[node].pod("client").unwrap());
    let servers = [0, 1].map(|node: usize| agents[node].pod("server").unwrap());
    let outside = underlay.machine(200).unwrap();
    let numbers = DualService::make(&api, "numbers", &json!({"type": "NodePort"})).unwrap();
    numbers
        .publish(&api, &[(&servers[0], 1), (&servers[1], 2)])
        .unwrap();
    // What the first node must drop.
    let elsewhere = DualService::make(
        &api,
        "elsewhere",
        &json!({"internalTrafficPolicy": "Local"}),
    )
    .unwrap();
    elsewhere.publish(&api, &[(&servers[1], 2)]).unwrap();
    let _answering = Servers::start(servers.iter().map(|pod| &pod.netns), WEB_PORT).unwrap();

    let inside = |family: usize| SocketAddr::new(numbers.addresses[family], 80);
    let node: [IpAddr; 2] = [Underlay::ipv4(1).into(), Underlay::ipv6(1).into()];
    let node_port = |family: usize| SocketAddr::new(node[family], NODE_PORT);
    // The agents are borrowed for their steps.
    let host = agents[0].machine().netns.again().unwrap();
    let places = [
        ("a pod of n1", &clients[0].netns, inside(0), true),
        ("a pod of n1", &clients[0].netns, inside(1), true),
        ("a pod of n2", &clients[1].netns, inside(0), true),
        ("outside", &outside.netns, node_port(0), false),
        ("outside", &outside.netns, node_port(1), false),
        ("node n1", &host, inside(0), false),
    ];
    let flows: Vec<Flow<'_>> = places
        .iter()
        .flat_map(|&(from_name, from, to, seen_as_itself)| {
            Kind::ALL.map(|kind| Flow {
                kind,
                from,
                from_name,
                to,
                seen_as_itself,
            })
        })
        .collect();
    for (_, from, to, _) in places {
        eventually("the service is there", || reach(from, to)).unwrap();
    }

    let dropped = SocketAddr::new(elsewhere.addresses[0], 80);
    let traffic = Traffic::default();
    traffic.during(&flows, |traffic| {
        let mut usual = None;
        for (what, program) in [
            ("restart", None),
            ("upgrade", Some(other)),
            ("downgrade", None),
        ] {
            let program = program.or_else(|| usual.take());
            let upgraded = what == "upgrade";
            let outcome = step(traffic, &mut agents, program, |agent| {
                provoke_a_drop(&clients[0].netns, dropped, agent, upgraded)
            });
            usual = outcome.unwrap_or_else(|error| {
                let overflown = servers
                    .each_ref()
                    .map(|pod| overflown_datagrams(&pod.netns).ok());
                let faults = traffic.faults();
                panic!("{what}: {error:#}\n{faults:#?}\nserver sockets overflown: {overflown:?}");
            });
            println!(
                "{what}: done; {} packets of {} flows so far",
                traffic.packets(),
                traffic.flows()
            );
        }
    });
    assert_eq!(traffic.faults(), [""; 0]);
    for place in [
        &clients[0].netns,
        &clients[1].netns,
        &servers[0].netns,
        &servers[1].netns,
        &outside.netns,
    ] {
        assert_eq!(lost_segments(place).unwrap(), 0, "TCP segments were lost");
    }
}

/// Ends the agents, and starts them again as `program` (if any), while a million packets pass. Answers which program
/// they were before.
fn step(
    traffic: &Traffic,
    agents: &mut [Agent; 2],
    program: Option<PathBuf>,
    look: impl Fn(&Agent) -> Result<()>,
) -> Result<Option<PathBuf>> {
    let first = traffic.packets();
    wait(traffic, first + PACKETS / 4)?;
    let replaced: Vec<usize> = agents
        .iter()
        .map(|agent| count(agent, REPLACED_LINE))
        .collect();
    let mut before = None;
    let begun = Instant::now();
    for agent in agents.iter_mut() {
        agent.kill()?;
        if let Some(program) = &program {
            before = Some(agent.install(program.clone()));
        }
    }
    // Nobody looks after the nodes for a while.
    wait(traffic, traffic.packets() + PACKETS / 20)?;
    for agent in agents.iter_mut() {
        agent.again()?;
    }
    for agent in agents.iter_mut() {
        agent.wait_ready()?;
    }
    println!("the agents were away and back after {:?}", begun.elapsed());
    look(&agents[0])?;
    for (agent, before) in agents.iter().zip(replaced) {
        let replaced = count(agent, REPLACED_LINE) - before;
        // At least those of uplink, host device and pods.
        let as_expected = match program {
            Some(_) => replaced >= 4,
            None => replaced == 0,
        };
        ensure!(as_expected, "programs replaced in {replaced} links");
    }
    wait(traffic, first + PACKETS)?;
    Ok(before)
}

/// Until so many packets have passed.
fn wait(traffic: &Traffic, packets: u64) -> Result<()> {
    let begun = Instant::now();
    while traffic.packets() < packets {
        ensure!(traffic.faults().is_empty(), "there are faults");
        ensure!(
            begun.elapsed() < Duration::from_secs(300),
            "only {} packets",
            traffic.packets()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn count(agent: &Agent, part: &str) -> usize {
    agent
        .log()
        .lines()
        .filter(|line| line.contains(part))
        .count()
}

/// Only the programs of the other version write a line for a packet that they drop.
fn provoke_a_drop(from: &NetNs, to: SocketAddr, agent: &Agent, is_told: bool) -> Result<()> {
    let drops = || agent.get("/metrics").map(|text| dropped_packets(&text));
    let (lines, dropped) = (count(agent, DROP_LINE), drops()?);
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"to nobody", to)
    })?;
    eventually("the drop is counted", || {
        ensure!(drops()? > dropped, "{dropped} drops");
        let told = count(agent, DROP_LINE) > lines;
        ensure!(told == is_told, "a line was written: {told}");
        Ok(())
    })
}

fn dropped_packets(metrics: &str) -> u64 {
    let lines = metrics.lines();
    let values = lines.filter(|line| line.starts_with("fairlead_drop_packets_total"));
    values
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn reach(from: &NetNs, to: SocketAddr) -> Result<()> {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
        .with_context(|| format!("connect to {to}"))?;
    Ok(())
}
