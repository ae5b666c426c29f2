//! `fairlead-node-agent`: flags, wiring, signals. Everything else is in the crates that it wires.
#![forbid(unsafe_code)]

mod agent;
mod client;
mod collect;
mod events;
mod flags;
mod host;
mod http;
mod kubelet;
mod kubelet_api;
mod own_node;
mod pods;
mod readiness;
mod scrape;
mod streams;

use std::io::IsTerminal;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::flags::Flags;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
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
        result = agent::run(flags) => result,
        _ = terminate.recv() => stopping("SIGTERM"),
        _ = interrupt.recv() => stopping("SIGINT"),
    }
}

fn stopping(signal: &str) -> anyhow::Result<()> {
    info!(signal, "stopping: programs, maps and pods stay as they are");
    Ok(())
}
