//! `fairlead-control-plane`: the parts of the control plane, wired together in one process or split by `--role`.

#![forbid(unsafe_code)]

mod clients;
mod flags;
mod server;
mod store;

use std::io::IsTerminal;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use flags::{Command, Flags, Role};

fn main() -> Result<()> {
    let flags = Flags::parse();
    start_log(&flags)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(flags))
}

fn start_log(flags: &Flags) -> Result<()> {
    let filter = EnvFilter::try_new(&flags.log).with_context(|| {
        format!(
            "--log {:?} is no filter; give a level, as in info",
            flags.log
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if flags.log_json {
        log.json().init();
    } else {
        log.init();
    }
    Ok(())
}

async fn run(flags: Flags) -> Result<()> {
    if let Some(Command::Store(command)) = &flags.command {
        return store::run(command, &flags.store, &flags.data_dir).await;
    }
    let addresses = flags.addresses()?;
    let (stop, stopping) = watch::channel(false);
    let mut server = None;
    if flags.role.has(Role::Apiserver) {
        server = Some(server::Server::start(&flags, &addresses, stopping.clone()).await?);
    }
    let listening = server.as_ref().and_then(|s| s.addresses.first().copied());
    let mut clients = clients::start(&flags, listening)?;
    tokio::select! {
        signal = ended() => tracing::info!(signal = signal?, "stopping"),
        failed = clients::failed(&mut clients) => return Err(failed),
    }
    // Clients first: nobody is left to write when the API server ends.
    clients.shutdown().await;
    stop.send_replace(true);
    if let Some(server) = server {
        server.finish().await?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Waits for the signal to end; answers its name.
async fn ended() -> Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
