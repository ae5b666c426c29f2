//! Our side of a cell: the real object, the real planner and the real overlay, a thousand other services beside the
//! measured ones. Nothing is pinned where another process sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebpf_abi::{Config, Endpoint, FamilyConfig};
use ipnetwork::IpNetwork;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use node_agent_maps::{Dataplane, Options, Sizes};
use node_agent_model::{
    Applied, Change, Desired, EndpointSlice, MapSink, ObjectName, Protocol, Service, ServicePort,
    SliceEndpoint, SlicePort, plan,
};
use node_agent_overlay::{Lease, Mode, Overlay, OverlayOptions, VtepMac};

use crate::cell::{
    Cell, MANY_PODS, OTHER_NODE, PodAddress, SAME_NODE, UNDERLAY_MTU, many_pods, node_v4, node_v6,
    pod_cidr_v4, pod_cidr_v6, uplink_mac, vtep_mac,
};
use crate::cgroup::Cgroup;
use crate::server::{ANSWER_PORT, CLOSE_PORT, DATAGRAM_PORT, PACKET_PORT, SINK_PORT};

const BPFFS: &str = "/sys/fs/bpf";
const VNI: u32 = 1;
/// UDP NodePort of the service in front of the pod beside the client; the one of the other node's pod follows.
const NODE_PORT: u16 = 30083;

/// Our side of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Of the pins.
    pub name: &'a str,
    pub mode: Mode,
    /// Node 1's socket programs are attached to it.
    pub cgroup: Option<&'a Cgroup>,
    /// Services that nobody asks for, each with three endpoints.
    pub others: u16,
    /// Endpoints of the service in front of the other node's pod; more than one only where the cell has many pods.
    pub endpoints: u32,
}

impl<'a> Setup<'a> {
    /// A thousand other Services, nothing at the socket.
    pub fn new(name: &'a str, mode: Mode) -> Self {
        Self {
            name,
            mode,
            cgroup: None,
            others: 1000,
            endpoints: 1,
        }
    }
}

/// Maps of the sizes that an agent takes by default.
pub fn map_options() -> Result<Options> {
    Ok(Options {
        max_entries: Sizes::for_this_machine()?.max_entries(),
        ..Options::default()
    })
}

/// The ports of the services that are measured.
pub const MEASURED_PORTS: [(&str, Protocol, u16); 5] = [
    ("answer", Protocol::Tcp, ANSWER_PORT),
    ("close", Protocol::Tcp, CLOSE_PORT),
    ("sink", Protocol::Tcp, SINK_PORT),
    ("packet", Protocol::Udp, PACKET_PORT),
    ("datagram", Protocol::Udp, DATAGRAM_PORT),
];

/// Gives this thread, and what it starts, a bpffs that nobody else sees and that goes with the process.
pub fn private_bpffs() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (are you root?)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make the mounts private")?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount a bpffs at {BPFFS}"))
}

/// ClusterIPs of the service in front of a backend pod.
pub fn cluster_ips(backend: PodAddress) -> [IpAddr; 2] {
    let number = backend.node;
    [
        Ipv4Addr::new(10, 96, 0, number).into(),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)).into(),
    ]
}

/// UDP NodePort of the service in front of a backend pod, on every node.
pub fn node_port(backend: PodAddress) -> u16 {
    NODE_PORT + u16::from(backend.node) - 1
}

/// Loads, fills and attaches our programs on both nodes of a cell. The dataplanes live on in their pins.
pub fn install(cell: &Cell, setup: &Setup<'_>) -> Result<Vec<Dataplane>> {
    [1, 2]
        .into_iter()
        .map(|number| {
            install_node(cell, number, setup)
                .with_context(|| format!("set {} up on node {number}", setup.name))
        })
        .collect()
}

/// Where the maps and programs of a node are pinned.
pub fn pins(name: &str, number: u8) -> PathBuf {
    PathBuf::from(format!("{BPFFS}/{name}-{number}"))
}

