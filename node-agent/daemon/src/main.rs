//! `fairlead-node-agent`: flags, wiring, signals. Everything else is in the crates that it wires.
#![forbid(unsafe_code)]

mod agent;
mod checksum_proof;
mod client;
mod cni;
mod collect;
mod connections;
mod device;
mod events;
mod external;
mod flags;
mod gone_backends;
mod host;
mod host_ports;
mod http;
mod keeper;
mod kubelet;
mod kubelet_api;
mod own_node;
mod pace;
mod patience;
mod peers;
mod pods;
mod readiness;
mod registry;
mod scrape;
mod service_health;
mod static_registry;
mod streams;

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use clap::Parser;
use node_agent_host::share_memory;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::flags::Flags;
use crate::peers::BeginAnew;

fn main() -> anyhow::Result<()> {
    share_memory();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = agent::run(flags) => result.or_else(begin_anew),
        _ = terminate.recv() => stopping("SIGTERM"),
        _ = interrupt.recv() => stopping("SIGINT"),
    }
}

/// What an agent does that is killed and started again, without the time between: everything is pinned, and the same
/// process goes on.
fn begin_anew(error: anyhow::Error) -> anyhow::Result<()> {
    if error.downcast_ref::<BeginAnew>().is_none() {
        return Err(error);
    }
    info!(reason = format!("{error:#}"), "beginning anew");
    let mut words = std::env::args_os();
    let program = words.next().context("a process has a name")?;
    // Only an error comes back.
    Err(Command::new(program).args(words).exec()).context("beginning anew")
}

fn stopping(signal: &str) -> anyhow::Result<()> {
    info!(signal, "stopping: programs, maps and pods stay as they are");
    Ok(())
}
