//! `smoke`: services through our programs against plain routing, our overlay against the kernel's vxlan.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use node_agent_overlay::Mode;

use crate::Options;
use crate::bpf;
use crate::cell::{Cell, OTHER_NODE, PodAddress, SAME_NODE, Underlay};
use crate::cgroup::Cgroup;
use crate::fairlead::{cluster_ips, install, private_bpffs};
use crate::report::{self, Row};
use crate::session::{ATTEMPTS, Comparison, Kind, Metric, NOISE_LIMIT, Session, Way};

const BENCH: &str = "smoke";
const SERVICE: Kind = Kind::Target([0.95, 1.05, 0.85]);
const OVERLAY: Kind = Kind::Target([0.75, 0.80, 0.50]);

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
}

impl Cells {
    pub fn new() -> Result<Self> {
        let cells = Self {
            routing: Cell::new(Underlay::Routing)?,
            routing_again: Cell::new(Underlay::Routing)?,
            service: Cell::new(Underlay::Routing)?,
            socket: Cell::new(Underlay::Routing)?,
            vxlan: Cell::new(Underlay::KernelVxlan)?,
            vxlan_again: Cell::new(Underlay::KernelVxlan)?,
            overlay: Cell::new(Underlay::Overlay)?,
            cgroup: Cgroup::new("client")?,
        };
        install(&cells.service, "service", Mode::Direct, None)?;
        install(&cells.socket, "socket", Mode::Direct, Some(&cells.cgroup))?;
        install(&cells.overlay, "overlay", Mode::Vxlan, None)?;
        Ok(cells)
    }

    /// To the pod on the other node, the kernel's ways and ours.
    pub fn other_node(&self) -> Session<'_> {
        let pod = OTHER_NODE.v4().into();
        let service = cluster_ips(OTHER_NODE)[0];
        let socket = way("cluster-ip-socket", &self.socket, service, OTHER_NODE);
        Session {
            ways: vec![
                way("routing", &self.routing, pod, OTHER_NODE),
                way("routing-again", &self.routing_again, pod, OTHER_NODE),
                way("cluster-ip", &self.service, service, OTHER_NODE),
                Way {
                    cgroup: Some(&self.cgroup),
                    ..socket
                },
                way("kernel-vxlan", &self.vxlan, pod, OTHER_NODE),
                way("kernel-vxlan-again", &self.vxlan_again, pod, OTHER_NODE),
                way("overlay", &self.overlay, pod, OTHER_NODE),
                way("overlay-cluster-ip", &self.overlay, service, OTHER_NODE),
            ],
            comparisons: const {
                &[
                    compare("routing-again", "routing", Kind::Noise),
                    compare("kernel-vxlan-again", "kernel-vxlan", Kind::Noise),
                    compare("cluster-ip", "routing", SERVICE),
                    compare("cluster-ip-socket", "routing", SERVICE),
                    compare("overlay", "kernel-vxlan", OVERLAY),
                    compare("overlay", "routing", Kind::Plain),
                    compare("overlay-cluster-ip", "kernel-vxlan", Kind::Plain),
                    compare("kernel-vxlan", "routing", Kind::Plain),
                ]
            },
            metrics: &[
                Metric::RequestResponse,
                Metric::Connect,
                Metric::PacketCpu,
                Metric::StreamTime,
            ],
        }
    }

    /// To the pod beside the client.
    pub fn same_node(&self) -> Session<'_> {
        let pod = SAME_NODE.v4().into();
        let service = cluster_ips(SAME_NODE)[0];
        Session {
            ways: vec![
                way("routing/same-node", &self.routing, pod, SAME_NODE),
                way(
                    "routing-again/same-node",
                    &self.routing_again,
                    pod,
                    SAME_NODE,
                ),
                way("cluster-ip/same-node", &self.service, service, SAME_NODE),
            ],
            comparisons: const {
                &[
                    compare("routing-again/same-node", "routing/same-node", Kind::Noise),
                    compare("cluster-ip/same-node", "routing/same-node", Kind::Plain),
                ]
            },
            metrics: &[Metric::RequestResponse, Metric::Connect, Metric::PacketCpu],
        }
    }

    /// To the pod on the other node by IPv6; the overlay's underlay is IPv4.
    pub fn ipv6(&self) -> Session<'_> {
        let pod = OTHER_NODE.v6().into();
        let service = cluster_ips(OTHER_NODE)[1];
        Session {
            ways: vec![
                way("routing/ipv6", &self.routing, pod, OTHER_NODE),
                way("routing-again/ipv6", &self.routing_again, pod, OTHER_NODE),
                way("cluster-ip/ipv6", &self.service, service, OTHER_NODE),
                way("overlay/ipv6", &self.overlay, pod, OTHER_NODE),
                way(
                    "overlay-cluster-ip/ipv6",
                    &self.overlay,
                    service,
                    OTHER_NODE,
                ),
            ],
            comparisons: const {
                &[
                    compare("routing-again/ipv6", "routing/ipv6", Kind::Noise),
                    compare("cluster-ip/ipv6", "routing/ipv6", Kind::Plain),
                    compare("overlay-cluster-ip/ipv6", "routing/ipv6", Kind::Plain),
                    compare("overlay/ipv6", "routing/ipv6", Kind::Plain),
                ]
            },
            metrics: &[Metric::RequestResponse, Metric::Connect, Metric::PacketCpu],
        }
    }
}

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    bpf::require_jit()?;
    if bpf::stats_are_on() {
        bail!("kernel.bpf_stats_enabled is 1, which costs 2 %: set it to 0");
    }
    prepare(options)?;
    let cells = Cells::new()?;
    eprintln!("cells after {:.1} s", start.elapsed().as_secs_f64());
    let mut rows = Vec::new();
    let mut rejected = Vec::new();
    for session in [cells.other_node(), cells.same_node(), cells.ipv6()] {
        for &metric in session.metrics {
            let outcome = session.measure(BENCH, metric, options.quick)?;
            if outcome.quiet {
                rows.extend(outcome.rows);
            } else if session.has_target(metric) {
                rejected.push(metric.name());
            } else {
                eprintln!(
                    "{} from {} is left out: too much noise",
                    metric.name(),
                    session.ways[0].name
                );
            }
        }
    }
    finish(options, &rows, &rejected, start)
}

