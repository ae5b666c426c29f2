//! `profile`: how much of a packet's CPU each of our programs takes, by the kernel's run-time statistics.
//!
//! Statistics cost some nanoseconds a run and are counted in what they show, so that the shares are a little high.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::Options;
use crate::interleave::Samples;
use crate::metric::Metric;
use crate::program_info::{self, ProgramInfo, Stats};
use crate::report::{self, Row};
use crate::run;
use crate::smoke::Cells;
use crate::way::{PACKETS, Sinks, Way};

const BENCH: &str = "profile";
const ROUNDS: usize = 200;
const PACKET: &str = "packet";

/// Runs the bench, prints its table and writes its rows.
pub fn run(options: &Options, only: Option<&str>) -> Result<()> {
    program_info::require_jit()?;
    run::prepare(options)?;
    let cells = Cells::new()?;
    let rounds = if options.quick { ROUNDS / 8 } else { ROUNDS };
    let mut rows = Vec::new();
    let mut sizes = BTreeMap::new();
    for session in [cells.other_node(), cells.same_node(), cells.ipv6()] {
        let wanted = |way: &&Way<'_>| only.is_none_or(|name| way.name == name);
        for way in session.ways.iter().filter(wanted) {
            rows.extend(
                profile(way, rounds, &mut sizes)
                    .with_context(|| format!("profile {}", way.name))?,
            );
        }
    }
    print!("{}", report::table(&rows));
    for (name, program) in sizes {
        println!(
            "{name}: {} instructions, {} bytes of native code, {} instructions walked by the verifier",
            program.instructions, program.jited_len, program.verified
        );
    }
    if let Some(path) = &options.json {
        tests_figures::write_json(path, &rows)?;
    }
    Ok(())
}

/// One row for each program that runs on the way of a packet.
fn profile(
    way: &Way<'_>,
    rounds: usize,
    sizes: &mut BTreeMap<String, ProgramInfo>,
) -> Result<Vec<Row>> {
    let mut variant = way.variant(Metric::PacketCpu, &mut Sinks::default())?;
    let _stats = Stats::enable()?;
    let mut packet = Vec::with_capacity(rounds);
    let mut by_program: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut before = programs()?;
    for _ in 0..rounds {
        packet.push((variant.slice)()?);
        let after = programs()?;
        for (id, now) in &after {
            let Some(then) = before.get(id) else { continue };
            // The generator is not a part of the way; it goes by no name.
            if now.run_count - then.run_count < u64::from(PACKETS) || now.name.is_empty() {
                continue;
            }
            sizes.insert(now.name.clone(), now.clone());
            let time = (now.run_time_ns - then.run_time_ns) as f64 / f64::from(PACKETS);
            by_program
                .entry(format!("{} in {}", now.name, way.name))
                .or_default()
                .push(time);
        }
        before = after;
    }
    by_program.retain(|_, samples| samples.len() == rounds);
    let programs: Vec<String> = by_program.keys().cloned().collect();
    let names = programs
        .iter()
        .cloned()
        .chain([PACKET.to_owned()])
        .collect();
    let values = by_program.into_values().chain([packet]).collect();
    let samples = Samples::new(names, values);
    programs
        .iter()
        .map(|name| Row::new(BENCH, "program_time", "ns", &samples, name, PACKET))
        .collect()
}

fn programs() -> Result<BTreeMap<u32, ProgramInfo>> {
    Ok(program_info::programs()?
        .into_iter()
        .map(|program| (program.id, program))
        .collect())
}
