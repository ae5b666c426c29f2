//! Fixtures for the real programs in the real kernel: a packet in, the verdict and the packet out, byte by byte.
//!
//! `BPF_PROG_TEST_RUN` runs a program of a wired node on a packet with the node's own maps. What comes out is compared
//! with a frame that the test kit builds from its fields, its checksums computed whole.
#![forbid(unsafe_code)]

mod agents;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use ebpf_abi::DropReason;
use node_agent_maps::{Program, TestRun};
use tests_testkit::{
    Node, NodeAddresses, Pod, Protocol, ServiceSpec, Underlay,
    packet::{Frame, L4, vxlan},
};

pub use agents::{Agents, slice};

/// The port that the service's backends listen on.
pub const BACKEND_PORT: u16 = 8080;
/// The service's NodePort.
pub const NODE_PORT: u16 = 30080;
/// The client's port.
pub const CLIENT_PORT: u16 = 45000;
/// UDP port and network identifier of the overlay.
pub const VXLAN: (u16, u32) = (8472, 1);

/// Which family a case runs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

/// What a program made of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    Pass(Vec<u8>),
    Redirect(Vec<u8>),
    Drop(DropReason),
}

/// A node with a client's pod and a backend's pod, and one family to use it in. A second node is known to its maps
/// only.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub family: Family,
    pub client: Pod,
    pub local: Pod,
    stage: Arc<Stage>,
}

#[derive(Debug)]
struct Stage {
    node: Node,
    _underlay: Underlay,
}

/// The nodes' numbers.
const NODES: [NodeAddresses; 2] = [NodeAddresses { number: 1 }, NodeAddresses { number: 2 }];
/// The machine that is no node.
const OUTSIDE: NodeAddresses = NodeAddresses { number: 200 };
/// The pod on the second node.
const REMOTE_POD: u8 = 7;

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Type of 'destination unreachable'.
    pub fn unreachable(self) -> u8 {
        match self {
            Self::V4 => 3,
            Self::V6 => 1,
        }
    }

    fn pick(self, v4: impl Into<IpAddr>, v6: impl Into<IpAddr>) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }
}

impl Fixture {
    /// The same node in both families.
    ///
    /// # Errors
    ///
    /// When the machine lacks what a node needs.
    pub fn both() -> Result<[Self; 2]> {
        let underlay = Underlay::new(1500)?;
        let mut node = Node::new(&underlay, NODES[0].number)?;
        node.connect(&NODES[1..])?;
        let (client, local) = (node.add_pod()?, node.add_pod()?);
        let stage = Arc::new(Stage {
            node,
            _underlay: underlay,
        });
        Ok(Family::BOTH.map(|family| Self {
            family,
            client: client.clone(),
            local: local.clone(),
            stage: Arc::clone(&stage),
        }))
    }

    /// Publishes the service, for every protocol, with these backends.
    ///
    /// # Errors
    ///
    /// When a map refuses it.
    pub fn serve(&self, backends: &[SocketAddr]) -> Result<()> {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        for (id, protocol) in (1..).zip(protocols) {
            let spec = ServiceSpec::cluster_ip(self.vip(), protocol, backends.iter().copied());
            let spec = spec.with_node_port(self.node(0), NODE_PORT).with_id(id);
            self.stage.node.apply(&spec.ops())?;
        }
        Ok(())
    }

