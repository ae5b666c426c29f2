//! Reports as tables for people, as JSON and YAML for programs.

use std::io::Write;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

/// What a command found.
pub trait Report: Serialize {
    /// For people: sections with a heading (or none) and lines of columns.
    fn sections(&self) -> Vec<Section>;
}

/// Lines of columns under a heading.
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub heading: Option<String>,
    /// Names of the columns; empty for lines that need none.
    pub columns: &'static [&'static str],
    pub rows: Vec<Vec<String>>,
}

/// # Errors
///
/// When `out` cannot be written.
pub fn write(report: &impl Report, format: Format, out: &mut dyn Write) -> Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
        Format::Yaml => serde_yaml_ng::to_writer(out, report)?,
        Format::Table => {
            for (index, section) in report.sections().iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                section.write(out)?;
            }
        }
    }
    Ok(())
}

impl Section {
    pub fn new(columns: &'static [&'static str], rows: Vec<Vec<String>>) -> Self {
        Self {
            heading: None,
            columns,
            rows,
        }
    }

    #[must_use]
    pub fn headed(mut self, heading: impl Into<String>) -> Self {
        self.heading = Some(heading.into());
        self
    }

    fn write(&self, out: &mut dyn Write) -> Result<()> {
        if let Some(heading) = &self.heading {
            writeln!(out, "{heading}")?;
        }
        let header: Vec<String> = self.columns.iter().map(|name| (*name).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&header)
            .filter(|header| !header.is_empty())
            .chain(&self.rows)
            .collect();
        let widths = widths(&lines);
        for line in lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(&format!("{cell:<width$}   "));
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn widths(lines: &[&Vec<String>]) -> Vec<usize> {
    let mut widths = Vec::new();
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(*line) {
            *width = cell.chars().count().max(*width);
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let section = Section::new(
            &["NAME", "N"],
            vec![
                vec!["a".into(), "1".into()],
                vec!["longer".into(), String::new()],
            ],
        )
        .headed("all");
        let mut out = Vec::new();
        section.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "all\nNAME     N\na        1\nlonger\n"
        );
    }
}
