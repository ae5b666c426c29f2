//! The network that the nodes stand on: a bridge in a namespace of its own, and a cable to each.
//!
//! The bridge is not in the root namespace, where a firewall of the machine (Docker's own FORWARD
//! policy with br_netfilter, for instance) would see and drop what one node sends to another.

use anyhow::Result;

use super::place::{self, Place};
use crate::command::Run;

const BRIDGE: &str = "fairlead-br0";

pub fn make(nodes: u8) -> Result<()> {
    ip(&["netns", "add", place::UNDERLAY_NAMESPACE])?;
    in_underlay(&["link", "set", "lo", "up"])?;
    // Without snooping the bridge floods multicast, as neighbour discovery needs at once.
    in_underlay(&[
        "link",
        "add",
        BRIDGE,
        "type",
        "bridge",
        "mcast_snooping",
        "0",
        "stp_state",
        "0",
        "forward_delay",
        "0",
    ])?;
    in_underlay(&["link", "set", BRIDGE, "up"])?;
    connect_root()?;
    for place in place::nodes(nodes).chain([Place::Outside]) {
        connect(&place)?;
    }
    Ok(())
}

fn connect_root() -> Result<()> {
    ip(&[
        "link",
        "add",
        place::ROOT_LINK,
        "type",
        "veth",
        "peer",
        "name",
        "root",
        "netns",
        place::UNDERLAY_NAMESPACE,
    ])?;
    in_underlay(&["link", "set", "root", "master", BRIDGE, "up"])?;
    ip(&[
        "address",
        "add",
        &format!("{}/24", place::ROOT_IPV4),
        "dev",
        place::ROOT_LINK,
    ])?;
    ip(&[
        "address",
        "add",
        &format!("{}/64", place::ROOT_IPV6),
        "dev",
        place::ROOT_LINK,
        "nodad",
    ])?;
    ip(&["link", "set", place::ROOT_LINK, "up"])
}

fn connect(place: &Place) -> Result<()> {
    let Some(namespace) = place.namespace() else {
        return Ok(());
    };
    let (ipv4, ipv6) = place.addresses();
    let port = place.name();
    ip(&["netns", "add", &namespace])?;
    in_underlay(&[
        "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
    ])?;
    in_underlay(&["link", "set", &port, "master", BRIDGE, "up"])?;
    let inside = |arguments: &[&str]| ip(&[&["-n", namespace.as_str()], arguments].concat());
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "add", &format!("{ipv4}/24"), "dev", "eth0"])?;
    inside(&[
        "address",
        "add",
        &format!("{ipv6}/64"),
        "dev",
        "eth0",
        "nodad",
    ])?;
    inside(&["link", "set", "eth0", "up"])
}

fn in_underlay(arguments: &[&str]) -> Result<()> {
    ip(&[&["-n", place::UNDERLAY_NAMESPACE], arguments].concat())
}

fn ip(arguments: &[&str]) -> Result<()> {
    Run::new("ip").args(arguments).text().map(drop)
}
