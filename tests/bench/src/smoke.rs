//! `smoke`: services through our programs against plain routing, our overlay against the kernel's vxlan.

use anyhow::Result;
use node_agent_maps::Dataplane;
use node_agent_overlay::Mode;

use crate::Options;
use crate::cell::{Cell, OTHER_NODE, SAME_NODE, Underlay};
use crate::cgroup::Cgroup;
use crate::fairlead::{Setup, cluster_ips, install};
use crate::metric::Metric;
use crate::run::Bench;
use crate::session::{Comparison, Kind, Session};
use crate::way::Way;

const BENCH: &str = "smoke";
const SERVICE: Kind = Kind::Target(&[
    (Metric::RequestResponse, 0.95),
    (Metric::Connect, 1.05),
    (Metric::PacketCpu, 0.85),
]);
const OVERLAY: Kind = Kind::Target(&[
    (Metric::RequestResponse, 0.75),
    (Metric::Connect, 0.80),
    (Metric::PacketCpu, 0.50),
]);
const ALL_FAMILIES: &[Metric] = &[Metric::RequestResponse, Metric::Connect, Metric::PacketCpu];

/// Every cell is alive at once, with the same addresses.
#[derive(Debug)]
pub struct Cells {
    pub routing: Cell,
    pub routing_again: Cell,
    /// Our programs, packets routed; services are translated packet by packet.
    pub service: Cell,
    /// The same, and the client connects in `cgroup`.
    pub socket: Cell,
    pub vxlan: Cell,
    pub vxlan_again: Cell,
    pub overlay: Cell,
    pub cgroup: Cgroup,
    /// Of the three cells with our programs.
    dataplanes: [Vec<Dataplane>; 3],
}

impl Cells {
    pub fn new() -> Result<Self> {
        let mut cells = Self {
            routing: Cell::new(Underlay::Routing)?,
            routing_again: Cell::new(Underlay::Routing)?,
            service: Cell::new(Underlay::Routing)?,
            socket: Cell::new(Underlay::Routing)?,
            vxlan: Cell::new(Underlay::KernelVxlan)?,
            vxlan_again: Cell::new(Underlay::KernelVxlan)?,
            overlay: Cell::new(Underlay::Overlay)?,
            cgroup: Cgroup::new("client")?,
            dataplanes: Default::default(),
        };
        let socket = Setup {
            cgroup: Some(&cells.cgroup),
            ..Setup::new("socket", Mode::Direct)
        };
        cells.dataplanes = [
            install(&cells.service, &Setup::new("service", Mode::Direct))?,
            install(&cells.socket, &socket)?,
            install(&cells.overlay, &Setup::new("overlay", Mode::Vxlan))?,
        ];
        Ok(cells)
    }

    /// To the pod on the other node, the kernel's ways and ours.
    pub fn other_node(&self) -> Session<'_> {
        let pod = OTHER_NODE.v4().into();
        let service = cluster_ips(OTHER_NODE)[0];
        let way = |name, cell, to| Way::new(name, cell, to, OTHER_NODE);
        let [by_packet, by_socket, by_overlay] = &self.dataplanes;
        Session {
            ways: vec![
                way("routing", &self.routing, pod),
                way("routing-again", &self.routing_again, pod),
                way("cluster-ip", &self.service, service).by(by_packet),
                way("cluster-ip-socket", &self.socket, service)
                    .by(by_socket)
                    .inside(&self.cgroup),
                way("kernel-vxlan", &self.vxlan, pod),
                way("kernel-vxlan-again", &self.vxlan_again, pod),
                way("overlay", &self.overlay, pod).by(by_overlay),
                way("overlay-cluster-ip", &self.overlay, service).by(by_overlay),
            ],
            comparisons: vec![
                Comparison::new("routing-again", "routing", Kind::Noise),
                Comparison::new("kernel-vxlan-again", "kernel-vxlan", Kind::Noise),
                Comparison::new("cluster-ip", "routing", SERVICE),
                Comparison::new("cluster-ip-socket", "routing", SERVICE),
                Comparison::new("overlay", "kernel-vxlan", OVERLAY),
                Comparison::new("overlay", "routing", Kind::Plain),
                Comparison::new("overlay-cluster-ip", "kernel-vxlan", Kind::Plain),
                Comparison::new("kernel-vxlan", "routing", Kind::Plain),
            ],
            metrics: &[
                Metric::RequestResponse,
                Metric::Connect,
                Metric::PacketCpu,
                Metric::StreamTime,
            ],
            fewer_rounds: 1,
        }
    }

    /// To the pod beside the client.
    pub fn same_node(&self) -> Session<'_> {
        let pod = SAME_NODE.v4().into();
        let service = cluster_ips(SAME_NODE)[0];
        let way = |name, cell, to| Way::new(name, cell, to, SAME_NODE);
        let [by_packet, ..] = &self.dataplanes;
        Session {
            ways: vec![
                way("routing/same-node", &self.routing, pod),
                way("routing-again/same-node", &self.routing_again, pod),
                way("cluster-ip/same-node", &self.service, service).by(by_packet),
            ],
            comparisons: vec![
                Comparison::new("routing-again/same-node", "routing/same-node", Kind::Noise),
                Comparison::new("cluster-ip/same-node", "routing/same-node", Kind::Plain),
            ],
            metrics: ALL_FAMILIES,
            fewer_rounds: 1,
        }
    }

    /// To the pod on the other node by IPv6; the overlay's underlay is IPv4.
    pub fn ipv6(&self) -> Session<'_> {
        let pod = OTHER_NODE.v6().into();
        let service = cluster_ips(OTHER_NODE)[1];
        let way = |name, cell, to| Way::new(name, cell, to, OTHER_NODE);
        let plain = |case| Comparison::new(case, "routing/ipv6", Kind::Plain);
        let [by_packet, _, by_overlay] = &self.dataplanes;
        Session {
            ways: vec![
                way("routing/ipv6", &self.routing, pod),
                way("routing-again/ipv6", &self.routing_again, pod),
                way("cluster-ip/ipv6", &self.service, service).by(by_packet),
                way("overlay/ipv6", &self.overlay, pod).by(by_overlay),
                way("overlay-cluster-ip/ipv6", &self.overlay, service).by(by_overlay),
            ],
            comparisons: vec![
                Comparison::new("routing-again/ipv6", "routing/ipv6", Kind::Noise),
                plain("cluster-ip/ipv6"),
                plain("overlay-cluster-ip/ipv6"),
                plain("overlay/ipv6"),
            ],
            metrics: ALL_FAMILIES,
            fewer_rounds: 1,
        }
    }
}

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench::start(BENCH, options)?;
    let cells = Cells::new()?;
    bench.measure(&[cells.other_node(), cells.same_node(), cells.ipv6()])?;
    bench.finish()
}
