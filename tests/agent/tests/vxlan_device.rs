//! The kernel's VXLAN device on one node, on both, and on none, because it was asked for or because the programs' checksums
//! are wrong: the nodes understand each other all the time, and connections between their pods outlive each change.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::SocketAddr;

use serde_json::json;
use tests_agent::{
    Agent, Api, Flow, Kind, Pod, Servers, Stream, Traffic, eventually, without_root,
};
use tests_testkit::Underlay;

const FLAG: &str = "--vxlan-device";
const DEVICE: &str = "fairlead-vxlan";
const PORT: u16 = 8080;

/// A node of both families, whose underlay has both or IPv6 alone.
fn node(underlay: &Underlay, api: &Api, number: u8, over_ipv6: bool, more: &[&str]) -> Agent {
    let name = format!("n{number}");
    let cidrs = [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ];
    api.add_node(&name, &[&cidrs[0], &cidrs[1]], json!({}))
        .unwrap();
    let machine = underlay.machine(number).unwrap();
    let server = if over_ipv6 {
        let address = format!("addr del {}/24 dev eth0", machine.ipv4);
        machine.netns.ip(&address).unwrap();
        api.flag_v6()
    } else {
        api.flag()
    };
    let mut agent = Agent::start(&name, machine, &[&[server.as_str()], more].concat()).unwrap();
    agent.wait_ready().unwrap();
    agent
}

/// One TCP connection in each direction and family.
fn connections<'a>(pods: &'a [Pod; 2]) -> Vec<Flow<'a>> {
    let [one, two] = pods;
    let flow = |from: &'a Pod, from_name, to: &Pod| {
        to.ips.clone().into_iter().map(move |ip| Flow {
            kind: Kind::TcpLiving,
            from: &from.netns,
            from_name,
            to: SocketAddr::new(ip, PORT),
            seen_as_itself: true,
        })
    };
    flow(one, "n1", two).chain(flow(two, "n2", one)).collect()
}

/// Whether the kernel's device takes packets out of the overlay on this node.
fn by_device(agent: &Agent) -> bool {
    agent.pin_dir().join("links/from_vxlan").exists()
}

fn change_over(over_ipv6: bool) {
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let mut agents = [
        node(&underlay, &api, 1, over_ipv6, &[FLAG]),
        node(&underlay, &api, 2, over_ipv6, &[]),
    ];
    let pods = [0, 1].map(|at: usize| agents[at].pod("c1").unwrap());
    let reach = |what: &str| {
        eventually(what, || {
            pods[0].answers_pod(&pods[1])?;
            pods[1].answers_pod(&pods[0])
        })
        .unwrap();
    };
    reach("one node with the device, one without");
    let _servers = Servers::start(pods.iter().map(|pod| &pod.netns), PORT).unwrap();
    let (flows, traffic) = (connections(&pods), Traffic::default());
    let datagrams = Stream::start(&pods[0], &pods[1]).unwrap();
    traffic.during(&flows, |traffic| {
        for (index, wanted) in [(1, true), (0, false), (1, false), (0, true)] {
            let what = format!("n{} with {FLAG}: {wanted}", index + 1);
            let agent = &mut agents[index];
            agent.kill().unwrap();
            agent.say(FLAG, wanted);
            agent.again().unwrap();
            agent.wait_ready().unwrap();
            assert_eq!(by_device(agent), wanted, "{what}");
            reach(&what);
            let packets = traffic.packets();
            eventually("the connections go on", || {
                anyhow::ensure!(traffic.packets() > packets + 100, "{:?}", traffic.faults());
                Ok(())
            })
            .unwrap();
            // Datagrams are counted and not asked for: a new device knows a peer some milliseconds after the maps do.
            match datagrams.settle() {
                Ok(settled) => println!("{what}: no datagram lost of {}", settled.packets),
                Err(error) => println!("{what}: {error}"),
            }
        }
    });
    assert_eq!(traffic.faults(), [""; 0]);
    let links = agents[1].ip("link show").unwrap();
    assert_eq!(links.contains(DEVICE), over_ipv6, "{links}");
}

#[test]
fn nodes_change_to_the_kernels_device_and_back_with_connections_open_over_ipv4() {
    if !without_root() {
        change_over(false);
    }
}

#[test]
fn nodes_change_to_the_kernels_device_and_back_with_connections_open_over_ipv6() {
    if !without_root() {
        change_over(true);
    }
}

/// What a node says of its test of the programs' checksums.
fn proof_came_to(agent: &Agent, outcome: &str) -> anyhow::Result<()> {
    let metrics = agent.get("/metrics")?;
    let line = format!("fairlead_overlay_checksum_proof{{outcome=\"{outcome}\"}} 1");
    anyhow::ensure!(metrics.contains(&line), "no {line}");
    Ok(())
}

/// One node finds that its programs compute right checksums, the other that they do not.
fn found_out(over_ipv6: bool, more: &[&str]) {
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let spoilt = [more, &["--rehearse-wrong-checksums"]].concat();
    let wrong = node(&underlay, &api, 1, over_ipv6, &spoilt);
    let right = node(&underlay, &api, 2, over_ipv6, more);
    proof_came_to(&wrong, "wrong").unwrap();
    proof_came_to(&right, "right").unwrap();
    assert!(by_device(&wrong) && !by_device(&right));
    let said = wrong.get("/readyz").unwrap();
    assert!(
        said.contains("outer checksums of the programs are wrong"),
        "{said}"
    );
    eventually("an event says it", || {
        let events = api.events()?;
        anyhow::ensure!(
            events
                .iter()
                .any(|(reason, message)| reason == "OverlayChecksumWrong"
                    && message.contains("the bytes ask for")),
            "{events:?}"
        );
        Ok(())
    })
    .unwrap();
    let pods = [&wrong, &right].map(|agent| agent.pod("c1").unwrap());
    eventually("they reach each other", || {
        pods[0].answers_pod(&pods[1])?;
        pods[1].answers_pod(&pods[0])
    })
    .unwrap();
}

#[test]
fn a_node_whose_checksums_come_out_wrong_says_so_and_sends_by_the_kernels_device() {
    if !without_root() {
        found_out(false, &["--overlay-checksum=on"]);
        found_out(true, &[]);
    }
}
