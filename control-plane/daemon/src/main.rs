//! `fairlead-control-plane`: the parts of the control plane, wired together in one process or split by `--role`.

#![forbid(unsafe_code)]

mod api;
mod clients;
mod flags;
mod server;
mod store;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use mimalloc::MiMalloc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use flags::{Command, Flags, Role};

/// A request is hundreds of small texts: writes were a tenth to a quarter faster than with the C library's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> Result<()> {
    let flags = Flags::parse();
    start_log(&flags)?;
    allow_many_files();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(flags))
}

/// Every watcher is an open file, and the usual limit of 1,024 is one that a service manager sets for `select(2)`, which
/// nothing here calls: go up to the hard limit, as kube-apiserver's runtime does.
fn allow_many_files() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limits.current, "cannot allow more open files");
    }
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
    // Before anything answers: whoever sees this ready may end it, and the end is to be orderly.
    let mut signals = Signals::catch()?;
    let addresses = flags.addresses()?;
    let own = api::OwnTokens::new();
    let (stop, stopping) = watch::channel(false);
    let (leave, leaving) = watch::channel(false);
    let mut server = None;
    let mut traces = None;
    if flags.role.has(Role::Apiserver) {
        let mut settings = api::settings(&flags, &own)?;
        settings.leaving = Some(leaving);
        traces.clone_from(&settings.tracing);
        let started = tokio::select! {
            started = server::Server::start(&flags, settings, &addresses, stopping.clone()) => started?,
            signal = signals.next() => {
                tracing::info!(signal, "stopped before the start was over");
                return Ok(());
            }
        };
        server = Some(started);
    }
    let listening = server.as_ref().and_then(|s| s.addresses.first().copied());
    let mut clients = clients::start(&flags, listening, &own)?;
    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping"),
        failed = clients::failed(&mut clients) => return Err(failed),
    }
    leave.send_replace(true);
    if server.is_some() && !flags.api.shutdown_delay_duration.is_zero() {
        wait_before_the_end(flags.api.shutdown_delay_duration, &mut signals).await;
    }
    // Clients first: nobody is left to write when the API server ends.
    clients.shutdown().await;
    stop.send_replace(true);
    if let Some(server) = server {
        server.finish().await?;
    }
    if let Some(traces) = traces {
        // It waits for its thread.
        tokio::task::spawn_blocking(move || traces.finish())
            .await
            .context("cannot send the last traces")?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Goes on serving while load balancers learn from `/readyz` that they should look elsewhere; a second signal cuts it
/// short.
async fn wait_before_the_end(delay: Duration, signals: &mut Signals) {
    tracing::info!(?delay, "not ready any more, still serving");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = signals.next() => {}
    }
}

/// The signals to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    fn catch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }

    /// Waits for one; answers its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