fn install_node(cell: &Cell, number: u8, setup: &Setup<'_>) -> Result<Dataplane> {
    let netns = cell.node(number);
    let dataplane = Dataplane::open(&pins(setup.name, number), &map_options()?)?;
    let mut desired = Desired::new(node_name(number));
    for change in changes(cell, number, setup)? {
        desired.change(change);
    }
    let mut maps = dataplane.maps().clone();
    let mut applied = Applied::restore(maps.snapshot()?, maps.capacity());
    let plan = plan(&mut desired, &mut applied, Duration::ZERO);
    if let Some(refusal) = plan.refused.first() {
        bail!("{} does not fit into {}", refusal.object, refusal.map);
    }
    maps.apply(&plan.ops)?;
    let uplink = netns.ifindex("uplink")?;
    netns.run(|| Ok(dataplane.attach_uplink(uplink)?))?;
    for (pod, _) in cell
        .pods()
        .into_iter()
        .filter(|(pod, _)| pod.node == number)
    {
        let device = pod.host_device();
        let ifindex = netns.ifindex(&device)?;
        netns.run(|| Ok(dataplane.attach_pod(&device, ifindex)?))?;
    }
    if let Some(cgroup) = setup.cgroup.filter(|_| number == 1) {
        dataplane.attach_cgroup(cgroup.path())?;
    }
    Ok(dataplane)
}

/// All that node `number` would learn from the API and from its own pods.
fn changes(cell: &Cell, number: u8, setup: &Setup<'_>) -> Result<Vec<Change>> {
    let netns = cell.node(number);
    let mut changes = vec![Change::Config(Config {
        uplink_ifindex: netns.ifindex("uplink")?,
        uplink_mac: uplink_mac(number),
        flags: setup.mode.config_flags(),
        overlay_port_be: setup.mode.default_port().to_be(),
        vni: VNI,
        uplink_mtu: UNDERLAY_MTU,
        nat_port_first: 61000,
        nat_port_last: 65535,
        v4: FamilyConfig {
            node_addr: node_v4(number).into(),
            source_nat_addr: Ipv4Addr::new(10, 244, number, 1).into(),
        },
        v6: FamilyConfig {
            node_addr: node_v6(number).into(),
            source_nat_addr: Ipv6Addr::new(0xfd00, 0x244, u16::from(number), 0, 0, 0, 0, 1).into(),
        },
        ..Config::default()
    })];
    for (pod, _) in cell
        .pods()
        .into_iter()
        .filter(|(pod, _)| pod.node == number)
    {
        let endpoint = Endpoint {
            ifindex: netns.ifindex(&pod.host_device())?,
            pod_mac: pod.pod_mac(),
            host_mac: pod.host_mac(),
            ..Endpoint::default()
        };
        let many = many_endpoints(setup).filter(|_| pod == OTHER_NODE);
        let ips = pod.ips().into_iter().chain(many);
        changes.extend(ips.map(|ip| Change::Endpoint(ip, Some(endpoint))));
    }
    changes.push(Change::NodeAddresses(vec![
        node_v4(number).into(),
        node_v6(number).into(),
    ]));
    changes.extend(peer(number, setup)?);
    for backend in [SAME_NODE, OTHER_NODE] {
        changes.extend(measured_service(backend, setup));
    }
    for index in 0..setup.others {
        changes.extend(other_service(index));
    }
    Ok(changes)
}

