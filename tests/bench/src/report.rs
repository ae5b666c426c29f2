//! The rows of a bench, as a table for people and as JSON for what compares runs.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use tests_figures::{Spread, markdown, number};

use crate::interleave::Samples;

/// Rounds of a figure that no round was taken of.
const ONE_VALUE: usize = 1;

/// One figure of one case, beside the case that it is compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub bench: &'static str,
    pub case: String,
    pub metric: &'static str,
    pub unit: &'static str,
    pub median: f64,
    pub p25: f64,
    pub p75: f64,
    /// Rounds that the medians are taken over.
    pub runs: usize,
    pub versus: String,
    /// Median of the ratios taken round by round; smaller is better.
    pub ratio: f64,
    pub ratio_p25: f64,
    pub ratio_p75: f64,
    /// The greatest ratio that is good enough, where one is set.
    #[serde(skip)]
    pub target: Option<f64>,
}

impl Row {
    /// Compares two variants of one session.
    pub fn new(
        bench: &'static str,
        metric: &'static str,
        unit: &'static str,
        samples: &Samples,
        case: &str,
        versus: &str,
    ) -> Result<Self> {
        let of = |name: &str| {
            samples
                .of(name)
                .with_context(|| format!("{metric}: {name} was not measured"))
        };
        let (own, other) = (of(case)?, of(versus)?);
        let (spread, ratio) = (Spread::of(own), Spread::of_ratio(own, other));
        Ok(Self {
            bench,
            case: case.to_owned(),
            metric,
            unit,
            median: spread.median,
            p25: spread.p25,
            p75: spread.p75,
            runs: samples.rounds,
            versus: versus.to_owned(),
            ratio: ratio.median,
            ratio_p25: ratio.p25,
            ratio_p75: ratio.p75,
            target: None,
        })
    }

    /// A figure that is compared with nothing, or with the greatest value that is good enough.
    pub fn absolute(
        bench: &'static str,
        case: &str,
        metric: &'static str,
        unit: &'static str,
        value: f64,
        limit: Option<f64>,
    ) -> Self {
        let ratio = limit.map_or(1.0, |limit| value / limit);
        Self {
            bench,
            case: case.to_owned(),
            metric,
            unit,
            median: value,
            p25: value,
            p75: value,
            runs: ONE_VALUE,
            versus: limit.map_or_else(|| case.to_owned(), |limit| format!("{limit} {unit}")),
            ratio,
            ratio_p25: ratio,
            ratio_p75: ratio,
            target: limit.map(|_| 1.0),
        }
    }

    /// False only where a target is set and the ratio is above it.
    pub fn meets_target(&self) -> bool {
        self.target.is_none_or(|target| self.ratio <= target)
    }
}

impl Row {
    /// Whether the target is met, where one is set.
    fn verdict(&self) -> Option<String> {
        let target = self.target?;
        let word = if self.meets_target() { "met" } else { "MISSED" };
        Some(format!("{target:.2} {word}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:.3}", self.case, self.metric, self.ratio)
    }
}

/// The rows as a Markdown table, which docs/benchmarks.md can take as it is.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        [
            "metric", "case", "median", "p25..p75", "versus", "ratio", "p25..p75", "target",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for row in rows {
        let target = row
            .verdict()
            .map_or_else(String::new, |verdict| format!("<= {verdict}"));
        lines.push(vec![
            row.metric.to_owned(),
            row.case.clone(),
            format!("{} {}", number(row.median), row.unit),
            format!("{}..{}", number(row.p25), number(row.p75)),
            row.versus.clone(),
            format!("{:.3}", row.ratio),
            format!("{:.3}..{:.3}", row.ratio_p25, row.ratio_p75),
            target,
        ]);
    }
    markdown(lines)
}