/// One core for this process and every server that it starts, and a bpffs of its own.
pub fn prepare(options: &Options) -> Result<()> {
    let cpu = match options.cpu {
        Some(cpu) => cpu,
        None => std::thread::available_parallelism()?.get() - 1,
    };
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("--cpu {cpu}: there is no such core"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("--cpu {cpu}: cannot run there"))?;
    private_bpffs()
}

/// Prints, writes, and fails where a noise row or a target says so.
fn finish(options: &Options, rows: &[Row], rejected: &[&str], start: Instant) -> Result<()> {
    print!("{}", report::table(rows));
    eprintln!(
        "{} rows in {:.0} s",
        rows.len(),
        start.elapsed().as_secs_f64()
    );
    if let Some(path) = &options.json {
        report::write_json(path, rows)?;
    }
    if !rejected.is_empty() {
        bail!(
            "rejected: the noise row of {} was off by more than {:.0} % in each of {ATTEMPTS} runs: quieten the \
             machine and run again",
            rejected.join(", "),
            NOISE_LIMIT * 100.0
        );
    }
    let missed: Vec<String> = rows
        .iter()
        .filter(|row| !row.meets_target())
        .map(|row| format!("{} {} {:.3}", row.case, row.metric, row.ratio))
        .collect();
    if !missed.is_empty() {
        bail!("targets missed: {}", missed.join(", "));
    }
    Ok(())
}

fn way<'a>(name: &'static str, cell: &'a Cell, to: IpAddr, backend: PodAddress) -> Way<'a> {
    Way {
        name,
        cell,
        to,
        backend,
        cgroup: None,
    }
}

const fn compare(case: &'static str, versus: &'static str, kind: Kind) -> Comparison {
    Comparison { case, versus, kind }
}
