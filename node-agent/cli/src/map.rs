//! `fairlead maps`.

use anyhow::{Context, Result};
use node_agent_maps::{MapUsage, Maps};
use serde::Serialize;

use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
pub struct Usage {
    pub maps: Vec<Map>,
}

/// A pinned map.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Map {
    pub name: &'static str,
    pub kind: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    /// None of an array: the kernel counts no use of it.
    pub entries: Option<u32>,
    pub max_entries: u32,
    /// What the kernel has allocated for it.
    pub memory_bytes: Option<u64>,
}

/// # Errors
///
/// When a map cannot be read.
pub fn read(maps: &Maps) -> Result<Usage> {
    let used: Vec<MapUsage> = maps.usage().context("counting the entries")?;
    let layouts = maps.layouts().context("reading the layouts")?;
    let map = |(name, layout, memory_bytes): (&'static str, node_agent_maps::MapLayout, _)| Map {
        name,
        kind: layout.kind(),
        key_bytes: layout.key_size,
        value_bytes: layout.value_size,
        entries: used
            .iter()
            .find(|usage| usage.map == name)
            .map(|usage| usage.entries),
        max_entries: layout.max_entries,
        memory_bytes,
    };
    Ok(Usage {
        maps: layouts.into_iter().map(map).collect(),
    })
}

impl Report for Usage {
    fn sections(&self) -> Vec<Section> {
        let row = |map: &Map| {
            let full = map.entries.map(|entries| {
                format!(
                    "{:.1}%",
                    f64::from(entries) * 100.0 / f64::from(map.max_entries.max(1))
                )
            });
            vec![
                map.name.into(),
                map.kind.clone(),
                map.key_bytes.to_string(),
                map.value_bytes.to_string(),
                map.entries.map_or_else(|| "-".into(), |n| n.to_string()),
                map.max_entries.to_string(),
                full.unwrap_or_else(|| "-".into()),
                map.memory_bytes
                    .map_or_else(|| "-".into(), |bytes| (bytes / 1024).to_string()),
            ]
        };
        const COLUMNS: &[&str] = &[
            "MAP", "KIND", "KEY", "VALUE", "ENTRIES", "MAX", "FULL", "KIB",
        ];
        vec![Section::new(COLUMNS, self.maps.iter().map(row).collect())]
    }
}
