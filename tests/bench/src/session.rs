//! A session: ways from the client to a backend, measured in turns, and the rows that are made of them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::cell::{Cell, PodAddress, SAME_NODE};
use crate::cgroup::Cgroup;
use crate::client::{Connects, Requests, Stream};
use crate::interleave::{Samples, Variant, interleave};
use crate::live_frames::{LiveFrames, Sink, require_delivery};
use crate::netns::Netns;
use crate::report::Row;
use crate::server::{ANSWER_PORT, CLOSE_PORT, PACKET_PORT, SINK_PORT};

/// How far the same thing measured twice may differ; beyond it the run says nothing.
pub const NOISE_LIMIT: f64 = 0.02;
/// How often a session is tried until its noise rows are good.
pub const ATTEMPTS: usize = 4;

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Metric {
    /// Median latency of a request and its answer of 64 bytes on a kept TCP connection.
    RequestResponse,
    /// Median latency of `connect()`.
    Connect,
    /// CPU time of a packet of an established UDP flow, from the client pod's veth into the backend pod.
    PacketCpu,
    /// Time of a KiB in a TCP stream with segmentation offload.
    StreamTime,
}

/// One way from the client to a backend.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    pub name: &'static str,
    pub cell: &'a Cell,
    /// The address that the client asks for.
    pub to: IpAddr,
    /// The pod that answers.
    pub backend: PodAddress,
    /// The client connects as a member of this cgroup, whose programs translate the address once.
    pub cgroup: Option<&'a Cgroup>,
}

/// A case and what it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    pub case: &'static str,
    pub versus: &'static str,
    pub kind: Kind,
}

/// What a comparison is for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The same thing twice.
    Noise,
    /// Greatest ratio of request/response, connect and packet CPU.
    Target([f64; 3]),
    /// To know.
    Plain,
}

/// Ways that are measured in turns, and the rows that are made of them.
#[derive(Debug)]
pub struct Session<'a> {
    pub ways: Vec<Way<'a>>,
    pub comparisons: &'static [Comparison],
    pub metrics: &'static [Metric],
}

/// What measuring gave.
#[derive(Debug)]
pub struct Outcome {
    pub rows: Vec<Row>,
    /// Every noise row is within the limit.
    pub quiet: bool,
}

impl Metric {
    pub fn name(self) -> &'static str {
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
            Self::RequestResponse | Self::PacketCpu => 800,
            Self::Connect => 600,
            Self::StreamTime => 1200,
        }
    }
}

impl Comparison {
    fn target(&self, metric: Metric) -> Option<f64> {
        let Kind::Target([request_response, connect, packet_cpu]) = self.kind else {
            return None;
        };
        match metric {
            Metric::RequestResponse => Some(request_response),
            Metric::Connect => Some(connect),
            Metric::PacketCpu => Some(packet_cpu),
            Metric::StreamTime => None,
        }
    }
}

impl Session<'_> {
    /// Measures one metric until the noise rows are within the limit, at most [`ATTEMPTS`] times.
    pub fn measure(&self, bench: &'static str, metric: Metric, quick: bool) -> Result<Outcome> {
        let mut attempt = 1;
        loop {
            let samples = self.sample(metric, quick)?;
            let outcome = self.outcome(bench, metric, &samples)?;
            if outcome.quiet || attempt == ATTEMPTS {
                return Ok(outcome);
            }
            attempt += 1;
        }
    }

    fn outcome(&self, bench: &'static str, metric: Metric, samples: &Samples) -> Result<Outcome> {
        let mut rows = Vec::new();
        let mut worst = 0.0_f64;
        for comparison in self.comparisons {
            let mut row = Row::new(
                bench,
                metric.name(),
                metric.unit(),
                samples,
                comparison.case,
                comparison.versus,
            )?;
            row.target = comparison.target(metric);
            if matches!(comparison.kind, Kind::Noise) {
                worst = worst.max((row.ratio - 1.0).abs());
            }
            rows.push(row);
        }
        let quiet = worst <= NOISE_LIMIT;
        let verdict = if quiet { "" } else { ": rejected" };
        eprintln!(
            "{:<20} {:<20} noise {:.1} %{verdict}",
            metric.name(),
            self.ways[0].name,
            worst * 100.0
        );
        Ok(Outcome { rows, quiet })
    }

    fn sample(&self, metric: Metric, quick: bool) -> Result<Samples> {
        let rounds = if quick {
            metric.rounds() / 8
        } else {
            metric.rounds()
        };
        // They stay attached until the last round is over.
        let mut sinks = Vec::new();
        let mut variants = Vec::new();
        for way in &self.ways {
            let describe = || format!("prepare {} for {}", way.name, metric.name());
            let (variant, sink) = way.variant(metric).with_context(describe)?;
            variants.push(variant);
            sinks.extend(sink);
        }
        interleave(&mut variants, rounds)
    }

    /// Whether a metric of this session has a target to meet.
    pub fn has_target(&self, metric: Metric) -> bool {
        self.comparisons
            .iter()
            .any(|comparison| comparison.target(metric).is_some())
    }
}

impl<'a> Way<'a> {
    /// What one slice does: a few milliseconds of one metric.
    fn variant(&self, metric: Metric) -> Result<(Variant<'a>, Option<Sink>)> {
        let Way {
            name,
            cell,
            to,
            cgroup,
            ..
        } = *self;
        let client = &cell.client;
        let at = |port| SocketAddr::new(to, port);
        Ok(match metric {
            Metric::RequestResponse => {
                let _member = cgroup.map(Cgroup::join).transpose()?;
                let mut requests = Requests::new(client, at(ANSWER_PORT))?;
                (Variant::new(name, move || requests.slice(100)), None)
            }
            Metric::Connect => {
                let mut connects = Connects::new(client, at(CLOSE_PORT));
                let slice = move || {
                    let _member = cgroup.map(Cgroup::join).transpose()?;
                    connects.slice(20)
                };
                (Variant::new(name, slice), None)
            }
            Metric::StreamTime => {
                let _member = cgroup.map(Cgroup::join).transpose()?;
                let mut stream = Stream::new(client, at(SINK_PORT))?;
                (Variant::new(name, move || stream.slice(16)), None)
            }
            Metric::PacketCpu => {
                let sink = Sink::new(self.backend_netns(), to)?;
                let mut frames =
                    LiveFrames::new(cell, SocketAddr::new(self.packet_address(), PACKET_PORT))?;
                require_delivery(&mut frames, &sink, 1000)?;
                (Variant::new(name, move || frames.slice(1000)), Some(sink))
            }
        })
    }

    /// What the packets carry: behind the socket programs they go to the backend itself.
    pub fn packet_address(&self) -> IpAddr {
        match self.cgroup {
            None => self.to,
            Some(_) if self.to.is_ipv4() => self.backend.v4().into(),
            Some(_) => self.backend.v6().into(),
        }
    }

    pub fn backend_netns(&self) -> &'a Netns {
        if self.backend == SAME_NODE {
            &self.cell.same_node
        } else {
            &self.cell.other_node
        }
    }
}
