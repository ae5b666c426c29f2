//! A cell: two nodes, a client pod and two backend pods in namespaces of their own, with the same addresses in every
//! cell, joined by the kernel's routing or by its vxlan device in flannel's shape.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::process::Process;
use crate::tun_proxy;

/// The client, on node 1.
pub const CLIENT: PodAddress = PodAddress { node: 1, number: 1 };
/// The backend beside the client.
pub const SAME_NODE: PodAddress = PodAddress { node: 1, number: 2 };
/// The backend on the other node.
pub const OTHER_NODE: PodAddress = PodAddress { node: 2, number: 1 };

/// MTU of the underlay, bytes.
pub const UNDERLAY_MTU: u32 = 1500;
/// What VXLAN over IPv4 takes: Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348 section 5).
pub const VXLAN_OVERHEAD: u32 = 50;

/// Addresses of pods on node 2, in a cell that has many.
pub const MANY_PODS: &str = "10.250.0.0/16";
/// What the UDP backend leaves: IPv4 20, UDP 8.
const UDP_MTU: u32 = UNDERLAY_MTU - 28;

/// How packets get from pod to pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Underlay {
    /// The kernel routes to the other node's address.
    Routing,
    /// The kernel's vxlan device, set up as flannel does: one static neighbour, one FDB entry, one route a node.
    KernelVxlan,
    /// Our programs encapsulate: the pods have the overlay's MTU and the kernel has no route to the other node's pods.
    Overlay,
    /// Ours in flannel's `udp` format, whose headers are shorter.
    UdpOverlay,
    /// Packets go by a TUN device to a process that sends them on by UDP, as flannel's `udp` backend does.
    TunProxy,
}

/// Which pod: node and number on the node give its addresses and device names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PodAddress {
    pub node: u8,
    pub number: u8,
}

/// Two nodes and three pods.
#[derive(Debug)]
pub struct Cell {
    /// Ended first: before their namespaces go.
    processes: Vec<Process>,
    pub underlay: Underlay,
    /// Whether rules of netfilter lie on the nodes, so that connections are tracked.
    pub netfilter: bool,
    pub nodes: [Netns; 2],
    pub client: Netns,
    pub same_node: Netns,
    pub other_node: Netns,
}

impl PodAddress {
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.node, 10 + self.number)
    }

    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x244,
            u16::from(self.node),
            0,
            0,
            0,
            0,
            10 + u16::from(self.number),
        )
    }

    pub fn ips(self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// The device at the host side.
    pub fn host_device(self) -> String {
        format!("v{}{}", self.node, self.number)
    }

    pub fn host_mac(self) -> [u8; 6] {
        [2, 0xaa, 0, 0, self.node, self.number]
    }

    pub fn pod_mac(self) -> [u8; 6] {
        [2, 0xbb, 0, 0, self.node, self.number]
    }
}

impl Cell {
    /// Builds the cell and starts the servers of its backends.
    pub fn new(underlay: Underlay) -> Result<Self> {
        Self::listening(underlay, &OTHER_NODE.ips())
    }

    /// A cell by [`Underlay::Routing`] whose pod on the other node answers on every address of [`MANY_PODS`] too.
    pub fn with_many_pods() -> Result<Self> {
        let any = [Ipv4Addr::UNSPECIFIED.into(), OTHER_NODE.v6().into()];
        let cell = Self::listening(Underlay::Routing, &any)?;
        cell.other_node
            .ip(&format!("route add local {MANY_PODS} dev lo"))?;
        let (pod, device) = (OTHER_NODE.v4(), OTHER_NODE.host_device());
        cell.node(2).ip(&format!(
            "route add {MANY_PODS} via {pod} dev {device} onlink"
        ))?;
        cell.node(1)
            .ip(&format!("route add {MANY_PODS} via {}", node_v4(2)))?;
        Ok(cell)
    }

    fn listening(underlay: Underlay, other_node: &[IpAddr]) -> Result<Self> {
        let mut cell = Self::apart(underlay)?;
        match underlay {
            Underlay::Routing => cell.add_routes()?,
            Underlay::KernelVxlan => cell.add_vxlan()?,
            Underlay::Overlay | Underlay::UdpOverlay => {}
            Underlay::TunProxy => cell.add_tun_proxies()?,
        }
        cell.serve(other_node)?;
        Ok(cell)
    }

