//! One way from a client to a backend, and what a slice of each metric does on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context, Result};
use node_agent_maps::{Dataplane, MapFamily};

use crate::cell::{CLIENT, Cell, PodAddress, SAME_NODE, Underlay, uplink_mac};
use crate::cgroup::Cgroup;
use crate::client::{self, Connects, Datagrams, Measured, Requests, Stream};
use crate::frame::{Frame, SMALL, SOURCE_PORT, client};
use crate::interleave::Variant;
use crate::live_frames::{Flows, LiveFrames, Sink};
use crate::metric::Metric;
use crate::netns::Netns;
use crate::server::{ANSWER_PORT, CLOSE_PORT, DATAGRAM_PORT, PACKET_PORT, SINK_PORT};

/// Somebody outside of the cluster, on the underlay.
pub const OUTSIDER: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 99);
const LARGE: usize = 1400;
/// Source and destination of its frames.
pub const OUTSIDER_MACS: [[u8; 6]; 2] = [[2, 0xee, 0, 0, 0, 1], uplink_mac(1)];
/// Packets of a slice of [`Metric::PacketCpu`].
pub const PACKETS: u32 = 1000;

/// From where the packets come, and how the backend is addressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The client pod.
    Client,
    /// From outside, by node 1's uplink, to this UDP port: only for what needs no socket.
    Outside { port: u16 },
}

/// One way from the client to a backend.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    pub name: String,
    pub cell: &'a Cell,
    /// The address that the client asks for.
    pub to: IpAddr,
    /// The pod that answers.
    pub backend: PodAddress,
    pub source: Source,
    /// The client connects as a member of this cgroup, whose programs translate the address once.
    pub cgroup: Option<&'a Cgroup>,
    /// Ours on both nodes, or none.
    pub dataplanes: &'a [Dataplane],
}

/// The sinks of a session, one a pod: of two in one pod only the first would count.
#[derive(Debug, Default)]
pub struct Sinks {
    sinks: Vec<(*const Netns, Rc<Sink>)>,
}

impl Sinks {
    fn of(&mut self, pod: &Netns, to: IpAddr) -> Result<Rc<Sink>> {
        let key = std::ptr::from_ref(pod);
        if let Some((_, sink)) = self.sinks.iter().find(|(pod, _)| *pod == key) {
            return Ok(Rc::clone(sink));
        }
        let sink = Rc::new(Sink::new(pod, to)?);
        self.sinks.push((key, Rc::clone(&sink)));
        Ok(sink)
    }
}

impl<'a> Way<'a> {
    /// A way of the kernel's, from the client pod.
    pub fn new(name: impl Into<String>, cell: &'a Cell, to: IpAddr, backend: PodAddress) -> Self {
        Self {
            name: name.into(),
            cell,
            to,
            backend,
            source: Source::Client,
            cgroup: None,
            dataplanes: &[],
        }
    }

    /// By our programs on both nodes.
    #[must_use]
    pub fn by(self, dataplanes: &'a [Dataplane]) -> Self {
        Self { dataplanes, ..self }
    }

    /// From a process in the cgroup.
    #[must_use]
    pub fn inside(self, cgroup: &'a Cgroup) -> Self {
        Self {
            cgroup: Some(cgroup),
            ..self
        }
    }

    /// Whether the metric says something about this way.
    pub fn has(&self, metric: Metric) -> bool {
        match metric {
            // Behind the socket programs it is a packet to a pod like any other.
            Metric::NewFlowCpu if self.cgroup.is_some() => false,
            // Conntrack would not take the 60,000 for established, and soon forget them.
            Metric::ManyFlowsCpu if self.cell.netfilter => false,
            // Nobody answers there, so that it would never be established.
            Metric::PacketCpu if self.cell.netfilter && self.source != Source::Client => false,
            // The proxy's own CPU time would be left out.
            metric if metric.is_cpu() => self.cell.underlay != Underlay::TunProxy,
            _ => self.source == Source::Client,
        }
    }

