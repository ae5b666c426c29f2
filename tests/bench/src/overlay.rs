//! `overlay`: how packets get to the other node: the kernel's ways, ours, a process with a TUN device, and a real flanneld's
//! where one is given.

use std::path::Path;

use anyhow::Result;
use node_agent_maps::Dataplane;
use node_agent_overlay::Mode;

use crate::Options;
use crate::cell::{Cell, OTHER_NODE, Underlay};
use crate::fairlead::{Setup, install};
use crate::flanneld::{Flanneld, private_run};
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

/// A real flanneld's ways: which of its backends, and whether its rules lie on the nodes.
const FLANNELD: [(&str, Underlay, bool); 3] = [
    ("flanneld-vxlan", Underlay::KernelVxlan, false),
    ("flanneld-vxlan-rules", Underlay::KernelVxlan, true),
    ("flanneld-udp", Underlay::TunProxy, false),
];

/// What they are for: whether the cells without them are like flannel's, and what ours are beside flannel's own.
const BESIDE_FLANNELD: [(&str, &str); 6] = [
    ("flanneld-vxlan", "kernel-vxlan"),
    ("flanneld-vxlan-rules", "kernel-vxlan"),
    ("vxlan", "flanneld-vxlan"),
    ("vxlan", "flanneld-vxlan-rules"),
    ("flanneld-udp", "tun-proxy"),
    ("udp", "flanneld-udp"),
];

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
    /// Names and cells of [`FLANNELD`], or none.
    flanneld: Vec<(&'static str, Cell)>,
    /// Ours in `direct`, `vxlan` and `udp`.
    dataplanes: [Vec<Dataplane>; 3],
}

impl Cells {
    fn new(flanneld: Option<&Path>) -> Result<Self> {
        let mut cells = Self {
            routing: Cell::new(Underlay::Routing)?,
            routing_again: Cell::new(Underlay::Routing)?,
            direct: Cell::new(Underlay::Routing)?,
            kernel_vxlan: Cell::new(Underlay::KernelVxlan)?,
            kernel_vxlan_again: Cell::new(Underlay::KernelVxlan)?,
            vxlan: Cell::new(Underlay::Overlay)?,
            udp: Cell::new(Underlay::UdpOverlay)?,
            tun_proxy: Cell::new(Underlay::TunProxy)?,
            flanneld: flanneld.map_or_else(|| Ok(Vec::new()), flanneld_cells)?,
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

    /// Beside a real flanneld's cells, if there are any.
    fn with_flanneld<'a>(&'a self, mut session: Session<'a>) -> Session<'a> {
        if !self.flanneld.is_empty() {
            let ways = self.flanneld.iter().map(|(name, cell)| way(name, cell));
            session.ways.extend(ways);
            let plain = |(case, versus)| Comparison::new(case, versus, Kind::Plain);
            session.comparisons.extend(BESIDE_FLANNELD.map(plain));
        }
        session
    }
}

fn way<'a>(name: &str, cell: &'a Cell) -> Way<'a> {
    Way::new(name, cell, OTHER_NODE.v4().into(), OTHER_NODE)
}

fn flanneld_cells(program: &Path) -> Result<Vec<(&'static str, Cell)>> {
    private_run()?;
    let cell = |&(name, underlay, rules): &(&'static str, Underlay, bool)| {
        let flanneld = Flanneld {
            program,
            name,
            underlay,
            rules,
        };
        Ok((name, flanneld.cell()?))
    };
    FLANNELD.iter().map(cell).collect()
}

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options, flanneld: Option<&Path>) -> Result<()> {
    let mut bench = Bench::start(BENCH, options)?;
    let cells = Cells::new(flanneld)?;
    bench.measure(&[cells.with_flanneld(cells.session())])?;
    bench.finish_by_metric()
}