    /// Nodes that reach each other, and pods of which none is reached from the other node yet.
    pub fn apart(underlay: Underlay) -> Result<Self> {
        let cell = Self {
            processes: Vec::new(),
            underlay,
            netfilter: false,
            nodes: [node()?, node()?],
            client: pod()?,
            same_node: pod()?,
            other_node: pod()?,
        };
        cell.connect_nodes().context("connect the nodes")?;
        for (address, netns) in cell.pods() {
            cell.connect_pod(address, netns, underlay)
                .with_context(|| format!("connect the pod {}", address.v4()))?;
        }
        Ok(cell)
    }

    /// Starts the servers of the backends; the one on the other node has these addresses.
    pub fn serve(&mut self, other_node: &[IpAddr]) -> Result<()> {
        for (netns, ips) in [
            (&self.same_node, &SAME_NODE.ips()[..]),
            (&self.other_node, other_node),
        ] {
            let ips = ips.iter().map(IpAddr::to_string);
            let arguments: Vec<String> = ["serve".to_owned()].into_iter().chain(ips).collect();
            let server = Process::start(netns, &arguments)?;
            self.processes.push(server);
        }
        Ok(())
    }

    /// Ends with the cell from now on.
    pub fn keep(&mut self, process: Process) {
        self.processes.push(process);
    }

    pub fn pods(&self) -> [(PodAddress, &Netns); 3] {
        [
            (CLIENT, &self.client),
            (SAME_NODE, &self.same_node),
            (OTHER_NODE, &self.other_node),
        ]
    }

    /// The namespace of node 1 or 2.
    pub fn node(&self, number: u8) -> &Netns {
        &self.nodes[usize::from(number) - 1]
    }

    fn connect_nodes(&self) -> Result<()> {
        self.nodes[0].ip(&format!(
            "link add uplink mtu {UNDERLAY_MTU} address {} type veth peer name uplink mtu {UNDERLAY_MTU} address {} netns {}",
            mac(uplink_mac(1)),
            mac(uplink_mac(2)),
            self.nodes[1].path()
        ))?;
        for (here, there) in [(1, 2), (2, 1)] {
            let node = self.node(here);
            node.ip(&format!(
                "addr add {}/24 dev uplink\n\
                 addr add {}/64 dev uplink nodad\n\
                 link set uplink up\n\
                 neigh replace {} lladdr {} dev uplink nud permanent\n\
                 neigh replace {} lladdr {} dev uplink nud permanent",
                node_v4(here),
                node_v6(here),
                node_v4(there),
                mac(uplink_mac(there)),
                node_v6(there),
                mac(uplink_mac(there)),
            ))?;
        }
        Ok(())
    }

