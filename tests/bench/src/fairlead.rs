//! Our side of a cell: the real object, the real planner and the real overlay, a thousand other services beside the
//! measured ones. Nothing is pinned where another process sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebpf_abi::{Config, Endpoint, FamilyConfig};
use ipnetwork::IpNetwork;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use node_agent_maps::{Dataplane, Options};
use node_agent_model::{
    Applied, Capacity, Change, Desired, EndpointSlice, MapSink, ObjectName, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, plan,
};
use node_agent_overlay::{Lease, Mode, Overlay, OverlayOptions, VtepMac};

use crate::cell::{
    Cell, OTHER_NODE, PodAddress, SAME_NODE, UNDERLAY_MTU, node_v4, node_v6, pod_cidr_v4,
    pod_cidr_v6, vtep_mac,
};
use crate::cgroup::Cgroup;
use crate::server::{ANSWER_PORT, CLOSE_PORT, PACKET_PORT, SINK_PORT};

const BPFFS: &str = "/sys/fs/bpf";
const VNI: u32 = 1;
/// Services that nobody asks for, each with three endpoints.
const OTHER_SERVICES: u16 = 1000;

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

/// Loads, fills and attaches our programs on both nodes of a cell; `name` is for the pins.
///
/// With a cgroup, node 1's socket programs are attached to it. The dataplanes live on in their pins.
pub fn install(
    cell: &Cell,
    name: &str,
    mode: Mode,
    cgroup: Option<&Cgroup>,
) -> Result<Vec<Dataplane>> {
    [1, 2]
        .into_iter()
        .map(|number| {
            let pins = PathBuf::from(format!("{BPFFS}/{name}-{number}"));
            let cgroup = cgroup.filter(|_| number == 1).map(Cgroup::path);
            install_node(cell, number, &pins, mode, cgroup)
                .with_context(|| format!("set {name} up on node {number}"))
        })
        .collect()
}

fn install_node(
    cell: &Cell,
    number: u8,
    pins: &Path,
    mode: Mode,
    cgroup: Option<&Path>,
) -> Result<Dataplane> {
    let netns = cell.node(number);
    let dataplane = Dataplane::open(pins, &Options::default())?;
    let mut desired = Desired::new(node_name(number));
    for change in changes(cell, number, mode)? {
        desired.change(change);
    }
    let mut maps = dataplane.maps().clone();
    let mut applied = Applied::restore(maps.snapshot()?, Capacity::default());
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
    if let Some(cgroup) = cgroup {
        dataplane.attach_cgroup(cgroup)?;
    }
    Ok(dataplane)
}

/// All that node `number` would learn from the API and from its own pods.
fn changes(cell: &Cell, number: u8, mode: Mode) -> Result<Vec<Change>> {
    let netns = cell.node(number);
    let mut changes = vec![Change::Config(Config {
        uplink_ifindex: netns.ifindex("uplink")?,
        flags: mode.config_flags(),
        overlay_port_be: mode.default_port().to_be(),
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
        changes.extend(pod.ips().map(|ip| Change::Endpoint(ip, Some(endpoint))));
    }
    changes.extend(peer(number, mode)?);
    for backend in [SAME_NODE, OTHER_NODE] {
        changes.extend(measured_service(backend));
    }
    for index in 0..OTHER_SERVICES {
        changes.extend(other_service(index));
    }
    Ok(changes)
}

/// The other node, as its lease describes it.
fn peer(number: u8, mode: Mode) -> Result<[Change; 2]> {
    let overlay = |number: u8| {
        Overlay::new(OverlayOptions {
            node_name: node_name(number),
            mode,
            underlay_v4: Some(node_v4(number)),
            underlay_v6: Some(node_v6(number)),
            on_link: IpNetwork::new(node_v4(number).into(), 24)
                .into_iter()
                .collect(),
            uplink_mtu: UNDERLAY_MTU,
            port: mode.default_port(),
            vni: VNI,
            mac: VtepMac(vtep_mac(number)),
        })
    };
    let other = 3 - number;
    let lease = Lease {
        holder: node_name(other),
        subnets: vec![pod_cidr_v4(other).parse()?, pod_cidr_v6(other).parse()?],
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

/// A Service with one endpoint, so that every connection takes the way that is measured.
fn measured_service(backend: PodAddress) -> Vec<Change> {
    let ports = [
        ("answer", Protocol::Tcp, ANSWER_PORT),
        ("close", Protocol::Tcp, CLOSE_PORT),
        ("sink", Protocol::Tcp, SINK_PORT),
        ("packet", Protocol::Udp, PACKET_PORT),
    ];
    let name = format!("backend-{}", backend.node);
    let node = node_name(backend.node);
    service(
        &name,
        cluster_ips(backend).to_vec(),
        &ports,
        &backend.ips().map(|ip| (ip, node.clone())),
    )
}

/// A Service like any other in a cluster.
fn other_service(index: u16) -> Vec<Change> {
    let [high, low] = index.to_be_bytes();
    let endpoints = [1, 2, 3].map(|number| {
        (
            Ipv4Addr::new(10, 245 + number, high, low).into(),
            "elsewhere".to_owned(),
        )
    });
    let cluster_ip = Ipv4Addr::new(10, 97, high, low).into();
    service(
        &format!("other-{index}"),
        vec![cluster_ip],
        &[("http", Protocol::Tcp, 80)],
        &endpoints,
    )
}

fn service(
    name: &str,
    cluster_ips: Vec<IpAddr>,
    ports: &[(&str, Protocol, u16)],
    endpoints: &[(IpAddr, String)],
) -> Vec<Change> {
    let service_name = ObjectName::new("bench", name);
    let service_ports = ports.iter().map(|&(name, protocol, port)| ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        node_port: None,
    });
    let service = Service {
        cluster_ips,
        ports: service_ports.collect(),
        ..Service::default()
    };
    let mut changes = vec![Change::Service(service_name.clone(), Some(service))];
    // A slice has addresses of one family.
    for is_v4 in [true, false] {
        let slice_endpoints: Vec<SliceEndpoint> = endpoints
            .iter()
            .filter(|(ip, _)| ip.is_ipv4() == is_v4)
            .map(|(addr, node)| SliceEndpoint {
                addr: *addr,
                ready: true,
                serving: true,
                terminating: false,
                node: Some(node.clone()),
            })
            .collect();
        if slice_endpoints.is_empty() {
            continue;
        }
        let slice_ports = ports.iter().map(|&(name, protocol, port)| SlicePort {
            name: name.to_owned(),
            protocol,
            port,
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
