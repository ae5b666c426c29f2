//! A node: a machine on the underlay with its cgroup, its bpffs and the dataplane loaded and attached, its network
//! laid by the agent's own code.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use ebpf_abi::{Config, config_flag, maps as names};
use ipnetwork::IpNetwork;
use node_agent_host::{
    Bandwidth, HostDevice, HostDeviceSpec, MacAddr, Network, NetworkError, POD_DEVICE, PodLinkSpec,
    VxlanDeviceSpec, apply_host_sysctls, netns_cookie,
};
use node_agent_maps::{Attached, Dataplane, Maps, Options};
use node_agent_model::{MapOp, MapSink};

use crate::{
    Bpffs, ByDevice, Cgroup, Machine, NetNs, NodeAddresses, Pod, SERVICE_CIDRS, Underlay, Wrapping,
    plan::{NAT_PORTS, OVERHEAD, VNI, VXLAN_PORT},
    pod::PodInner,
};

/// A node of a test cluster.
#[derive(Debug)]
pub struct Node {
    // Dropped in this order: the dataplane first, the bpffs with the pins after it.
    dataplane: Dataplane,
    options: Options,
    pub machine: Machine,
    pub addresses: NodeAddresses,
    pub host_device: HostDevice,
    cgroup: Arc<Cgroup>,
    bpffs: Bpffs,
    underlay_mtu: u32,
    pods: Vec<Pod>,
}

/// Sizes that make a node cheap: the defaults reserve some 40 MB of kernel memory.
pub fn small_maps() -> BTreeMap<&'static str, u32> {
    BTreeMap::from([
        (names::SLOT, 16384),
        (names::BACKEND4, 16384),
        (names::BACKEND6, 16384),
        (names::CONN4, 16384),
        (names::CONN6, 16384),
        (names::SOCKET4, 8192),
        (names::SOCKET6, 8192),
        (names::PEER, 256),
    ])
}

impl Node {
    /// # Errors
    ///
    /// When the machine lacks what a node needs (root, bpffs, cgroup2, Linux 6.6) or the kernel refuses the programs.
    pub fn new(underlay: &Underlay, number: u8) -> Result<Self> {
        Self::with_options(
            underlay,
            number,
            Options {
                max_entries: small_maps(),
                log: false,
            },
        )
    }

    /// As [`Node::new`], with other sizes of maps.
    ///
    /// # Errors
    ///
    /// As for [`Node::new`].
    pub fn with_options(underlay: &Underlay, number: u8, options: Options) -> Result<Self> {
        let addresses = NodeAddresses { number };
        let machine = underlay.machine(number)?;
        let cgroup = Arc::new(Cgroup::new()?);
        let bpffs = Bpffs::new()?;
        let pod_mtu = underlay.mtu() - OVERHEAD;
        machine
            .netns
            .run(|| apply_host_sysctls(&NAT_PORTS))
            .context("host sysctls")?;
        let spec = HostDeviceSpec {
            mtu: pod_mtu,
            gateways: vec![addresses.pod_v4(1).into(), addresses.pod_v6(1).into()],
        };
        let host_device = machine
            .netns
            .block_on(async || Network::connect()?.ensure_host_device(&spec).await)
            .context("fairlead0")?;
        machine.netns.wait_running(node_agent_host::HOST_DEVICE)?;
        let dataplane = Dataplane::open(&bpffs.pin_dir(), &options)?;
        let node = Self {
            dataplane,
            options,
            machine,
            addresses,
            host_device,
            cgroup,
            bpffs,
            underlay_mtu: underlay.mtu(),
            pods: Vec::new(),
        };
        node.attach()?;
        node.apply(&[MapOp::Config(Box::new(node.config()?))])?;
        node.apply(&addresses.own_endpoints(node.host_device.mac.0))?;
        node.set_host_routes(&[addresses])?;
        Ok(node)
    }

    pub fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    pub fn maps(&self) -> &Maps {
        self.dataplane.maps()
    }

