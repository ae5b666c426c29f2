//! `fairlead bench-map`.

use std::time::Duration;

use anyhow::{Context, Result};
use node_agent_maps::{MapTimes, measure_maps};
use serde::Serialize;

use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
pub struct Bench {
    pub entries: u32,
    pub maps: Vec<Times>,
}

/// Mean time of one element in nanoseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    pub like: &'static str,
    pub kind: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub write_ns: u64,
    pub batch_write_ns: u64,
    pub read_ns: u64,
    pub batch_read_ns: u64,
    pub delete_ns: Option<u64>,
}

/// # Errors
///
/// When the kernel refuses a map.
pub fn run(entries: u32) -> Result<Bench> {
    let measured = measure_maps(entries).context("measuring scratch maps")?;
    Ok(Bench {
        entries,
        maps: measured.into_iter().map(Times::from).collect(),
    })
}

impl From<MapTimes> for Times {
    fn from(times: MapTimes) -> Self {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            like: times.map,
            kind: times.layout.kind(),
            key_bytes: times.layout.key_size,
            value_bytes: times.layout.value_size,
            write_ns: ns(times.write),
            batch_write_ns: ns(times.batch_write),
            read_ns: ns(times.read),
            batch_read_ns: ns(times.batch_read),
            delete_ns: times.delete.map(ns),
        }
    }
}

impl Report for Bench {
    fn sections(&self) -> Vec<Section> {
        let row = |times: &Times| {
            let delete = times
                .delete_ns
                .map_or_else(|| "-".into(), |ns| ns.to_string());
            vec![
                times.like.into(),
                times.kind.clone(),
                format!("{}/{}", times.key_bytes, times.value_bytes),
                times.write_ns.to_string(),
                times.batch_write_ns.to_string(),
                times.read_ns.to_string(),
                times.batch_read_ns.to_string(),
                delete,
            ]
        };
        const COLUMNS: &[&str] = &[
            "LIKE",
            "KIND",
            "BYTES",
            "WRITE",
            "IN BATCHES",
            "READ",
            "IN BATCHES",
            "DELETE",
        ];
        let heading = format!("ns an element, scratch maps of {} entries", self.entries);
        vec![Section::new(COLUMNS, self.maps.iter().map(row).collect()).headed(heading)]
    }
}
