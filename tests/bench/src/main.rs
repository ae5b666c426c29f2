//! Side-by-side benchmarks: every variant alive at once, one core, slices of milliseconds in one process.

mod agent;
mod api_stub;
mod bpf;
mod cell;
mod cgroup;
mod client;
mod compare;
mod fairlead;
mod flanneld;
mod frame;
mod instructions;
mod interleave;
mod kube_proxy;
mod live_frames;
mod metric;
mod netns;
mod overlay;
mod packets;
mod process;
mod profile;
mod program_info;
mod report;
mod run;
mod server;
mod services;
mod session;
mod smoke;
mod tun_proxy;
mod way;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    /// Services at growing numbers, beside kube-proxy's rules and plain routing: under three minutes.
    Services {
        #[command(flatten)]
        options: Options,
        /// Only this part.
        #[arg(long, value_name = "PART")]
        only: Option<services::Part>,
        /// Measure this kube-proxy's own rules too.
        #[arg(long, value_name = "PATH")]
        kube_proxy: Option<PathBuf>,
    },
    /// Ways to the other node, the kernel's, ours and a process's: under three minutes.
    Overlay {
        #[command(flatten)]
        options: Options,
        /// Measure the ways of this flanneld too, which needs an etcd.
        #[arg(long, value_name = "PATH")]
        flanneld: Option<PathBuf>,
    },
    /// What each of our programs takes of a packet's CPU.
    Profile {
        #[command(flatten)]
        options: Options,
        /// Only this way.
        #[arg(long, value_name = "WAY")]
        only: Option<String>,
    },
    /// What a run of each program costs, as a ratio to an empty program: half a minute.
    Packets {
        #[command(flatten)]
        options: Options,
        /// Tell what moved beyond its spread since the figures in this file; fail if something got slower.
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md")]
        compare: Option<PathBuf>,
    },
    /// The backend pod's server; started by the benches.
    #[command(hide = true)]
    Serve {
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// The agent without a daemon around it; started by the benches.
    #[command(hide = true)]
    Agent { api: SocketAddr },
    /// A node's proxy between a TUN device and UDP; started by the benches.
    #[command(hide = true)]
    TunProxy { own: Ipv4Addr, other: Ipv4Addr },
    /// A program of others; started by the benches.
    #[command(hide = true)]
    Other {
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
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
        Bench::Packets { options, compare } => packets::run(&options, compare.as_deref()),
        Bench::Overlay { options, flanneld } => overlay::run(&options, flanneld.as_deref()),
        Bench::Services {
            options,
            only,
            kube_proxy,
        } => services::run(&options, only, kube_proxy.as_deref()),
        Bench::Agent { api } => agent::run(api),
        Bench::TunProxy { own, other } => tun_proxy::serve(own, other),
        Bench::Other { program, arguments } => process::become_other(&program, &arguments),
        Bench::Serve { addresses } => server::serve(&addresses),
    }
}