    /// What one slice does: a few milliseconds of one metric.
    pub fn variant(&self, metric: Metric, sinks: &mut Sinks) -> Result<Variant<'a>> {
        let (netns, cgroup) = (&self.cell.client, self.cgroup);
        let name = self.name.clone();
        let at = |port| SocketAddr::new(self.to, port);
        let connects = |measured| {
            let mut connects = Connects::new(netns, at(CLOSE_PORT), measured);
            move || {
                let _member = cgroup.map(Cgroup::join).transpose()?;
                connects.slice(20)
            }
        };
        let _member = cgroup.map(Cgroup::join).transpose()?;
        Ok(match metric {
            Metric::RequestResponse => {
                let mut requests = Requests::new(netns, at(ANSWER_PORT))?;
                Variant::new(name, move || requests.slice(100))
            }
            Metric::Connect => Variant::new(name, connects(Measured::Connect)),
            Metric::Transaction => Variant::new(name, connects(Measured::Whole)),
            Metric::StreamTime => {
                let mut stream = Stream::new(netns, at(SINK_PORT))?;
                Variant::new(name, move || stream.slice(16))
            }
            Metric::UnsegmentedTime => {
                // A connection keeps what the device can do when it is opened.
                netns.ip("link set eth0 gso_max_segs 1")?;
                let stream = Stream::new(netns, at(SINK_PORT));
                netns.ip("link set eth0 gso_max_segs 65535")?;
                let mut stream = stream?;
                Variant::new(name, move || stream.slice(4))
            }
            Metric::UdpPacket => {
                let mut datagrams = Datagrams::new(netns, at(DATAGRAM_PORT))?;
                Variant::new(name, move || datagrams.slice())
            }
            Metric::PacketCpu => self.frames(sinks, SMALL, Flows::One, PACKETS)?,
            Metric::LargePacketCpu => self.frames(sinks, LARGE, Flows::One, 500)?,
            Metric::NewFlowCpu => self.frames(sinks, SMALL, Flows::New, 200)?,
            Metric::ManyFlowsCpu => self.frames(sinks, SMALL, Flows::Many, 200)?,
        })
    }

    /// Slices of `count` live frames, all of which must arrive.
    fn frames(
        &self,
        sinks: &mut Sinks,
        len: usize,
        flows: Flows,
        count: u32,
    ) -> Result<Variant<'a>> {
        for dataplane in self.dataplanes {
            forget_connections(dataplane)?;
        }
        if self.cell.netfilter && flows == Flows::One && self.source == Source::Client {
            // Conntrack takes a flow for established when it has seen an answer.
            let from = client(self.to, CLIENT);
            client::exchange(&self.cell.client, from, self.packet_to())
                .context("open the flow with an answered packet")?;
        }
        let (device, frame) = match self.source {
            Source::Client => (
                CLIENT.host_device(),
                Frame::from_client(self.packet_to(), len),
            ),
            Source::Outside { .. } => {
                let from = SocketAddr::new(OUTSIDER.into(), SOURCE_PORT);
                let frame = Frame::new(OUTSIDER_MACS, from, self.packet_to(), len);
                ("uplink".to_owned(), frame)
            }
        };
        let sink = sinks.of(self.backend_netns(), self.to)?;
        let mut frames = LiveFrames::new(self.cell.node(CLIENT.node), &device, frame, flows)?;
        frames.require_delivery(&sink, count)?;
        Ok(Variant::new(self.name.clone(), move || {
            frames.slice(count, &sink)
        }))
    }

    /// What the packets carry: behind the socket programs they go to the backend itself.
    pub fn packet_to(&self) -> SocketAddr {
        if let Source::Outside { port } = self.source {
            return SocketAddr::new(self.to, port);
        }
        let ip = match self.cgroup {
            None => self.to,
            Some(_) => client(self.to, self.backend).ip(),
        };
        SocketAddr::new(ip, PACKET_PORT)
    }

    pub fn backend_netns(&self) -> &'a Netns {
        if self.backend == SAME_NODE {
            &self.cell.same_node
        } else {
            &self.cell.other_node
        }
    }
}

/// Empties the connection tables, so that every flow is new again.
pub fn forget_connections(dataplane: &Dataplane) -> Result<()> {
    fn forget<A: MapFamily>(dataplane: &Dataplane) -> Result<()> {
        let conns = &A::of(dataplane.maps()).conns;
        for conn in conns.entries() {
            conns.remove(&conn.original)?;
        }
        Ok(())
    }
    forget::<ebpf_abi::Addr4>(dataplane)?;
    forget::<ebpf_abi::Addr6>(dataplane)
}
