//! `fairlead overlay probe NODE`: echo requests through the overlay to the peer's own address among its pods, which its
//! kernel answers, and what the counters on the way say: at which hop it dies.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ebpf_abi::{Counter, PeerCount};
use node_agent_host::PodCidr;
use node_agent_maps::Maps;
use serde::Serialize;

use super::{Overlay, Peer, echo::Echo};
use crate::output::{Report, Section};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of the node, its address on the underlay, or any address in its subnets.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Packets of each size.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// How long to wait for each answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub timeout: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    pub node: String,
    pub underlay: IpAddr,
    /// What was asked: the node's own address among its pods.
    pub gateway: IpAddr,
    pub reached: bool,
    /// In the order in which a packet meets them.
    pub hops: Vec<Hop>,
}

#[derive(Debug, Serialize)]
pub struct Hop {
    pub hop: &'static str,
    pub state: State,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// It dies here, as far as can be known from this node.
    Dead,
    /// Not as it should be, and no proof either.
    Doubtful,
}

/// Bytes of the small packets.
const SMALL: usize = 84;

/// # Errors
///
/// When the node is no peer, a map cannot be read, or the right to raw sockets is missing.
pub fn run(maps: &Maps, options: &Options) -> Result<Probe> {
    let overlay = Overlay::read(maps)?;
    let peer = overlay.find(&options.node)?;
    let Some(subnet) = peer.subnets.first() else {
        bail!("{} has no subnet on this node yet", peer.label());
    };
    let gateway = PodCidr::new(*subnet)
        .with_context(|| format!("the subnet of {}", peer.label()))?
        .gateway();
    let mut probe = Probe {
        node: peer.label(),
        underlay: peer.underlay,
        gateway,
        reached: false,
        hops: vec![Hop::good(
            "peer",
            format!(
                "{subnet} leads to {} by {}",
                peer.underlay,
                peer.mode_word()
            ),
        )],
    };
    let by_underlay = probe.underlay(peer, options)?;
    for (name, size) in [
        ("small packets", SMALL),
        ("packets of the full MTU", peer.mtu as usize),
    ] {
        let tried = Tried::at(maps, peer, gateway, size, options)?;
        let dead = probe.judge(name, &tried, peer, by_underlay);
        if dead {
            return Ok(probe);
        }
    }
    probe.reached = true;
    Ok(probe)
}