    pub fn netns(&self) -> &NetNs {
        &self.machine.netns
    }

    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The directory of the pins.
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.pin_dir()
    }

    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Runs `work` as a process of the host: in the node's network namespace and in its cgroup.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.machine.netns.run(|| {
            self.cgroup
                .enter()
                .expect("a thread may enter a threaded cgroup");
            work()
        })
    }

    /// Runs `work` in the node's network namespace, out of the socket programs' reach.
    pub fn run_without_socket_programs<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.machine.netns.run(work)
    }

    /// Its underlay address in the family of `other`.
    pub fn ip_for(&self, other: IpAddr) -> IpAddr {
        self.machine.ip_for(other)
    }

    /// Writes to the node's maps.
    ///
    /// # Errors
    ///
    /// When a map refuses an operation.
    pub fn apply(&self, ops: &[MapOp]) -> Result<()> {
        self.maps().clone().apply(ops)?;
        Ok(())
    }

    /// Makes a pod, wired by the agent's own code, and its endpoint.
    ///
    /// # Errors
    ///
    /// When the kernel refuses an interface or the program.
    pub fn add_pod(&mut self) -> Result<Pod> {
        let host = u8::try_from(self.pods.len() + 2).context("at most 253 pods a node")?;
        let addresses = self.addresses;
        let netns = NetNs::new()?;
        let name = format!("pod-{}-{host}", addresses.number);
        let (ipv4, ipv6) = (addresses.pod_v4(host), addresses.pod_v6(host));
        let spec = PodLinkSpec {
            uid: name.clone(),
            namespace: "default".into(),
            name,
            device: POD_DEVICE.into(),
            ips: vec![ipv4.into(), ipv6.into()],
            gateways: vec![addresses.pod_v4(1).into(), addresses.pod_v6(1).into()],
            mtu: self.underlay_mtu - OVERHEAD,
            bandwidth: Bandwidth::default(),
            sysctls: BTreeMap::new(),
        };
        let path = netns.path();
        let link = self
            .machine
            .netns
            .block_on(async || Network::connect()?.wire_pod(&spec, path.as_ref()).await)
            .context("wire a pod")?;
        let pod = Pod {
            inner: Arc::new(PodInner {
                netns,
                cgroup: Arc::clone(&self.cgroup),
                ipv4,
                ipv6,
                ifname: link.ifname,
                ifindex: link.ifindex,
                pod_mac: link.pod_mac.0,
                host_mac: link.host_mac.0,
            }),
        };
        self.netns()
            .run(|| self.dataplane.attach_pod(pod.ifname(), pod.ifindex()))?;
        self.apply(&pod.endpoint_ops())?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Tells this node the way to others.
    ///
    /// # Errors
    ///
    /// When a map or the routing table refuses it.
    pub fn connect(&self, others: &[NodeAddresses]) -> Result<()> {
        for other in others {
            self.apply(&self.addresses.routes_to(*other, self.underlay_mtu))?;
        }
        let all: Vec<_> = std::iter::once(&self.addresses)
            .chain(others)
            .copied()
            .collect();
        self.set_host_routes(&all)
    }

    /// Lets the overlay lay packets to and from others on the wire in another way.
    ///
    /// # Errors
    ///
    /// When a map refuses it.
    pub fn wrap(
        &self,
        wrapping: Wrapping,
        others: impl Iterator<Item = NodeAddresses>,
    ) -> Result<()> {
        let mut config = self.config()?;
        if wrapping.bare {
            config.flags |= config_flag::OVERLAY_UDP;
        }
        let peers = others.map(|other| MapOp::Peer {
            id: other.number.into(),
            peer: Box::new(wrapping.peer(self.addresses, other, self.underlay_mtu)),
        });
        let ops: Vec<MapOp> = std::iter::once(MapOp::Config(Box::new(config)))
            .chain(peers)
            .collect();
        self.apply(&ops)
    }

    /// Lets the kernel's VXLAN device do a part; the device is made and told of the others by the agent's own code.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the device, or a map the peers.
    pub fn use_device(&self, by: ByDevice, ipv6: bool, others: &[NodeAddresses]) -> Result<()> {
        let wrapping = Wrapping { bare: false, ipv6 };
        let address = |of: NodeAddresses| -> IpAddr {
            if ipv6 {
                of.underlay_v6().into()
            } else {
                of.underlay_v4().into()
            }
        };
        let own = address(self.addresses);
        let spec = VxlanDeviceSpec {
            vni: VNI,
            port: VXLAN_PORT,
            local: own,
            uplink: self.machine.ifindex,
            mac: MacAddr(self.addresses.vtep_mac()),
            mtu: wrapping.mtu(self.underlay_mtu),
            checksum: true,
        };
        let forwarding = others
            .iter()
            .map(|other| (MacAddr(other.vtep_mac()), address(*other)))
            .collect();
        let ifindex = self.machine.netns.block_on(async || {
            let network = Network::connect()?;
            let ifindex = network.ensure_vxlan_device(&spec).await?;
            network.set_forwarding(ifindex, &forwarding).await?;
            Ok::<_, NetworkError>(ifindex)
        })?;
        let mut ops: Vec<MapOp> = others
            .iter()
            .map(|other| MapOp::Peer {
                id: other.number.into(),
                peer: Box::new(by.peer(
                    wrapping.peer(self.addresses, *other, self.underlay_mtu),
                    own,
                    ifindex,
                )),
            })
            .collect();
        if by == ByDevice::Everything {
            let mut config = self.config()?;
            config.flags &= !config_flag::OVERLAY;
            ops.push(MapOp::Config(Box::new(config)));
            self.netns().run(|| self.dataplane.attach_vxlan(ifindex))?;
        }
        self.apply(&ops)
    }

    fn config(&self) -> Result<Config> {
        Ok(self.addresses.config(
            (self.machine.ifindex, self.machine.mac),
            self.host_device.ifindex,
            self.underlay_mtu,
            self.machine.netns.run(netns_cookie)?,
        ))
    }

    /// Loads and attaches anew, as an agent that restarts: what happened to each link.
    ///
    /// # Errors
    ///
    /// As for [`Node::new`].
    pub fn restart(&mut self) -> Result<Vec<Attached>> {
        self.dataplane = Dataplane::open(&self.bpffs.pin_dir(), &self.options)?;
        self.attach()
    }

    fn attach(&self) -> Result<Vec<Attached>> {
        let dataplane = &self.dataplane;
        self.netns().run(|| {
            let mut attached = vec![
                dataplane.attach_uplink(self.machine.ifindex)?,
                dataplane.attach_host(self.host_device.ifindex)?,
            ];
            let cgroup = dataplane.attach_cgroup(self.cgroup.path())?;
            attached.extend(cgroup.into_iter().map(|(_, attached)| attached));
            for pod in &self.pods {
                attached.push(dataplane.attach_pod(pod.ifname(), pod.ifindex())?);
            }
            Ok(attached)
        })
    }

    fn set_host_routes(&self, nodes: &[NodeAddresses]) -> Result<()> {
        let mut prefixes: Vec<IpNetwork> = nodes.iter().flat_map(|node| node.pod_cidrs()).collect();
        for cidr in SERVICE_CIDRS {
            prefixes.push(cidr.parse().context("service CIDR")?);
        }
        let device = &self.host_device;
        self.machine
            .netns
            .block_on(async || Network::connect()?.set_host_routes(device, &prefixes).await)
            .context("host routes")?;
        Ok(())
    }
}
