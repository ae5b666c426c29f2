//! `fairlead drops`.

use anyhow::{Context, Result};
use node_agent_maps::Maps;
use serde::Serialize;

use crate::output::{Report, Section};

#[derive(Debug, Serialize)]
pub struct Drops {
    pub drops: Vec<Drop>,
}

/// What was dropped for one reason since the map was made.
#[derive(Debug, Serialize)]
pub struct Drop {
    pub number: u32,
    pub reason: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

/// # Errors
///
/// When the map cannot be read.
pub fn read(maps: &Maps, all: bool) -> Result<Drops> {
    let counted = maps.drops().context("reading the drops")?;
    let drops = counted.into_iter().map(|(reason, counter)| Drop {
        number: reason as u32,
        reason: reason.label(),
        packets: counter.packets,
        bytes: counter.bytes,
    });
    Ok(Drops {
        drops: drops.filter(|drop| all || drop.packets > 0).collect(),
    })
}

impl Report for Drops {
    fn sections(&self) -> Vec<Section> {
        let row = |drop: &Drop| {
            vec![
                drop.reason.into(),
                drop.packets.to_string(),
                drop.bytes.to_string(),
            ]
        };
        let rows: Vec<_> = self.drops.iter().map(row).collect();
        if rows.is_empty() {
            return vec![Section::default().headed("nothing was dropped")];
        }
        vec![Section::new(&["REASON", "PACKETS", "BYTES"], rows)]
    }
}