impl Probe {
    /// Whether the peer answers on the underlay itself.
    fn underlay(&mut self, peer: &Peer, options: &Options) -> Result<bool> {
        let hop = "underlay";
        let any: IpAddr = match peer.underlay {
            IpAddr::V4(_) => [0, 0, 0, 0].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let source = UdpSocket::bind((any, 0)).and_then(|socket| {
            // Connecting sends nothing: it looks for the route.
            socket.connect(SocketAddr::new(peer.underlay, 9))?;
            socket.local_addr()
        });
        let source = match source {
            Ok(source) => source.ip(),
            Err(error) => {
                let detail = format!("no route to {}: {error}", peer.underlay);
                self.hops.push(Hop::dead(hop, detail));
                return Ok(false);
            }
        };
        let echo =
            Echo::to(peer.underlay).context("asking the underlay (raw sockets need root)")?;
        let answers = ask(&echo, SMALL, options);
        let best = answers.iter().flatten().min();
        self.hops.push(match best {
            Some(best) => Hop::good(
                hop,
                format!("{source} -> {}: answered after {best:?}", peer.underlay),
            ),
            None => Hop::doubtful(
                hop,
                format!(
                    "{source} -> {}: no answer to ping; it is down, or something filters ICMP",
                    peer.underlay
                ),
            ),
        });
        Ok(best.is_some())
    }

    /// Adds the hops of one size; true if it dies there.
    fn judge(&mut self, name: &str, tried: &Tried, peer: &Peer, by_underlay: bool) -> bool {
        let Tried {
            asked, answered, ..
        } = *tried;
        let what = format!("{asked} {name} ({} bytes)", tried.size);
        if tried.sent < u64::from(asked) {
            let reason = tried.dropped_here().unwrap_or_else(|| {
                format!(
                    "the kernel's route to {} does not lead into fairlead0, or its program is not attached: see \
                     `ip route get {}` and `fairlead status`",
                    self.gateway, self.gateway
                )
            });
            let detail = format!("{what}: {} left this node; {reason}", tried.sent);
            self.hops.push(Hop::dead("encapsulation", detail));
            return true;
        }
        self.hops.push(Hop::good(
            "encapsulation",
            format!(
                "{what}: all left by {} to {}",
                peer.mode_word(),
                peer.underlay
            ),
        ));
        if answered == asked {
            let best = tried.best.unwrap_or_default();
            self.hops.push(Hop::good(
                "answer",
                format!(
                    "all answered by {}, the fastest after {best:?}",
                    self.gateway
                ),
            ));
            return false;
        }
        let lost = format!("{} of {asked} were not answered", asked - answered);
        let (hop, reason) = if answered > 0 {
            ("answer", "packets are lost on the way or back".to_owned())
        } else if !peer.is_direct() && tried.received > 0 {
            (
                "answer",
                format!(
                    "{} packets of the peer arrived and no answer of them reached a socket{}",
                    tried.received,
                    tried
                        .dropped_here()
                        .map(|why| format!("; {why}"))
                        .unwrap_or_default()
                ),
            )
        } else if tried.size > SMALL {
            (
                "underlay",
                format!(
                    "smaller ones were: the underlay does not carry {} bytes, look at the MTU of its links",
                    tried.size + usize::from(peer.overhead)
                ),
            )
        } else if !by_underlay {
            (
                "underlay",
                format!("{} is not reached at all", peer.underlay),
            )
        } else {
            (
                "peer's answer",
                format!(
                    "{} itself is reached: no agent's programs are at work there, it has another backend, port or VNI, \
                     something filters UDP between the nodes, or this node is no peer to it{}",
                    peer.underlay,
                    tried
                        .dropped_here()
                        .map(|why| format!("; {why}"))
                        .unwrap_or_default()
                ),
            )
        };
        self.hops.push(Hop::dead(hop, format!("{lost}: {reason}")));
        true
    }
}

/// What became of the packets of one size.
struct Tried {
    size: usize,
    asked: u16,
    answered: u16,
    best: Option<Duration>,
    /// What the peer's counters rose by meanwhile; other traffic is among it.
    sent: u64,
    received: u64,
    dropped: BTreeMap<&'static str, u64>,
}

impl Tried {
    fn at(
        maps: &Maps,
        peer: &Peer,
        gateway: IpAddr,
        size: usize,
        options: &Options,
    ) -> Result<Self> {
        let echo = Echo::to(gateway).with_context(|| {
            format!("asking {gateway} (raw sockets need root, and the host needs a route there)")
        })?;
        let before = Counts::read(maps, peer)?;
        let answers = ask(&echo, size, options);
        let after = Counts::read(maps, peer)?;
        let rise = |of: fn(&PeerCount) -> Counter| {
            of(&after.peer)
                .packets
                .saturating_sub(of(&before.peer).packets)
        };
        let dropped = after.drops.iter().filter_map(|(reason, count)| {
            let before = before.drops.get(reason).copied().unwrap_or(0);
            (*count > before).then_some((*reason, count - before))
        });
        Ok(Self {
            size,
            asked: options.count,
            answered: answers.iter().flatten().count() as u16,
            best: answers.iter().flatten().min().copied(),
            sent: rise(|count| count.sent),
            received: rise(|count| count.received),
            dropped: dropped.collect(),
        })
    }

    /// What this node dropped meanwhile, in words.
    fn dropped_here(&self) -> Option<String> {
        let drops: Vec<String> = self
            .dropped
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        (!drops.is_empty()).then(|| format!("this node dropped meanwhile: {}", drops.join(", ")))
    }
}

struct Counts {
    peer: PeerCount,
    drops: BTreeMap<&'static str, u64>,
}

impl Counts {
    fn read(maps: &Maps, peer: &Peer) -> Result<Self> {
        let drops = maps.drops().context("reading the drops")?;
        let drops = drops.into_iter();
        Ok(Self {
            peer: maps.peer_count(peer.id).context("reading the counters")?,
            drops: drops
                .map(|(reason, counter)| (reason.label(), counter.packets))
                .collect(),
        })
    }
}

/// How long each answer took. What cannot be sent has none, and the counters show that it did not leave.
fn ask(echo: &Echo, size: usize, options: &Options) -> Vec<Option<Duration>> {
    let patience = Duration::from_millis(options.timeout);
    (0..options.count)
        .map(|number| echo.ask(number, size, patience).unwrap_or(None))
        .collect()
}

impl Hop {
    fn good(hop: &'static str, detail: String) -> Self {
        let state = State::Good;
        Self { hop, state, detail }
    }

    fn dead(hop: &'static str, detail: String) -> Self {
        let state = State::Dead;
        Self { hop, state, detail }
    }

    fn doubtful(hop: &'static str, detail: String) -> Self {
        let state = State::Doubtful;
        Self { hop, state, detail }
    }
}

impl Report for Probe {
    fn sections(&self) -> Vec<Section> {
        let row = |hop: &Hop| {
            let state = match hop.state {
                State::Good => "good",
                State::Dead => "dead",
                State::Doubtful => "doubtful",
            };
            vec![hop.hop.into(), state.into(), hop.detail.clone()]
        };
        let heading = match self.reached {
            true => format!("{} is reached through the overlay", self.node),
            false => format!("{} is not reached through the overlay", self.node),
        };
        const COLUMNS: &[&str] = &["HOP", "STATE", "DETAIL"];
        vec![Section::new(COLUMNS, self.hops.iter().map(row).collect()).headed(heading)]
    }
}
