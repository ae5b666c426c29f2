//! What the agent chooses, beside what a real kube-proxy chooses for the same objects from the same server.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ebpf_abi::{Addr4, Addr6, frontend_flag, service_flag};
use node_agent_maps::Maps;
use node_agent_model::{MapFamily, MapSink, Snapshot};
use tests_agent::{
    Agent, Api, KubeProxy, Verdict, Verdicts, add_nodes, add_services, eventually, kube_proxy,
    without_root,
};
use tests_testkit::{Underlay, skip};

const SERVICES: u16 = 300;
const SEEDS: [u64; 2] = [1, 2];

/// What the maps say of each frontend to clients from outside.
fn verdicts(agent: &Agent) -> Result<Verdicts> {
    let maps = Maps::open_read_only(&agent.pin_dir())?;
    let held = maps.snapshot()?;
    let machine = agent.machine();
    let own = [machine.ipv4.into(), machine.ipv6.into()];
    let mut verdicts = Verdicts::new();
    add::<Addr4>(&held, own, &mut verdicts)?;
    add::<Addr6>(&held, own, &mut verdicts)?;
    Ok(verdicts)
}

fn add<A: MapFamily>(held: &Snapshot, own: [IpAddr; 2], verdicts: &mut Verdicts) -> Result<()> {
    let half = A::half(held);
    for (key, frontend) in &half.frontends {
        if frontend.flags & frontend_flag::LOOPBACK != 0 {
            continue;
        }
        let service = held.services.get(&frontend.service_id);
        let service = service.context("a frontend without a service")?;
        let mut backends = BTreeSet::new();
        for slot in (service.slot_base..).take(service.slot_count as usize) {
            let id = held.slots.get(&slot).context("a slot")?;
            let backend = half.backends.get(id).context("a backend")?;
            let port = u16::from_be(backend.port_be);
            backends.insert(SocketAddr::new(backend.addr.to_ip(), port));
        }
        let verdict = match backends.is_empty() {
            false => Verdict::Backends(backends),
            true if service.flags & service_flag::DROP_IF_EMPTY != 0 => Verdict::Dropped,
            true => Verdict::Refused,
        };
        let protocol = match key.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "sctp",
        };
        let ip = key.addr.to_ip();
        let ip = (!own.contains(&ip)).then_some(ip);
        verdicts.insert(
            (protocol.to_owned(), ip, u16::from_be(key.port_be)),
            verdict,
        );
    }
    Ok(())
}

fn differences(ours: &Verdicts, theirs: &Verdicts) -> Vec<String> {
    let places: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differ = places
        .into_iter()
        .filter(|place| ours.get(place) != theirs.get(place));
    differ
        .map(|place| {
            let (ours, theirs) = (ours.get(place), theirs.get(place));
            format!("{place:?}: we {ours:?}, kube-proxy {theirs:?}")
        })
        .collect()
}

#[test]
fn every_frontend_leads_where_kube_proxy_leads_it() {
    if without_root() {
        return;
    }
    if kube_proxy().is_none() {
        return skip(
            "a real kube-proxy: none was given (cargo xtask test --suite netns --kube-proxy PATH)",
        );
    }
    for seed in SEEDS {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let machine = underlay.machine(1).unwrap();
        add_nodes(&api, [machine.ipv4.into(), machine.ipv6.into()]).unwrap();
        add_services(&api, SERVICES, seed).unwrap();
        let mut agent = Agent::start("n1", machine, &[&api.flag()]).unwrap();
        agent.wait_ready().unwrap();
        // Beside it, and takes itself for the same node.
        let mut theirs = KubeProxy::start("n1", underlay.machine(2).unwrap(), &api).unwrap();
        let (frontends, backends) = eventually("the same verdicts", || {
            let (ours, theirs) = (verdicts(&agent)?, theirs.verdicts()?);
            let differences = differences(&ours, &theirs);
            ensure!(
                differences.is_empty() && ours.len() > SERVICES.into(),
                "{} of {} differ:\n{}",
                differences.len(),
                ours.len(),
                differences.join("\n")
            );
            let led = ours.values().filter(|v| matches!(v, Verdict::Backends(_)));
            Ok((ours.len(), led.count()))
        })
        .unwrap();
        println!(
            "{SERVICES} Services of seed {seed}: {frontends} frontends, {backends} of them with backends, all as kube-proxy"
        );
    }
}
