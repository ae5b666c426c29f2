//! What the disk itself gives: without it no rate of durable writes says anything.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

const WRITES: u64 = 50;
const BLOCK: [u8; 4096] = [b'x'; 4096];

/// Milliseconds of appending 4 KiB and fdatasync(2), each time of some, in a file of `folder`.
pub fn syncs(folder: &Path) -> Result<Vec<f64>> {
    let path = folder.join("syncs");
    let file = File::create(&path)?;
    let mut times = Vec::new();
    for at in 0..WRITES {
        let begun = Instant::now();
        file.write_all_at(&BLOCK, at * BLOCK.len() as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}
