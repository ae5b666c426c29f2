//! `overlay`: how packets get to the other node: the kernel's ways, ours, and a process with a TUN device.

use anyhow::Result;
use node_agent_maps::Dataplane;
use node_agent_overlay::Mode;

use crate::Options;
use crate::cell::{Cell, OTHER_NODE, Underlay};
use crate::fairlead::{Setup, install};
use crate::metric::Metric;
use crate::run::Bench;
use crate::session::{Comparison, Kind, Session};
use crate::way::Way;

const BENCH: &str = "overlay";
const AGAINST_ROUTING: Kind = Kind::Target(&[
    (Metric::RequestResponse, 0.92),
    (Metric::Connect, 0.95),
    (Metric::PacketCpu, 0.77),
    (Metric::LargePacketCpu, 0.77),
    (Metric::UnsegmentedTime, 0.87),
]);
const AGAINST_KERNEL_VXLAN: Kind =
    Kind::Target(&[(Metric::PacketCpu, 0.40), (Metric::LargePacketCpu, 0.40)]);

/// No worse in anything.
const AGAINST_VXLAN: Kind = Kind::Target(&[
    (Metric::RequestResponse, 1.0),
    (Metric::Connect, 1.0),
    (Metric::PacketCpu, 1.0),
    (Metric::LargePacketCpu, 1.0),
    (Metric::UdpPacket, 1.0),
    (Metric::UnsegmentedTime, 1.0),
    (Metric::StreamTime, 1.0),
]);
/// Fifteen times the throughput.
const AGAINST_TUN_PROXY: Kind = Kind::Target(&[(Metric::StreamTime, 1.0 / 15.0)]);

/// Every cell, with the same addresses in each.
#[derive(Debug)]
struct Cells {
    routing: Cell,
    routing_again: Cell,
    direct: Cell,
    kernel_vxlan: Cell,
    kernel_vxlan_again: Cell,
    vxlan: Cell,
    udp: Cell,
    tun_proxy: Cell,
    /// Ours in `direct`, `vxlan` and `udp`.
    dataplanes: [Vec<Dataplane>; 3],
}

impl Cells {
    fn new() -> Result<Self> {
        let mut cells = Self {
            routing: Cell::new(Underlay::Routing)?,
            routing_again: Cell::new(Underlay::Routing)?,
            direct: Cell::new(Underlay::Routing)?,
            kernel_vxlan: Cell::new(Underlay::KernelVxlan)?,
            kernel_vxlan_again: Cell::new(Underlay::KernelVxlan)?,
            vxlan: Cell::new(Underlay::Overlay)?,
            udp: Cell::new(Underlay::UdpOverlay)?,
            tun_proxy: Cell::new(Underlay::TunProxy)?,
            dataplanes: Default::default(),
        };
        cells.dataplanes = [
            install(&cells.direct, &Setup::new("direct", Mode::Direct))?,
            install(&cells.vxlan, &Setup::new("vxlan", Mode::Vxlan))?,
            install(&cells.udp, &Setup::new("udp", Mode::Udp))?,
        ];
        Ok(cells)
    }

    fn session(&self) -> Session<'_> {
        let way = |name, cell| Way::new(name, cell, OTHER_NODE.v4().into(), OTHER_NODE);
        let [direct, vxlan, udp] = &self.dataplanes;
        Session {
            ways: vec![
                way("routing", &self.routing),
                way("routing-again", &self.routing_again),
                way("direct", &self.direct).by(direct),
                way("kernel-vxlan", &self.kernel_vxlan),
                way("kernel-vxlan-again", &self.kernel_vxlan_again),
                way("vxlan", &self.vxlan).by(vxlan),
                way("udp", &self.udp).by(udp),
                way("tun-proxy", &self.tun_proxy),
            ],
            comparisons: vec![
                Comparison::new("routing-again", "routing", Kind::Noise),
                Comparison::new("kernel-vxlan-again", "kernel-vxlan", Kind::Noise),
                Comparison::new("direct", "routing", Kind::Plain),
                Comparison::new("kernel-vxlan", "routing", Kind::Plain),
                Comparison::new("vxlan", "routing", AGAINST_ROUTING),
                Comparison::new("vxlan", "kernel-vxlan", AGAINST_KERNEL_VXLAN),
                Comparison::new("udp", "routing", Kind::Plain),
                Comparison::new("udp", "vxlan", AGAINST_VXLAN),
                Comparison::new("udp", "tun-proxy", AGAINST_TUN_PROXY),
                Comparison::new("tun-proxy", "routing", Kind::Plain),
            ],
            metrics: &[
                Metric::RequestResponse,
                Metric::Connect,
                Metric::PacketCpu,
                Metric::LargePacketCpu,
                Metric::UdpPacket,
                Metric::UnsegmentedTime,
                Metric::StreamTime,
            ],
            fewer_rounds: 2,
        }
    }
}

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench::start(BENCH, options)?;
    let cells = Cells::new()?;
    bench.measure(&[cells.session()])?;
    bench.finish_by_metric()
}
