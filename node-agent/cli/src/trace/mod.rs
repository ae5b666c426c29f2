//! `fairlead trace`: what the dataplane would do with a packet, and why.
//!
//! The decision is not modelled here: the code that runs in the kernel runs on the described packet, with the pinned
//! maps for its tables. It changes none of them: no turn is taken, no connection inserted.

mod flow;
mod frame;
mod reader;
mod story;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result};
use ebpf_abi::{Addr4, Addr6, endpoint_flag};
use ebpf_packet::{Caller, Connect, Verdict, connect, from_host, from_network, from_pod};
use node_agent_maps::{Maps, Program, links};
use node_agent_model::MapFamily;
use serde::Serialize;

pub use self::flow::Flow;
use self::{
    flow::From,
    frame::Frame,
    reader::{Family, Reader},
    story::{Line, describe},
};
use crate::{
    output::{Report, Section},
    status::interface,
    view::View,
    words,
};

/// What would become of a packet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    pub packet: String,
    /// `pod`, `host` or `network`.
    pub from: &'static str,
    pub steps: Vec<Line>,
    /// `pass`, `drop`, `deliverToPod`, `toHost`, `toNetwork`, `reflect` or `refused`.
    pub verdict: &'static str,
    /// Of a drop: the word under which it is counted.
    pub reason: Option<&'static str>,
    pub says: String,
    /// The packet as it goes on.
    pub becomes: Option<String>,
}

const TCP: u8 = 6;

/// # Errors
///
/// When the flow contradicts itself, or a map cannot be read.
pub fn run(maps: &Maps, pin_dir: &Path, flow: &Flow) -> Result<Trace> {
    let mut flow = flow.resolved()?;
    let view = View::read(maps)?;
    let reader = Reader::new(maps, &view);
    let from = match flow.from {
        From::Auto => origin(&view, flow.src.ip),
        said => said,
    };
    warn_of_doubts(&reader, from, &flow);
    let packet = flow.text();
    let attached: Vec<String> = links(pin_dir)?.into_iter().map(|link| link.name).collect();
    if flow.socket
        && from != From::Network
        && flow.proto == TCP
        && !flow.established
        && let Some(refused) = at_socket(&reader, &attached, &Socket::of(from, &view), &mut flow)
    {
        return Ok(Trace {
            packet,
            from: name(from),
            steps: reader.finish()?.into_lines(),
            verdict: "refused",
            reason: None,
            says: refused,
            becomes: None,
        });
    }
    let mut frame = Frame::of(&flow);
    let verdict = match from {
        From::Pod => from_pod(&mut frame, &reader),
        From::Host => from_host(&mut frame, &reader),
        From::Network | From::Auto => from_network(&mut frame, &reader),
    };
    let (verdict, reason, says) = in_words(verdict, &view);
    let becomes = match verdict {
        "drop" => None,
        _ => frame.text(),
    };
    Ok(Trace {
        packet,
        from: name(from),
        steps: reader.finish().context("tracing")?.into_lines(),
        verdict,
        reason,
        says,
        becomes,
    })
}

/// Who has this address as source.
fn origin(view: &View, ip: IpAddr) -> From {
    fn flags<A: MapFamily>(view: &View, ip: IpAddr) -> Option<u32> {
        let endpoints = &A::half(&view.held).endpoints;
        Some(endpoints.get(&A::from_ip(ip)?)?.flags)
    }
    match flags::<Addr4>(view, ip).or_else(|| flags::<Addr6>(view, ip)) {
        Some(flags) if flags & endpoint_flag::HOST != 0 => From::Host,
        Some(_) => From::Pod,
        None => From::Network,
    }
}

/// A described packet that this node would never see is answered all the same.
fn warn_of_doubts(reader: &Reader<'_>, from: From, flow: &Flow) {
    let is = origin(reader.view, flow.src.ip);
    if is != from && flow.from != From::Auto {
        let owner = match is {
            From::Pod => "a pod of this node",
            From::Host => "this host",
            From::Network | From::Auto => "nobody on this node",
        };
        let text = format!(
            "{} belongs to {owner}: such a packet is a forged one",
            flow.src.ip
        );
        reader.story.tell("packet", text);
    }
    if reader.view.held.config == ebpf_abi::Config::default() {
        reader
            .story
            .tell("config", "the node's configuration is not written");
    }
}

