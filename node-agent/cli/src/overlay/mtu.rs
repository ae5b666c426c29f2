//! `fairlead overlay mtu`: what each way carries, and why.

use anyhow::Result;
use node_agent_maps::Maps;
use serde::Serialize;

use super::Overlay;
use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mtu {
    /// Of the uplink, in bytes, as the programs know it.
    pub uplink: u32,
    /// The largest packet of a pod that reaches every peer; the uplink's where there is no peer.
    pub pods: u32,
    pub peers: Vec<Way>,
}

#[derive(Debug, Serialize)]
pub struct Way {
    pub node: String,
    pub mode: &'static str,
    /// Bytes in front of a pod's packet.
    pub overhead: u16,
    pub mtu: u32,
}

/// # Errors
///
/// When a map cannot be read.
pub fn read(maps: &Maps) -> Result<Mtu> {
    let overlay = Overlay::read(maps)?;
    let uplink = overlay.config.uplink_mtu;
    let peers: Vec<Way> = overlay
        .peers
        .iter()
        .map(|peer| Way {
            node: peer.label(),
            mode: peer.mode_word(),
            overhead: peer.overhead,
            mtu: peer.mtu,
        })
        .collect();
    Ok(Mtu {
        uplink,
        pods: peers.iter().map(|way| way.mtu).min().unwrap_or(uplink),
        peers,
    })
}

impl Report for Mtu {
    fn sections(&self) -> Vec<Section> {
        let row = |way: &Way| {
            vec![
                way.node.clone(),
                way.mode.into(),
                way.overhead.to_string(),
                way.mtu.to_string(),
            ]
        };
        const COLUMNS: &[&str] = &["NODE", "MODE", "OVERHEAD", "MTU"];
        let heading = format!(
            "the uplink carries {} bytes, and a pod's packets of up to {} reach every peer",
            self.uplink, self.pods
        );
        vec![Section::new(COLUMNS, self.peers.iter().map(row).collect()).headed(heading)]
    }
}
