//! The figures of all sides, each beside that of kube-apiserver, and the targets.

use std::path::Path;

use anyhow::{Result, ensure};
use serde::Serialize;
use tests_figures::{Spread, markdown, number};

/// What kube-apiserver 1.28.0 with etcd 3.5.30 gave on a machine of this kind (two cores, TLS, 16 connections), in
/// another run: for orientation where none is given to run beside.
const RECORDED: &[(&str, f64)] = &[
    ("creates", 1_071.0),
    ("create_p99", 40.6),
    ("gets", 2_402.0),
    ("get_p99", 27.4),
    ("patches", 926.0),
    ("patch_p99", 55.1),
    ("list_3000", 46.9),
    ("events", 27_499.0),
    ("event_p50", 40.7),
    ("event_p99", 127.0),
    ("memory", 231.0),
];
pub const RECORDED_NAME: &str = "recorded";

/// One figure of one side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub metric: &'static str,
    pub unit: &'static str,
    pub side: String,
    pub median: f64,
    pub p25: f64,
    pub p75: f64,
    pub rounds: usize,
    /// Met or missed, where there is a target.
    pub target: Option<String>,
    #[serde(skip)]
    met: bool,
}

/// What is good enough.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost(f64),
    /// So many times what kube-apiserver has, or more.
    TimesKubernetes(f64),
    /// This share of what kube-apiserver has, or less.
    ShareOfKubernetes(f64),
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    pub fn add(&mut self, side: &str, metric: &'static str, unit: &'static str, samples: &[f64]) {
        let Spread { median, p25, p75 } = Spread::of(samples);
        self.0.push(Figure {
            metric,
            unit,
            side: side.to_owned(),
            median,
            p25,
            p75,
            rounds: samples.len(),
            target: None,
            met: true,
        });
    }

    /// Holds `side` to a target; a side or a figure that was not measured is held to none.
    pub fn hold(&mut self, side: &str, metric: &str, target: Target) {
        let other = self.of("kube-apiserver", metric).or_else(|| {
            let recorded = RECORDED.iter().find(|(name, _)| *name == metric);
            recorded.map(|(_, value)| *value)
        });
        let Some(figure) = self
            .0
            .iter_mut()
            .find(|f| f.side == side && f.metric == metric)
        else {
            return;
        };
        let (limit, met, sign) = match (target, other) {
            (Target::AtMost(limit), _) => (limit, figure.median <= limit, "<="),
            (Target::TimesKubernetes(times), Some(other)) => {
                (times * other, figure.median >= times * other, ">=")
            }
            (Target::ShareOfKubernetes(share), Some(other)) => {
                (share * other, figure.median <= share * other, "<=")
            }
            (_, None) => return,
        };
        let word = if met { "met" } else { "MISSED" };
        figure.met = met;
        figure.target = Some(format!("{sign} {} {word}", number(limit)));
    }

    fn of(&self, side: &str, metric: &str) -> Option<f64> {
        let found = self.0.iter().find(|f| f.side == side && f.metric == metric);
        found.map(|figure| figure.median)
    }

    /// As a Markdown table: a line a metric, a column a side.
    pub fn table(&self) -> String {
        let mut sides: Vec<&str> = Vec::new();
        let mut metrics: Vec<(&str, &str)> = Vec::new();
        for figure in &self.0 {
            if !sides.contains(&figure.side.as_str()) {
                sides.push(&figure.side);
            }
            if !metrics.contains(&(figure.metric, figure.unit)) {
                metrics.push((figure.metric, figure.unit));
            }
        }
        let with_kubernetes = sides.contains(&"kube-apiserver");
        let mut head = vec!["metric".to_owned(), "unit".to_owned()];
        head.extend(sides.iter().map(|side| (*side).to_owned()));
        if !with_kubernetes {
            head.push(RECORDED_NAME.to_owned());
        }
        let mut lines = vec![head];
        for (metric, unit) in metrics {
            let mut line = vec![metric.to_owned(), unit.to_owned()];
            for side in &sides {
                let own = self
                    .0
                    .iter()
                    .find(|f| f.side == *side && f.metric == metric);
                line.push(own.map_or_else(String::new, Figure::cell));
            }
            if !with_kubernetes {
                let recorded = RECORDED.iter().find(|(name, _)| *name == metric);
                line.push(recorded.map_or_else(String::new, |(_, value)| number(*value)));
            }
            lines.push(line);
        }
        markdown(lines)
    }

    pub fn write_json(&self, path: &Path) -> Result<()> {
        tests_figures::write_json(path, &self.0)
    }

    /// # Errors
    /// Names what missed its target.
    pub fn verdict(&self) -> Result<()> {
        let missed: Vec<String> = self
            .0
            .iter()
            .filter(|figure| !figure.met)
            .map(|figure| format!("{} of {}", figure.metric, figure.side))
            .collect();
        ensure!(missed.is_empty(), "targets missed: {}", missed.join(", "));
        Ok(())
    }
}

impl Figure {
    fn cell(&self) -> String {
        let mut text = number(self.median);
        if self.rounds > 1 {
            text += &format!(" ({}..{})", number(self.p25), number(self.p75));
        }
        if let Some(target) = &self.target {
            text += &format!(" [{target}]");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_held_against_the_run_beside_before_the_recorded_one() {
        let mut figures = Figures::default();
        figures.add("embedded", "creates", "1/s", &[4_500.0]);
        figures.hold("embedded", "creates", Target::TimesKubernetes(4.0));
        assert!(
            figures.verdict().is_ok(),
            "4 times the recorded 1,071 is less"
        );
        figures.add("kube-apiserver", "creates", "1/s", &[2_000.0]);
        figures.hold("embedded", "creates", Target::TimesKubernetes(4.0));
        let error = figures.verdict().unwrap_err().to_string();
        assert_eq!(error, "targets missed: creates of embedded");
    }

    #[test]
    fn a_limit_is_met_by_what_reaches_it() {
        let mut figures = Figures::default();
        figures.add("embedded", "list_3000", "ms", &[10.0]);
        figures.hold("embedded", "list_3000", Target::AtMost(10.0));
        assert!(figures.verdict().is_ok());
        assert!(
            figures.table().contains("10.0 [<= 10.0 met]"),
            "{}",
            figures.table()
        );
    }
}