/// The other node, as its lease describes it.
fn peer(number: u8, setup: &Setup<'_>) -> Result<[Change; 2]> {
    let overlay = |number: u8| {
        Overlay::new(OverlayOptions {
            node_name: node_name(number),
            mode: setup.mode,
            direct_routing: false,
            underlay_v4: Some(node_v4(number)),
            underlay_v6: Some(node_v6(number)),
            on_link: IpNetwork::new(node_v4(number).into(), 24)
                .into_iter()
                .collect(),
            uplink_mtu: UNDERLAY_MTU,
            port: setup.mode.default_port(),
            vni: VNI,
            mac: VtepMac(vtep_mac(number)),
        })
    };
    let other = 3 - number;
    let mut subnets = vec![pod_cidr_v4(other).parse()?, pod_cidr_v6(other).parse()?];
    if setup.endpoints > 1 && other == OTHER_NODE.node {
        subnets.push(MANY_PODS.parse()?);
    }
    let lease = Lease {
        holder: node_name(other),
        subnets,
        attributes: overlay(other)?.attributes(),
        since: 0,
    };
    let [first, ipv6] = overlay(number)?
        .peers(&lease)
        .context("make the other node a peer")?;
    Ok([
        Change::Peer(lease.holder.clone(), first),
        Change::Peer(format!("{}/ipv6", lease.holder), ipv6),
    ])
}

/// Further endpoints of the other node's pod.
fn many_endpoints(setup: &Setup<'_>) -> impl Iterator<Item = IpAddr> + use<> {
    let count = setup.endpoints.saturating_sub(1);
    (0..count).map(|index| many_pods(index).into())
}

/// A Service whose every endpoint is one pod, so that every connection takes the way that is measured.
fn measured_service(backend: PodAddress, setup: &Setup<'_>) -> Vec<Change> {
    let name = format!("backend-{}", backend.node);
    let node = node_name(backend.node);
    let many = many_endpoints(setup).filter(|_| backend == OTHER_NODE);
    let endpoints: Vec<_> = backend
        .ips()
        .into_iter()
        .chain(many)
        .map(|ip| (ip, node.clone()))
        .collect();
    let ports = MEASURED_PORTS.map(|(name, protocol, port)| ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        node_port: (port == PACKET_PORT).then(|| node_port(backend)),
    });
    service(&name, cluster_ips(backend).to_vec(), &ports, &endpoints)
}

/// ClusterIP of a Service like any other in a cluster.
pub fn other_service_ip(index: u16) -> Ipv4Addr {
    let [high, low] = index.to_be_bytes();
    Ipv4Addr::new(10, 97, high, low)
}

/// Its endpoints, on other nodes than the two.
pub fn other_endpoints(index: u16) -> [Ipv4Addr; 3] {
    let [high, low] = index.to_be_bytes();
    [246, 247, 248].map(|number| Ipv4Addr::new(10, number, high, low))
}

fn other_service(index: u16) -> Vec<Change> {
    let endpoints = other_endpoints(index).map(|ip| (ip.into(), "elsewhere".to_owned()));
    service(
        &format!("other-{index}"),
        vec![other_service_ip(index).into()],
        &[ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        &endpoints,
    )
}

fn service(
    name: &str,
    cluster_ips: Vec<IpAddr>,
    ports: &[ServicePort],
    endpoints: &[(IpAddr, String)],
) -> Vec<Change> {
    let service_name = ObjectName::new("bench", name);
    let service = Service {
        cluster_ips,
        ports: ports.to_vec(),
        ..Service::default()
    };
    let mut changes = vec![Change::Service(service_name.clone(), Some(service))];
    // A slice has addresses of one family.
    for is_v4 in [true, false] {
        let slice_endpoints: Vec<SliceEndpoint> = endpoints
            .iter()
            .filter(|(ip, _)| ip.is_ipv4() == is_v4)
            .map(|(addr, node)| SliceEndpoint {
                node: Some(node.clone()),
                ..SliceEndpoint::at(*addr)
            })
            .collect();
        if slice_endpoints.is_empty() {
            continue;
        }
        let slice_ports = ports.iter().map(|port| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
        });
        let slice = EndpointSlice {
            service: service_name.clone(),
            ports: slice_ports.collect(),
            endpoints: slice_endpoints,
        };
        let family = if is_v4 { "v4" } else { "v6" };
        changes.push(Change::EndpointSlice(
            ObjectName::new("bench", format!("{name}-{family}")),
            Some(slice),
        ));
    }
    changes
}

fn node_name(number: u8) -> String {
    format!("n{number}")
}
