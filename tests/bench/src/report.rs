//! The rows of a bench, as a table for people and as JSON for what compares runs.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::interleave::Samples;
use crate::stats::Spread;

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

    /// False only where a target is set and the ratio is above it.
    pub fn meets_target(&self) -> bool {
        self.target.is_none_or(|target| self.ratio <= target)
    }
}

/// Writes the rows as a JSON array.
pub fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
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
        let target = match row.target {
            None => String::new(),
            Some(target) if row.meets_target() => format!("<= {target:.2} met"),
            Some(target) => format!("<= {target:.2} MISSED"),
        };
        lines.push(vec![
            row.metric.to_owned(),
            row.case.clone(),
            format!("{:.0} {}", row.median, row.unit),
            format!("{:.0}..{:.0}", row.p25, row.p75),
            row.versus.clone(),
            format!("{:.3}", row.ratio),
            format!("{:.3}..{:.3}", row.ratio_p25, row.ratio_p75),
            target,
        ]);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].len())
                .max()
                .unwrap_or(0)
        })
        .collect();
    lines.insert(1, widths.iter().map(|&width| "-".repeat(width)).collect());
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
    }
    text
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
    fn an_unknown_variant_is_an_error_that_names_it() {
        let samples = interleave(&mut [Variant::new("ours", || Ok(1.0))], 1).unwrap();
        let error = Row::new("smoke", "packet_cpu", "ns", &samples, "ours", "theirs").unwrap_err();
        assert_eq!(error.to_string(), "packet_cpu: theirs was not measured");
    }
}
