//! `fairlead overlay routes`.

use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;
use node_agent_maps::Maps;
use serde::Serialize;

use super::Overlay;
use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
pub struct Routes {
    pub routes: Vec<Route>,
}

/// Where packets to a subnet go.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub subnet: IpNetwork,
    pub node: String,
    pub mode: &'static str,
    pub underlay: IpAddr,
    /// Whether the underlay address itself is the next hop; else the kernel's routes say it.
    pub on_link: bool,
    pub mtu: u32,
}

/// # Errors
///
/// When a map cannot be read.
pub fn read(maps: &Maps) -> Result<Routes> {
    let mut routes = Vec::new();
    for peer in Overlay::read(maps)?.peers {
        routes.extend(peer.subnets.iter().map(|subnet| Route {
            subnet: *subnet,
            node: peer.label(),
            mode: peer.mode_word(),
            underlay: peer.underlay,
            on_link: peer.is_on_link(),
            mtu: peer.mtu,
        }));
    }
    routes.sort_by_key(|route| route.subnet);
    Ok(Routes { routes })
}

impl Report for Routes {
    fn sections(&self) -> Vec<Section> {
        if self.routes.is_empty() {
            return vec![Section::default().headed("this node has no routes to other nodes")];
        }
        let row = |route: &Route| {
            let next_hop = if route.on_link {
                route.underlay.to_string()
            } else {
                format!("by the kernel's route to {}", route.underlay)
            };
            vec![
                route.subnet.to_string(),
                route.node.clone(),
                route.mode.into(),
                next_hop,
                route.mtu.to_string(),
            ]
        };
        const COLUMNS: &[&str] = &["SUBNET", "NODE", "MODE", "NEXT HOP", "MTU"];
        vec![Section::new(COLUMNS, self.routes.iter().map(row).collect())]
    }
}
