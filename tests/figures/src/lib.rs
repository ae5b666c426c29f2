//! What all benchmarks do with what they measured: quantiles, ratios, Markdown tables and JSON.

#![forbid(unsafe_code)]

mod stats;
mod table;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

pub use stats::{Spread, median, quantile};
pub use table::{markdown, number};

/// Writes the figures as a JSON array.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_json(path: &Path, figures: &[impl Serialize]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