/// What `connect` does before there is any packet; `Some` if it is refused. Otherwise the flow goes to the backend.
fn at_socket(
    reader: &Reader<'_>,
    attached: &[String],
    caller: &Socket,
    flow: &mut Flow,
) -> Option<String> {
    let program = match flow.dst.ip {
        IpAddr::V4(_) => Program::Connect4,
        IpAddr::V6(_) => Program::Connect6,
    };
    if !attached.iter().any(|link| link == program.name()) {
        reader.story.tell(
            "socket",
            format!("{program} is not attached: every packet is translated"),
        );
        return None;
    }
    fn ask<A: Family>(reader: &Reader<'_>, caller: &Socket, flow: &mut Flow) -> Option<String> {
        let port_be = flow.dst.port.unwrap_or(0).to_be();
        match connect::<A, _>(reader, caller, A::from_ip(flow.dst.ip)?, port_be) {
            Connect::Unchanged => None,
            Connect::Refused => {
                Some("connect() fails at once: the service has no backend (ECONNREFUSED)".into())
            }
            Connect::Backend(origin) => {
                flow.dst.ip = origin.backend_addr.to_ip();
                flow.dst.port = Some(u16::from_be(origin.backend_port_be));
                let backend = SocketAddr::new(flow.dst.ip, u16::from_be(origin.backend_port_be));
                let text = format!(
                    "connect() leads to {backend}; its packets need no translation, getpeername() answers {}",
                    words::socket(
                        origin.frontend_addr.to_ip(),
                        u16::from_be(origin.frontend_port_be)
                    )
                );
                reader.story.tell("socket", text);
                None
            }
        }
    }
    match flow.dst.ip {
        IpAddr::V4(_) => ask::<Addr4>(reader, caller, flow),
        IpAddr::V6(_) => ask::<Addr6>(reader, caller, flow),
    }
}

/// The described socket, by its network namespace. A pod's is not known here, so that its affinity is not found.
struct Socket {
    netns_cookie: u64,
}

impl Socket {
    fn of(from: From, view: &View) -> Self {
        let netns_cookie = match from {
            From::Host => view.held.config.host_netns_cookie,
            From::Pod | From::Network | From::Auto => 0,
        };
        Self { netns_cookie }
    }
}

impl Caller for Socket {
    fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }
}

fn in_words(verdict: Verdict, view: &View) -> (&'static str, Option<&'static str>, String) {
    match verdict {
        Verdict::Pass => ("pass", None, "left to the host's stack, unchanged".into()),
        Verdict::Drop(reason) => {
            let label = reason.label();
            ("drop", Some(label), format!("dropped, counted as {label}"))
        }
        Verdict::DeliverToPod { ifindex } => (
            "deliverToPod",
            None,
            format!("delivered to the pod behind {}", interface(ifindex)),
        ),
        Verdict::ToHost => (
            "toHost",
            None,
            "delivered to this host by its own interface".into(),
        ),
        Verdict::ToNetwork { next_hop_peer } => {
            let uplink = interface(view.held.config.uplink_ifindex);
            let hop = match view.held.peers.get(&next_hop_peer) {
                Some(peer) if next_hop_peer != 0 => {
                    format!("; the next hop is peer {next_hop_peer}, {}", describe(peer))
                }
                _ => String::new(),
            };
            ("toNetwork", None, format!("sent out of {uplink}{hop}"))
        }
        Verdict::ToDevice { ifindex } => {
            let by = interface(ifindex);
            let mut peers = view.held.peers.values();
            let text = if peers.any(|peer| peer.device_ifindex == ifindex) {
                format!("encapsulated and sent by {by}")
            } else {
                format!("delivered to the pod behind {by}, at the pace of its limit")
            };
            ("toDevice", None, text)
        }
        Verdict::Reflect => ("reflect", None, "answered to its sender".into()),
        Verdict::Transmit { ifindex } => (
            "transmit",
            None,
            format!("sent out of {} by the device itself", interface(ifindex)),
        ),
    }
}

fn name(from: From) -> &'static str {
    match from {
        From::Pod => "pod",
        From::Host => "host",
        From::Network | From::Auto => "network",
    }
}

impl Report for Trace {
    fn sections(&self) -> Vec<Section> {
        let steps = self
            .steps
            .iter()
            .map(|line| vec![line.at.to_owned(), line.says.clone()]);
        let mut end = vec![vec!["verdict".to_owned(), self.says.clone()]];
        if let Some(becomes) = &self.becomes {
            end.push(vec!["packet".into(), becomes.clone()]);
        }
        let heading = format!("{} from {}", self.packet, self.from);
        vec![
            Section::new(&[], steps.collect()).headed(heading),
            Section::new(&[], end),
        ]
    }
}
