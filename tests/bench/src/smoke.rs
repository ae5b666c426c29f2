//! `smoke`: services through our programs against plain routing, our overlay against the kernel's vxlan.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::Options;
use crate::bpf;
use crate::cell::{Cell, OTHER_NODE, PodAddress, SAME_NODE, Underlay};
use crate::client::{Connects, Requests, Stream};
use crate::interleave::{Samples, Variant, interleave};
use crate::live_frames::{LiveFrames, Sink, require_delivery};
use crate::report::{self, Row};
use crate::server::{ANSWER_PORT, CLOSE_PORT, PACKET_PORT, SINK_PORT};

const BENCH: &str = "smoke";
/// How far the same thing measured twice may differ; beyond it the run says nothing.
const NOISE_LIMIT: f64 = 0.02;
/// How often a session is tried until its noise rows are good.
const ATTEMPTS: usize = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Metric {
    RequestResponse,
    Connect,
    PacketCpu,
    StreamTime,
}

/// One way from the client to a backend.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    name: &'static str,
    cell: &'a Cell,
    /// The address that the client asks for.
    to: IpAddr,
    /// The pod that answers.
    backend: PodAddress,
}

/// A case, what it is compared with, and for noise rows nothing but the same thing again.
#[derive(Clone, Copy, Debug)]
struct Comparison {
    case: &'static str,
    versus: &'static str,
    /// The same thing twice.
    noise: bool,
    /// Greatest ratio of request/response, connect and packet CPU.
    targets: Option<[f64; 3]>,
}

/// Ways that are measured in turns, and the rows that are made of them.
#[derive(Debug)]
struct Session<'a> {
    ways: Vec<Way<'a>>,
    comparisons: &'static [Comparison],
    metrics: &'static [Metric],
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::RequestResponse => "request_response_p50",
            Self::Connect => "connect_p50",
            Self::PacketCpu => "packet_cpu",
            Self::StreamTime => "stream_time",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::StreamTime => "ns/KiB",
            _ => "ns",
        }
    }

    /// Rounds that make the noise row hold within half a percent on a quiet machine (streams: a few percent).
    fn rounds(self) -> usize {
        match self {
            Self::RequestResponse => 400,
            Self::Connect => 300,
            Self::PacketCpu => 400,
            Self::StreamTime => 500,
        }
    }

    fn target(self, comparison: &Comparison) -> Option<f64> {
        let [request_response, connect, packet_cpu] = comparison.targets?;
        match self {
            Self::RequestResponse => Some(request_response),
            Self::Connect => Some(connect),
            Self::PacketCpu => Some(packet_cpu),
            Self::StreamTime => None,
        }
    }
}

const fn compare(case: &'static str, versus: &'static str) -> Comparison {
    Comparison {
        case,
        versus,
        noise: false,
        targets: None,
    }
}

const fn target(case: &'static str, versus: &'static str, targets: [f64; 3]) -> Comparison {
    Comparison {
        case,
        versus,
        noise: false,
        targets: Some(targets),
    }
}

const fn noise(case: &'static str, versus: &'static str) -> Comparison {
    Comparison {
        case,
        versus,
        noise: true,
        targets: None,
    }
}

const CROSS_NODE: &[Comparison] = &[
    noise("routing-again", "routing"),
    noise("kernel-vxlan-again", "kernel-vxlan"),
    compare("kernel-vxlan", "routing"),
];
const SAME_NODE_ROWS: &[Comparison] = &[noise("routing-again/same-node", "routing/same-node")];
const IPV6_ROWS: &[Comparison] = &[noise("routing-again/ipv6", "routing/ipv6")];

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    bpf::require_jit()?;
    if bpf::stats_are_on() {
        bail!("kernel.bpf_stats_enabled is 1, which costs 2 %: set it to 0");
    }
    pin(options.cpu)?;
    let routing = Cell::new(Underlay::Routing)?;
    let routing_again = Cell::new(Underlay::Routing)?;
    let vxlan = Cell::new(Underlay::KernelVxlan)?;
    let vxlan_again = Cell::new(Underlay::KernelVxlan)?;
    let other_node_v4 = IpAddr::V4(OTHER_NODE.v4());
    let other_node_v6 = IpAddr::V6(OTHER_NODE.v6());
    let same_node_v4 = IpAddr::V4(SAME_NODE.v4());
    let way = |name, cell, to, backend| Way {
        name,
        cell,
        to,
        backend,
    };
    let sessions = [
        Session {
            ways: vec![
                way("routing", &routing, other_node_v4, OTHER_NODE),
                way("routing-again", &routing_again, other_node_v4, OTHER_NODE),
                way("kernel-vxlan", &vxlan, other_node_v4, OTHER_NODE),
                way(
                    "kernel-vxlan-again",
                    &vxlan_again,
                    other_node_v4,
                    OTHER_NODE,
                ),
            ],
            comparisons: CROSS_NODE,
            metrics: &[
                Metric::RequestResponse,
                Metric::Connect,
                Metric::PacketCpu,
                Metric::StreamTime,
            ],
        },
        Session {
            ways: vec![
                way("routing/same-node", &routing, same_node_v4, SAME_NODE),
                way(
                    "routing-again/same-node",
                    &routing_again,
                    same_node_v4,
                    SAME_NODE,
                ),
            ],
            comparisons: SAME_NODE_ROWS,
            metrics: &[Metric::RequestResponse, Metric::PacketCpu],
        },
        Session {
            ways: vec![
                way("routing/ipv6", &routing, other_node_v6, OTHER_NODE),
                way(
                    "routing-again/ipv6",
                    &routing_again,
                    other_node_v6,
                    OTHER_NODE,
                ),
            ],
            comparisons: IPV6_ROWS,
            metrics: &[Metric::RequestResponse, Metric::PacketCpu],
        },
    ];
    let mut rows = Vec::new();
    let mut rejected = Vec::new();
    for session in &sessions {
        for &metric in session.metrics {
            let (measured, quiet) = measure_until_quiet(session, metric, options)?;
            rows.extend(measured);
            if !quiet {
                rejected.push(metric.name());
            }
        }
    }
    finish(options, &rows, &rejected, start)
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
            "rejected: the noise row of {} was off by more than {:.0} % in each of {ATTEMPTS} runs: quieten the machine",
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

