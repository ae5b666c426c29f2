//! `fairlead status`: agent, programs, configuration and counts.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use ebpf_abi::{Addr4, Addr6, Config, backend_state, config_flag, endpoint_flag, peer_mode};
use node_agent_maps::{DeviceMode, LinkTarget, Maps, links, owner_of};
use node_agent_model::{MapFamily, Snapshot};
use serde::Serialize;

use crate::{
    output::{Report, Section},
    view::View,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub agent: Agent,
    pub node: Node,
    pub programs: Vec<Attached>,
    pub counts: Counts,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Agent {
    /// The process that has the lock of the pin directory.
    pub process: Option<String>,
    /// What it answers to /readyz.
    pub readiness: Option<String>,
}

/// What the programs know of this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub configured: bool,
    pub addresses: Vec<IpAddr>,
    pub source_nat_addresses: Vec<IpAddr>,
    pub uplink: String,
    pub host_device: String,
    pub overlay: Option<String>,
    /// How the uplink's device sends NodePorts on itself: native, generic or off.
    pub xdp: &'static str,
    pub masquerade_ports: Option<String>,
}

/// A program and where it is attached.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    pub link: String,
    pub target: String,
    pub program_id: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub services: usize,
    pub services_without_backend: usize,
    pub frontends: usize,
    pub backends: usize,
    pub draining_backends: usize,
    pub pod_addresses: usize,
    pub peers: usize,
    pub connections: usize,
    pub dropped_packets: u64,
}

/// An agent answers at once or has a problem.
const ASK_FOR: Duration = Duration::from_secs(2);
/// A map that is fuller than this, in percent, is told.
const NEARLY_FULL: u64 = 90;

/// # Errors
///
/// When the maps or the links cannot be read.
pub fn read(maps: &Maps, pin_dir: &Path, agent: SocketAddr) -> Result<Status> {
    let view = View::read(maps)?;
    let config = view.held.config;
    let owner = owner_of(pin_dir);
    let links = links(pin_dir)?;
    let programs: Vec<Attached> = links
        .into_iter()
        .map(|link| Attached {
            target: target(link.target),
            program_id: link.program_id,
            link: link.name,
        })
        .collect();
    let drops = maps.drops().context("reading the drops")?;
    let usage = maps.usage().context("counting the entries")?;
    let entries = |names: [&str; 2]| -> usize {
        let of = usage.iter().filter(|usage| names.contains(&usage.map));
        of.map(|usage| usage.entries as usize).sum()
    };
    let counts = Counts {
        services: view.services.len(),
        services_without_backend: view
            .services
            .values()
            .filter(|service| service.backends.is_empty())
            .count(),
        frontends: view.held.v4.frontends.len() + view.held.v6.frontends.len(),
        backends: backends(&view.held, backend_state::ACTIVE),
        draining_backends: backends(&view.held, backend_state::TERMINATING),
        pod_addresses: pods::<Addr4>(&view.held) + pods::<Addr6>(&view.held),
        peers: view
            .held
            .peers
            .values()
            .filter(|peer| peer.mode != peer_mode::NONE)
            .count(),
        connections: entries([ebpf_abi::maps::CONN4, ebpf_abi::maps::CONN6]),
        dropped_packets: drops.iter().map(|(_, counter)| counter.packets).sum(),
    };
    let mut warnings = Vec::new();
    if owner.is_none() {
        warnings.push("no agent runs: the dataplane forwards by what it has, changes wait".into());
    }
    if config == Config::default() {
        warnings.push("the node's configuration is not written: nothing is translated".into());
    }
    let gone = programs.iter().filter(|program| program.target == "gone");
    warnings.extend(gone.map(|program| format!("link {} hangs at nothing", program.link)));
    let full = usage
        .iter()
        .filter(|usage| u64::from(usage.entries) * 100 >= u64::from(usage.capacity) * NEARLY_FULL);
    warnings.extend(full.map(|usage| {
        format!(
            "map {} holds {} of {}",
            usage.map, usage.entries, usage.capacity
        )
    }));
    Ok(Status {
        agent: Agent {
            readiness: owner.as_ref().map(|_| readiness(agent)),
            process: owner.map(|owner| owner.to_string()),
        },
        node: node(&config, &programs),
        programs,
        counts,
        warnings,
    })
}

fn node(config: &Config, programs: &[Attached]) -> Node {
    let addresses = |v4: Addr4, v6: Addr6| -> Vec<IpAddr> {
        let v4 = (v4 != Addr4::default()).then(|| v4.to_ip());
        let v6 = (v6 != Addr6::default()).then(|| v6.to_ip());
        v4.into_iter().chain(v6).collect()
    };
    Node {
        configured: *config != Config::default(),
        addresses: addresses(config.v4.node_addr, config.v6.node_addr),
        source_nat_addresses: addresses(config.v4.source_nat_addr, config.v6.source_nat_addr),
        uplink: interface(config.uplink_ifindex),
        host_device: interface(config.host_ifindex),
        overlay: (config.flags & config_flag::OVERLAY != 0).then(|| {
            let port = u16::from_be(config.overlay_port_be);
            match config.flags & config_flag::OVERLAY_UDP {
                0 => format!("VXLAN, VNI {}, UDP port {port}", config.vni),
                _ => format!("bare UDP, port {port}"),
            }
        }),
        xdp: xdp(programs),
        masquerade_ports: (config.flags & config_flag::MASQUERADE != 0)
            .then(|| format!("{}-{}", config.nat_port_first, config.nat_port_last)),
    }
}

