//! `fairlead overlay`: the other nodes as the maps know them, and whether a packet gets there and back.

mod echo;
mod mtu;
mod peers;
mod probe;
mod routes;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow};
use ebpf_abi::{Addr4, Addr6, Config, Family, PeerCount, peer_mode};
use ipnetwork::IpNetwork;
use node_agent_maps::Maps;
use node_agent_model::{MapFamily, MapSink, Snapshot};

pub use mtu::read as mtu;
pub use peers::read as peers;
pub use probe::{Options as ProbeOptions, run as probe};
pub use routes::read as routes;

/// What the maps hold of the overlay.
struct Overlay {
    config: Config,
    /// By their names.
    peers: Vec<Peer>,
}

/// A way to another node; with plain routing of both families a node has two.
#[derive(Clone, Debug)]
struct Peer {
    id: u32,
    /// The holder of its lease; `None` where the map of names does not hold the id.
    name: Option<String>,
    underlay: IpAddr,
    mode: u8,
    /// Bytes in front of an inner packet.
    overhead: u16,
    /// Largest inner packet, in bytes.
    mtu: u32,
    subnets: Vec<IpNetwork>,
    count: PeerCount,
}

impl Overlay {
    fn read(maps: &Maps) -> Result<Self> {
        let held = maps.snapshot().context("reading the peers")?;
        let mut peers = Vec::new();
        for (&id, peer) in &held.peers {
            if peer.mode == peer_mode::NONE {
                continue;
            }
            let name = held.peer_names.get(&id).map(|name| name.name().to_owned());
            let mut subnets = subnets_of::<Addr4>(&held, id);
            subnets.extend(subnets_of::<Addr6>(&held, id));
            peers.push(Peer {
                id,
                name,
                underlay: address(peer),
                mode: peer.mode,
                overhead: peer.header_len,
                mtu: peer.mtu,
                subnets,
                count: maps.peer_count(id).context("reading the counters")?,
            });
        }
        peers.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(Self {
            config: held.config,
            peers,
        })
    }

    /// The peer with this name, underlay address, or an address in its subnets. Of a node's two ways the first.
    fn find(&self, wanted: &str) -> Result<&Peer> {
        let ip: Option<IpAddr> = wanted.parse().ok();
        let has = |peer: &&Peer| {
            let holds = |ip| peer.underlay == ip || peer.subnets.iter().any(|net| net.contains(ip));
            peer.name.as_deref() == Some(wanted) || ip.is_some_and(holds)
        };
        self.peers.iter().find(has).ok_or_else(|| {
            let names: Vec<&str> = self.peers.iter().filter_map(|peer| peer.name.as_deref()).collect();
            anyhow!(
                "{wanted} is no peer of this node: it has no lease, its lease cannot be used (the agent's log says why), \
                 or it is this node; peers are {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            )
        })
    }
}

impl Peer {
    /// Its name, or what can be said without one.
    fn label(&self) -> String {
        let unnamed = || format!("(peer id {})", self.id);
        self.name.clone().unwrap_or_else(unnamed)
    }

    fn is_direct(&self) -> bool {
        self.mode == peer_mode::DIRECT
    }

    /// How packets go there.
    fn mode_word(&self) -> &'static str {
        match self.mode {
            peer_mode::VXLAN | peer_mode::VXLAN_ON_LINK => "vxlan",
            peer_mode::UDP | peer_mode::UDP_ON_LINK => "udp",
            peer_mode::DIRECT => "direct",
            peer_mode::DEVICE => "vxlan-device",
            _ => "unknown",
        }
    }

    fn is_on_link(&self) -> bool {
        matches!(
            self.mode,
            peer_mode::DIRECT | peer_mode::VXLAN_ON_LINK | peer_mode::UDP_ON_LINK
        )
    }
}

fn subnets_of<A: MapFamily>(held: &Snapshot, peer_id: u32) -> Vec<IpNetwork> {
    let routes = A::half(held).routes.iter();
    routes
        .filter(|(_, route)| route.peer_id == peer_id)
        .filter_map(|(key, _)| {
            IpNetwork::new(key.addr.to_ip(), u8::try_from(key.prefix_len).ok()?).ok()
        })
        .collect()
}

fn address(peer: &ebpf_abi::Peer) -> IpAddr {
    let bytes = peer.underlay_addr;
    if peer.underlay_family == Family::V6 as u8 {
        Ipv6Addr::from(bytes).into()
    } else {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    }
}
