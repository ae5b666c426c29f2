//! Side-by-side benchmarks: every variant alive at once, one core, slices of milliseconds in one process.

mod bpf;
mod cell;
mod cgroup;
mod client;
mod fairlead;
mod interleave;
mod live_frames;
mod netns;
mod profile;
mod report;
mod server;
mod session;
mod smoke;
mod stats;

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Measures Fairlead beside what the kernel does without it.
#[derive(Debug, Parser)]
#[command(name = "tests-bench", version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Services against plain routing, the overlay against the kernel's vxlan: under three minutes.
    Smoke(Options),
    /// What each of our programs takes of a packet's CPU.
    Profile {
        #[command(flatten)]
        options: Options,
        /// Only this way.
        #[arg(long, value_name = "WAY")]
        only: Option<String>,
    },
    /// The backend pod's server; started by the benches.
    #[command(hide = true)]
    Serve {
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
}

/// What every bench takes.
#[derive(Debug, Args)]
pub struct Options {
    /// Write the rows to this file, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A quarter of the rounds: to see that it runs, not to compare.
    #[arg(long)]
    quick: bool,
    /// The core that client, server and packets share; the last one by default.
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

fn main() -> Result<()> {
    match Cli::parse().bench {
        Bench::Smoke(options) => smoke::run(&options),
        Bench::Profile { options, only } => profile::run(&options, only.as_deref()),
        Bench::Serve { addresses } => server::serve(&addresses),
    }
}