    pub fn vip(&self) -> SocketAddr {
        SocketAddr::new(
            self.family
                .pick([10, 96, 0, 10], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10]),
            80,
        )
    }

    /// A machine that is no node.
    pub fn outside(&self) -> SocketAddr {
        SocketAddr::new(self.underlay_ip(OUTSIDE), CLIENT_PORT)
    }

    /// A node's address on the underlay.
    pub fn node(&self, index: usize) -> IpAddr {
        self.underlay_ip(NODES[index])
    }

    fn underlay_ip(&self, machine: NodeAddresses) -> IpAddr {
        self.family
            .pick(machine.underlay_v4(), machine.underlay_v6())
    }

    /// The pod on the second node.
    pub fn remote(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.in_pod_cidr(1, REMOTE_POD), port)
    }

    /// A node's address with this number of its podCIDR: 0 is for source NAT, 1 the node's own.
    pub fn in_pod_cidr(&self, index: usize, host: u8) -> IpAddr {
        let addresses = NODES[index];
        self.family
            .pick(addresses.pod_v4(host), addresses.pod_v6(host))
    }

    pub fn of(&self, pod: &Pod, port: u16) -> SocketAddr {
        SocketAddr::new(self.family.pick(pod.ipv4(), pod.ipv6()), port)
    }

    /// A frame as a pod of the first node sends it to its gateway.
    pub fn sent_by(&self, pod: &Pod, src: SocketAddr, dst: SocketAddr) -> Frame {
        Frame::new(src.ip(), dst.ip()).eth(pod.pod_mac(), pod.host_mac())
    }

    /// Runs a program on a packet that came in by an interface of the first node.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the packet, or the verdict and the counted drops contradict each other.
    pub fn run(&self, program: Program, ifindex: u32, packet: &[u8]) -> Result<Outcome> {
        self.run_as(
            program,
            &TestRun {
                ifindex,
                ..TestRun::new(packet)
            },
        )
    }

    /// # Errors
    ///
    /// As for [`Fixture::run`].
    pub fn run_as(&self, program: Program, run: &TestRun<'_>) -> Result<Outcome> {
        let node = &self.stage.node;
        let drops = || -> Result<Vec<(DropReason, u64)>> {
            let counters = node.maps().drops()?;
            Ok(counters
                .into_iter()
                .map(|(reason, counter)| (reason, counter.packets))
                .collect())
        };
        let before = drops()?;
        let result = node
            .netns()
            .run(|| node.dataplane().test_run(program, run))?;
        let after = drops()?;
        let counted: Vec<DropReason> = after
            .iter()
            .filter(|after| !before.contains(after))
            .map(|(reason, _)| *reason)
            .collect();
        ensure!(counted.len() <= 1, "one packet counted as {counted:?}");
        match (result.retval, counted.first()) {
            (0, None) => Ok(Outcome::Pass(result.packet)),
            (7, None) => Ok(Outcome::Redirect(result.packet)),
            (2, Some(&reason)) => Ok(Outcome::Drop(reason)),
            (verdict, counted) => anyhow::bail!("verdict {verdict} with counted drop {counted:?}"),
        }
    }

    /// What a pod of the first node sends.
    ///
    /// # Errors
    ///
    /// As for [`Fixture::run`].
    pub fn from_pod(&self, pod: &Pod, packet: &[u8]) -> Result<Outcome> {
        self.run(Program::FromPod, pod.ifindex(), packet)
    }

    /// A frame as it arrives on the first node's uplink.
    pub fn arriving(&self, src: IpAddr, dst: IpAddr) -> Frame {
        let frame = Frame::new(src, dst);
        let from = frame.eth_src;
        frame.eth(from, self.uplink_mac())
    }

    pub fn uplink_mac(&self) -> [u8; 6] {
        self.stage.node.machine.mac
    }

    /// What arrives on the first node's uplink.
    ///
    /// # Errors
    ///
    /// As for [`Fixture::run`].
    pub fn from_network(&self, packet: &[u8]) -> Result<Outcome> {
        self.run(
            Program::FromNetwork,
            self.stage.node.machine.ifindex,
            packet,
        )
    }

    /// What a process of the first node sends by `fairlead0`.
    ///
    /// # Errors
    ///
    /// As for [`Fixture::run`].
    pub fn from_host(&self, packet: &[u8]) -> Result<Outcome> {
        self.run(
            Program::FromHost,
            self.stage.node.host_device.ifindex,
            packet,
        )
    }

    /// An IP packet in the overlay's headers, from the second node to the first.
    pub fn overlay(&self, inner: &Frame) -> Frame {
        self.overlay_from(1, inner, VXLAN.1)
    }

    pub fn overlay_from(&self, node: usize, inner: &Frame, vni: u32) -> Frame {
        let [from, to] = [node, 0].map(|index| NODES[index]);
        let inner = inner.clone().eth(from.vtep_mac(), to.vtep_mac()).bytes();
        let outer = self.arriving(from.underlay_v4().into(), to.underlay_v4().into());
        vxlan(outer, 50000, VXLAN.0, vni, &inner)
    }

    /// What a pod of the first node must get: the frame one hop further, addressed to it.
    pub fn delivered(pod: &Pod, frame: &Frame) -> Outcome {
        let hop = frame
            .clone()
            .ttl(frame.ttl - 1)
            .eth(pod.host_mac(), pod.pod_mac());
        Outcome::Redirect(hop.bytes())
    }

    /// Asserts that a packet left by the overlay to the second node with this frame inside, one hop further.
    ///
    /// # Errors
    ///
    /// When it did not; says what differs.
    pub fn check_encapsulated(&self, outcome: &Outcome, frame: &Frame) -> Result<()> {
        let Outcome::Redirect(packet) = outcome else {
            anyhow::bail!("not redirected but {outcome:?}");
        };
        let [from, to] = [0, 1].map(|index| NODES[index]);
        let source_port = packet.get(34..36).context("no UDP header")?;
        let source_port = u16::from_be_bytes([source_port[0], source_port[1]]);
        ensure!(source_port >= 49152, "source port {source_port}");
        let inner = frame
            .clone()
            .ttl(frame.ttl - 1)
            .eth(from.vtep_mac(), to.vtep_mac())
            .bytes();
        let mut outer = Frame::new(from.underlay_v4().into(), to.underlay_v4().into());
        outer.dont_fragment = false;
        outer.id = 0;
        let expected = vxlan(outer, source_port, VXLAN.0, VXLAN.1, &inner).bytes();
        ensure!(
            packet[14..] == expected[14..],
            "\n got {:02x?}\nwant {:02x?}",
            &packet[14..],
            &expected[14..]
        );
        Ok(())
    }
}

/// The frame with other addresses and ports.
pub fn rewritten(frame: &Frame, src: SocketAddr, dst: SocketAddr) -> Frame {
    let mut frame = Frame {
        src: src.ip(),
        dst: dst.ip(),
        ..frame.clone()
    };
    match &mut frame.l4 {
        L4::Tcp {
            src_port, dst_port, ..
        }
        | L4::Udp {
            src_port, dst_port, ..
        } => {
            (*src_port, *dst_port) = (src.port(), dst.port());
        }
        L4::Icmp { .. } | L4::Raw { .. } => {}
    }
    frame
}
