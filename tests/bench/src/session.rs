//! A session: ways from the client to a backend, measured in turns, and the rows that are made of them.

use std::thread;

use anyhow::{Context, Result, bail};

use crate::interleave::{Samples, interleave};
use crate::kube_proxy::UDP_TIMEOUT;
use crate::metric::Metric;
use crate::report::Row;
use crate::way::{Sinks, Way};

/// How far the same thing measured twice may differ; beyond it the run says nothing.
const NOISE_LIMIT: f64 = 0.02;
/// How often a session is tried until its noise rows are good.
const ATTEMPTS: usize = 4;

/// A case and what it is compared with.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub case: String,
    pub versus: String,
    pub kind: Kind,
}

/// What a comparison is for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The same thing twice.
    Noise,
    /// The greatest ratios that are good enough.
    Target(&'static [(Metric, f64)]),
    /// To know.
    Plain,
}

/// Ways that are measured in turns, and the rows that are made of them.
#[derive(Debug)]
pub struct Session<'a> {
    pub ways: Vec<Way<'a>>,
    pub comparisons: Vec<Comparison>,
    pub metrics: &'static [Metric],
    /// So many times fewer rounds than the metric's own: where there are many ways.
    pub fewer_rounds: usize,
}

/// What the sessions of a bench gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Row>,
    /// Metrics with a target whose noise row was off each time.
    rejected: Vec<&'static str>,
}

impl Comparison {
    pub fn new(case: impl Into<String>, versus: impl Into<String>, kind: Kind) -> Self {
        Self {
            case: case.into(),
            versus: versus.into(),
            kind,
        }
    }

    fn target(&self, metric: Metric) -> Option<f64> {
        let Kind::Target(targets) = self.kind else {
            return None;
        };
        targets
            .iter()
            .find(|(of, _)| *of == metric)
            .map(|(_, ratio)| *ratio)
    }
}

impl Outcome {
    /// Measures a session's metrics one after the other.
    pub fn measure(
        &mut self,
        bench: &'static str,
        session: &Session<'_>,
        quick: bool,
    ) -> Result<()> {
        for &metric in session.metrics {
            match session.measure(bench, metric, quick)? {
                Some(rows) => self.rows.extend(rows),
                None if session.has_target(metric) => self.rejected.push(metric.name()),
                None => eprintln!(
                    "{} from {} is left out: too much noise",
                    metric.name(),
                    session.ways[0].name
                ),
            }
        }
        Ok(())
    }

    /// Fails where a noise row or a target says so.
    pub fn verdict(&self) -> Result<()> {
        if !self.rejected.is_empty() {
            bail!(
                "rejected: the noise row of {} was off by too much in each of {ATTEMPTS} runs: quieten the machine and \
                 run again",
                self.rejected.join(", ")
            );
        }
        let missed: Vec<String> = self
            .rows
            .iter()
            .filter(|row| !row.meets_target())
            .map(Row::to_string)
            .collect();
        if !missed.is_empty() {
            bail!("targets missed: {}", missed.join(", "));
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Measures one metric until the noise rows are within the limit, at most [`ATTEMPTS`] times; `None` if they never
    /// were.
    fn measure(
        &self,
        bench: &'static str,
        metric: Metric,
        quick: bool,
    ) -> Result<Option<Vec<Row>>> {
        for _ in 0..ATTEMPTS {
            let samples = self.sample(metric, quick)?;
            let (rows, noise) = self.rows(bench, metric, &samples)?;
            let quiet = noise <= NOISE_LIMIT;
            eprintln!(
                "{:<22} {:<20} noise {:.1} %{}",
                metric.name(),
                self.ways[0].name,
                noise * 100.0,
                if quiet { "" } else { ": rejected" }
            );
            if quiet {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }

    /// The rows, and by how much the noise rows are off.
    fn rows(
        &self,
        bench: &'static str,
        metric: Metric,
        samples: &Samples,
    ) -> Result<(Vec<Row>, f64)> {
        let mut rows = Vec::new();
        let mut worst = 0.0_f64;
        for comparison in &self.comparisons {
            if !self.has(&comparison.case, metric) || !self.has(&comparison.versus, metric) {
                continue;
            }
            let mut row = Row::new(
                bench,
                metric.name(),
                metric.unit(),
                samples,
                &comparison.case,
                &comparison.versus,
            )?;
            row.target = comparison.target(metric);
            if matches!(comparison.kind, Kind::Noise) {
                worst = worst.max((row.ratio - 1.0).abs());
            }
            rows.push(row);
        }
        Ok((rows, worst))
    }

    fn sample(&self, metric: Metric, quick: bool) -> Result<Samples> {
        let rounds = metric.rounds() / self.fewer_rounds / if quick { 8 } else { 1 };
        if metric == Metric::NewFlowCpu && self.ways.iter().any(|way| way.cell.netfilter) {
            // The flows of an earlier try must be over.
            thread::sleep(2 * UDP_TIMEOUT);
        }
        let mut sinks = Sinks::default();
        let mut variants = Vec::new();
        for way in self.ways.iter().filter(|way| way.has(metric)) {
            let describe = || format!("prepare {} for {}", way.name, metric.name());
            variants.push(way.variant(metric, &mut sinks).with_context(describe)?);
        }
        interleave(&mut variants, rounds)
    }

    /// Whether the metric is measured on the way of this name; a name that no way has fails later.
    fn has(&self, name: &str, metric: Metric) -> bool {
        self.ways
            .iter()
            .find(|way| way.name == name)
            .is_none_or(|way| way.has(metric))
    }

    /// Whether a metric of this session has a target to meet.
    fn has_target(&self, metric: Metric) -> bool {
        self.comparisons
            .iter()
            .any(|comparison| comparison.target(metric).is_some())
    }
}
