//! `fairlead overlay peers`.

use std::net::IpAddr;

use anyhow::Result;
use ebpf_abi::Counter;
use ipnetwork::IpNetwork;
use node_agent_maps::Maps;
use serde::Serialize;

use super::Overlay;
use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
pub struct Peers {
    pub peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub name: String,
    pub id: u32,
    pub underlay: IpAddr,
    pub mode: &'static str,
    pub on_link: bool,
    pub subnets: Vec<IpNetwork>,
    pub sent: Traffic,
    pub received: Traffic,
    pub dropped: Traffic,
}

#[derive(Debug, Serialize)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// # Errors
///
/// When a map cannot be read.
pub fn read(maps: &Maps) -> Result<Peers> {
    let peers = Overlay::read(maps)?.peers.into_iter().map(|peer| Peer {
        name: peer.label(),
        id: peer.id,
        underlay: peer.underlay,
        mode: peer.mode_word(),
        on_link: peer.is_on_link(),
        sent: peer.count.sent.into(),
        received: peer.count.received.into(),
        dropped: peer.count.dropped.into(),
        subnets: peer.subnets,
    });
    Ok(Peers {
        peers: peers.collect(),
    })
}

impl From<Counter> for Traffic {
    fn from(counter: Counter) -> Self {
        Self {
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

impl Report for Peers {
    fn sections(&self) -> Vec<Section> {
        if self.peers.is_empty() {
            return vec![Section::default().headed("this node has no peers")];
        }
        let row = |peer: &Peer| {
            let subnets: Vec<String> = peer.subnets.iter().map(ToString::to_string).collect();
            vec![
                peer.name.clone(),
                peer.underlay.to_string(),
                peer.mode.into(),
                subnets.join(","),
                peer.sent.packets.to_string(),
                peer.sent.bytes.to_string(),
                peer.received.packets.to_string(),
                peer.received.bytes.to_string(),
                peer.dropped.packets.to_string(),
            ]
        };
        const COLUMNS: &[&str] = &[
            "NODE", "UNDERLAY", "MODE", "SUBNETS", "SENT", "BYTES", "RECEIVED", "BYTES", "DROPPED",
        ];
        vec![Section::new(COLUMNS, self.peers.iter().map(row).collect())]
    }
}