/// Markdown tables with a line for each case and what it is compared with, and a column for each metric: the ratio, and
/// the target. Figures without a comparison give a table of their own, of values.
pub fn by_metric(rows: &[Row]) -> String {
    let (values, ratios): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.runs == ONE_VALUE);
    let ratio = |row: &Row| match row.verdict() {
        None => format!("{:.3}", row.ratio),
        Some(verdict) => format!("{:.3} ({verdict})", row.ratio),
    };
    let value = |row: &Row| {
        let text = format!("{} {}", number(row.median), row.unit);
        match row.verdict() {
            None => text,
            Some(verdict) => format!("{text} ({} {})", row.versus, &verdict[5..]),
        }
    };
    let mut text = columns(&ratios, "ratio", ratio, |row| {
        format!("{} / {}", row.case, row.versus)
    });
    if !values.is_empty() {
        text.push('\n');
        text += &columns(&values, "value", value, |row| row.case.clone());
    }
    text
}

fn columns(
    rows: &[&Row],
    head: &str,
    cell: impl Fn(&Row) -> String,
    line: impl Fn(&Row) -> String,
) -> String {
    let mut metrics: Vec<&str> = Vec::new();
    let mut lines: Vec<Vec<String>> = Vec::new();
    for row in rows {
        let column = match metrics.iter().position(|metric| *metric == row.metric) {
            Some(column) => column,
            None => {
                metrics.push(row.metric);
                metrics.len() - 1
            }
        };
        let name = line(row);
        let index = match lines.iter().position(|line| line[0] == name) {
            Some(index) => index,
            None => {
                lines.push(vec![name]);
                lines.len() - 1
            }
        };
        if lines[index].len() < column + 2 {
            lines[index].resize(column + 2, String::new());
        }
        lines[index][column + 1] = cell(row);
    }
    for line in &mut lines {
        line.resize(metrics.len() + 1, String::new());
    }
    let head = [head].into_iter().chain(metrics).map(str::to_owned);
    lines.insert(0, head.collect());
    markdown(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::{Variant, interleave};

    fn row(target: Option<f64>) -> Row {
        let mut variants = [
            Variant::new("ours", || Ok(9.0)),
            Variant::new("theirs", || Ok(10.0)),
        ];
        let samples = interleave(&mut variants, 3).unwrap();
        let row = Row::new("smoke", "packet_cpu", "ns", &samples, "ours", "theirs").unwrap();
        Row { target, ..row }
    }

    #[test]
    fn json_has_the_agreed_fields_and_no_others() {
        let value = serde_json::to_value(row(Some(0.5))).unwrap();
        let mut keys: Vec<&str> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "bench",
                "case",
                "median",
                "metric",
                "p25",
                "p75",
                "ratio",
                "ratio_p25",
                "ratio_p75",
                "runs",
                "unit",
                "versus"
            ]
        );
        assert_eq!(value["ratio"], 0.9);
        assert_eq!(value["runs"], 3);
    }

    #[test]
    fn a_target_is_met_at_its_very_value_and_missed_above() {
        assert!(row(None).meets_target());
        assert!(row(Some(0.9)).meets_target());
        assert!(!row(Some(0.89)).meets_target());
        assert!(table(&[row(Some(0.89))]).contains("MISSED"));
    }

    #[test]
    fn ratios_and_values_stand_in_tables_of_their_own() {
        let value = Row::absolute("services", "agent", "memory", "MiB", 120.0, Some(100.0));
        let other = Row {
            metric: "connect_p50",
            case: "socket".to_owned(),
            ..row(Some(0.5))
        };
        let text = by_metric(&[row(None), other, value]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(lines[0], ["", "ratio", "packet_cpu", "connect_p50", ""]);
        assert_eq!(lines[2], ["", "ours / theirs", "0.900", "", ""]);
        assert_eq!(
            lines[3],
            ["", "socket / theirs", "", "0.900 (0.50 MISSED)", ""]
        );
        assert_eq!(lines[7], ["", "agent", "120 MiB (100 MiB MISSED)", ""]);
    }

    #[test]
    fn an_unknown_variant_is_an_error_that_names_it() {
        let samples = interleave(&mut [Variant::new("ours", || Ok(1.0))], 1).unwrap();
        let error = Row::new("smoke", "packet_cpu", "ns", &samples, "ours", "theirs").unwrap_err();
        assert_eq!(error.to_string(), "packet_cpu: theirs was not measured");
    }
}