    /// A veth without a bridge; the pod's gateway is a link-local address with a static neighbour entry.
    fn connect_pod(&self, address: PodAddress, pod: &Netns, underlay: Underlay) -> Result<()> {
        let mtu = match underlay {
            Underlay::Routing => UNDERLAY_MTU,
            Underlay::KernelVxlan | Underlay::Overlay => UNDERLAY_MTU - VXLAN_OVERHEAD,
            Underlay::UdpOverlay | Underlay::TunProxy => UDP_MTU,
        };
        let (device, v4, v6) = (address.host_device(), address.v4(), address.v6());
        let (host_mac, pod_mac) = (mac(address.host_mac()), mac(address.pod_mac()));
        let node = self.node(address.node);
        node.ip(&format!(
            "link add {device} mtu {mtu} address {host_mac} type veth peer name eth0 mtu {mtu} address {pod_mac} netns {}\n\
             link set {device} up",
            pod.path()
        ))?;
        pod.ip(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             neigh replace 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent\n\
             neigh replace fe80::1 lladdr {host_mac} dev eth0 nud permanent\n\
             route add default via 169.254.1.1 dev eth0 onlink\n\
             route add default via fe80::1 dev eth0 src {v6}"
        ))?;
        node.ip(&format!(
            "route add {v4}/32 dev {device}\n\
             route add {v6}/128 dev {device}\n\
             neigh replace {v4} lladdr {pod_mac} dev {device} nud permanent\n\
             neigh replace {v6} lladdr {pod_mac} dev {device} nud permanent"
        ))
    }

    fn add_routes(&self) -> Result<()> {
        for (here, there) in [(1, 2), (2, 1)] {
            self.node(here).ip(&format!(
                "route add {} via {} dev uplink\nroute add {} via {} dev uplink",
                pod_cidr_v4(there),
                node_v4(there),
                pod_cidr_v6(there),
                node_v6(there)
            ))?;
        }
        Ok(())
    }

    /// What flannel's vxlan backend programs for each lease: neighbour, FDB entry, route (pkg/backend/vxlan).
    fn add_vxlan(&self) -> Result<()> {
        for (here, there) in [(1, 2), (2, 1)] {
            let node = self.node(here);
            let mtu = UNDERLAY_MTU - VXLAN_OVERHEAD;
            let gateway = Ipv4Addr::new(10, 244, there, 0);
            let gateway_mac = mac(vtep_mac(there));
            node.ip(&format!(
                "link add flannel.1 mtu {mtu} address {} type vxlan id 1 dstport 8472 local {} dev uplink nolearning\n\
                 addr add 10.244.{here}.0/32 dev flannel.1\n\
                 link set flannel.1 up\n\
                 neigh replace {gateway} lladdr {gateway_mac} dev flannel.1 nud permanent",
                mac(vtep_mac(here)),
                node_v4(here)
            ))?;
            node.bridge(&format!(
                "fdb add {gateway_mac} dev flannel.1 dst {} self permanent",
                node_v4(there)
            ))?;
            node.ip(&format!(
                "route add {} via {gateway} dev flannel.1 onlink",
                pod_cidr_v4(there)
            ))?;
        }
        Ok(())
    }

    /// One proxy a node; the route to all pods leads into its device.
    fn add_tun_proxies(&mut self) -> Result<()> {
        for (here, there) in [(1, 2), (2, 1)] {
            let arguments = ["tun-proxy".to_owned()]
                .into_iter()
                .chain([node_v4(here), node_v4(there)].map(|ip| ip.to_string()))
                .collect::<Vec<_>>();
            let node = &self.nodes[usize::from(here) - 1];
            let proxy = Process::start(node, &arguments)?;
            let device = tun_proxy::DEVICE;
            node.ip(&format!(
                "addr add 10.244.{here}.0/32 dev {device}\n\
                 link set {device} mtu {UDP_MTU} up\n\
                 route add 10.244.0.0/16 dev {device}"
            ))?;
            self.processes.push(proxy);
        }
        Ok(())
    }
}

/// Address number `index` of [`MANY_PODS`].
pub fn many_pods(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 250, 0, 1).to_bits() + index)
}

/// A node's address on the underlay.
pub fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, node)
}

/// A node's address on the underlay.
pub fn node_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x192, 0x168, 0, 0, 0, 0, u16::from(node))
}

/// The pods' addresses of a node.
pub fn pod_cidr_v4(node: u8) -> String {
    format!("10.244.{node}.0/24")
}

/// The pods' addresses of a node.
pub fn pod_cidr_v6(node: u8) -> String {
    format!("fd00:244:{node}::/64")
}

/// Address of the overlay's end on a node.
pub fn vtep_mac(node: u8) -> [u8; 6] {
    [2, 0xdd, 0, 0, 0, node]
}

pub const fn uplink_mac(node: u8) -> [u8; 6] {
    [2, 0xcc, 0, 0, 0, node]
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn node() -> Result<Netns> {
    let netns = Netns::new()?;
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ] {
        netns.sysctl(name, value)?;
    }
    Ok(netns)
}

fn pod() -> Result<Netns> {
    let netns = Netns::new()?;
    for (name, value) in [
        // A port that is used again within a minute must not meet a TIME_WAIT of another connection.
        ("net/ipv4/tcp_max_tw_buckets", "8"),
        ("net/ipv4/ip_local_port_range", "10000 60999"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ] {
        netns.sysctl(name, value)?;
    }
    Ok(netns)
}