/// Measures a session until its noise rows are within the limit; the last try's rows and whether they are.
fn measure_until_quiet(
    session: &Session<'_>,
    metric: Metric,
    options: &Options,
) -> Result<(Vec<Row>, bool)> {
    let mut attempt = 1;
    loop {
        let samples = measure(session, metric, options)?;
        let mut rows = Vec::new();
        let mut worst = 0.0_f64;
        for comparison in session.comparisons {
            let row = Row::new(
                BENCH,
                metric.name(),
                metric.unit(),
                &samples,
                comparison.case,
                comparison.versus,
            )?;
            if comparison.noise {
                worst = worst.max((row.ratio - 1.0).abs());
            }
            rows.push(Row {
                target: metric.target(comparison),
                ..row
            });
        }
        let quiet = worst <= NOISE_LIMIT;
        eprintln!(
            "{:<20} {:<12} noise {:.1} %{}",
            metric.name(),
            session.ways[0].name,
            worst * 100.0,
            if quiet { "" } else { ": rejected" }
        );
        if quiet || attempt == ATTEMPTS {
            return Ok((rows, quiet));
        }
        attempt += 1;
    }
}

fn measure(session: &Session<'_>, metric: Metric, options: &Options) -> Result<Samples> {
    let rounds = if options.quick {
        metric.rounds() / 4
    } else {
        metric.rounds()
    };
    let mut sinks = Vec::new();
    let mut variants = Vec::new();
    for way in &session.ways {
        let describe = || format!("prepare {} for {}", way.name, metric.name());
        let (variant, sink) = way.variant(metric).with_context(describe)?;
        variants.push(variant);
        sinks.extend(sink);
    }
    interleave(&mut variants, rounds)
}

impl<'a> Way<'a> {
    /// What one slice does: a few milliseconds of one metric.
    fn variant(&self, metric: Metric) -> Result<(Variant<'a>, Option<Sink>)> {
        let client = &self.cell.client;
        let at = |port| SocketAddr::new(self.to, port);
        Ok(match metric {
            Metric::RequestResponse => {
                let mut requests = Requests::new(client, at(ANSWER_PORT))?;
                (Variant::new(self.name, move || requests.slice(100)), None)
            }
            Metric::Connect => {
                let mut connects = Connects::new(client, at(CLOSE_PORT));
                (Variant::new(self.name, move || connects.slice(20)), None)
            }
            Metric::StreamTime => {
                let mut stream = Stream::new(client, at(SINK_PORT))?;
                (Variant::new(self.name, move || stream.slice(16)), None)
            }
            Metric::PacketCpu => {
                let sink = Sink::new(self.backend_pod(), self.to)?;
                let mut frames = LiveFrames::new(self.cell, at(PACKET_PORT))?;
                require_delivery(&mut frames, &sink, 1000)?;
                (
                    Variant::new(self.name, move || frames.slice(1000)),
                    Some(sink),
                )
            }
        })
    }

    fn backend_pod(&self) -> &'a crate::netns::Netns {
        if self.backend == SAME_NODE {
            &self.cell.same_node
        } else {
            &self.cell.other_node
        }
    }
}

/// Puts this process, and so every server that it starts, on one core.
fn pin(cpu: Option<usize>) -> Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let cpu = cpu.unwrap_or(last);
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("--cpu {cpu}: there is no such core"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("--cpu {cpu}: cannot run there"))
}
