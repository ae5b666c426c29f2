//! What can fail while the node's network is read or changed.

use std::{io, net::IpAddr, path::PathBuf};

use crate::{MacAddr, SysctlError};

/// An operation on the node's network that failed. The kernel's reason is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("open the netlink socket")]
    Connect(#[source] io::Error),
    #[error("netlink: {operation}")]
    Netlink {
        operation: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("namespace {path}: {operation}")]
    Namespace {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the thread for namespace {path} ended before its work was done")]
    NamespaceThread { path: PathBuf },
    #[error("set a kernel parameter")]
    Sysctl(#[from] SysctlError),
    #[error("no interface is named {name}")]
    NoInterface { name: String },
    #[error("no default route: name the interface towards the other nodes with --uplink")]
    NoDefaultRoute,
    #[error("interface {name} has no Ethernet address")]
    NoMac { name: String },
    #[error("interface {name} has no IPv4 and no IPv6 address of global scope")]
    NoAddress { name: String },
    #[error(
        "interface {name} exists and is no device of ours (its MAC is {mac}): remove or rename it"
    )]
    NotOurs { name: String, mac: MacAddr },
    #[error(
        "something else has UDP port {port}, or is a VXLAN device with VNI {vni}: remove it (flannel's are \
         flannel.{vni} and flannel-v6.{vni}), or choose another --overlay-port or --vni on every node"
    )]
    PortTaken { port: u16, vni: u32 },
    #[error("no gateway for {address}: the host device has no address of that family")]
    NoGateway { address: IpAddr },
    #[error("no gateway for {prefix}: the host device has no address of that family")]
    NoGatewayForPrefix { prefix: ipnetwork::IpNetwork },
}