fn xdp(programs: &[Attached]) -> &'static str {
    let attached = |mode: DeviceMode| programs.iter().any(|program| program.link == mode.link());
    if attached(DeviceMode::Native) {
        "native"
    } else if attached(DeviceMode::Generic) {
        "generic"
    } else {
        "off"
    }
}

pub fn target(target: LinkTarget) -> String {
    match target {
        LinkTarget::Interface { ifindex } => interface(ifindex),
        LinkTarget::Cgroup { id } => format!("cgroup {id}"),
        LinkTarget::Gone => "gone".into(),
    }
}

/// An interface's name, if it is in this network namespace, and its index.
pub fn interface(ifindex: u32) -> String {
    match (ifindex, nix::net::if_::if_indextoname(ifindex)) {
        (0, _) => "none".into(),
        (_, Ok(name)) => format!("{} (ifindex {ifindex})", name.to_string_lossy()),
        (_, Err(_)) => format!("ifindex {ifindex}"),
    }
}

fn backends(held: &Snapshot, state: u16) -> usize {
    fn count<A: MapFamily>(held: &Snapshot, state: u16) -> usize {
        let backends = A::half(held).backends.values();
        backends.filter(|backend| backend.state == state).count()
    }
    count::<Addr4>(held, state) + count::<Addr6>(held, state)
}

fn pods<A: MapFamily>(held: &Snapshot) -> usize {
    let other = endpoint_flag::HOST | endpoint_flag::SOURCE_NAT;
    let endpoints = A::half(held).endpoints.values();
    endpoints
        .filter(|endpoint| endpoint.flags & other == 0)
        .count()
}

/// The agent's answer to /readyz, or why there is none.
fn readiness(agent: SocketAddr) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&agent, ASK_FOR)?;
        stream.set_read_timeout(Some(ASK_FOR))?;
        // HTTP/1.0 ends with the connection, so there is no length to read.
        write!(stream, "GET /readyz HTTP/1.0\r\nHost: {agent}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(1 << 16).read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) => match answer.split_once("\r\n\r\n") {
            Some((_, body)) => body.trim().replace('\n', "; "),
            None => format!("{agent} does not speak HTTP"),
        },
        Err(error) => format!("{agent} does not answer: {error}"),
    }
}

impl Report for Status {
    fn sections(&self) -> Vec<Section> {
        let list = |ips: &[IpAddr]| {
            let texts: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
            texts.join(", ")
        };
        let none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
        let agent = self.agent.process.as_deref().unwrap_or("not running");
        let mut facts = vec![("agent", agent.to_owned())];
        if let Some(readiness) = &self.agent.readiness {
            facts.push(("readiness", readiness.clone()));
        }
        facts.extend([
            ("node addresses", list(&self.node.addresses)),
            ("source NAT", list(&self.node.source_nat_addresses)),
            ("uplink", self.node.uplink.clone()),
            ("host device", self.node.host_device.clone()),
            ("overlay", none(&self.node.overlay)),
            ("XDP", self.node.xdp.to_owned()),
            ("masquerade ports", none(&self.node.masquerade_ports)),
        ]);
        let counts = &self.counts;
        let numbers = [
            (
                "services",
                format!(
                    "{} ({} without backend)",
                    counts.services, counts.services_without_backend
                ),
            ),
            ("frontends", counts.frontends.to_string()),
            (
                "backends",
                format!(
                    "{} ({} draining)",
                    counts.backends, counts.draining_backends
                ),
            ),
            ("pod addresses", counts.pod_addresses.to_string()),
            ("peers", counts.peers.to_string()),
            ("connections", counts.connections.to_string()),
            ("dropped packets", counts.dropped_packets.to_string()),
        ];
        let lines = facts.into_iter().chain(numbers);
        let lines = lines.map(|(name, value)| vec![name.to_owned(), value]);
        let programs = self.programs.iter().map(|program| {
            vec![
                program.link.clone(),
                program.target.clone(),
                program.program_id.to_string(),
            ]
        });
        let mut sections = vec![
            Section::new(&[], lines.collect()),
            Section::new(&["LINK", "ATTACHED TO", "PROGRAM"], programs.collect()),
        ];
        if !self.warnings.is_empty() {
            let warnings = self.warnings.iter().map(|text| vec![text.clone()]);
            sections.push(Section::new(&[], warnings.collect()).headed("warnings:"));
        }
        sections
    }
}
