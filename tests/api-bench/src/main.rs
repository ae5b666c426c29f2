//! `cargo xtask bench api`: the API server on the embedded store and on etcd, and a kube-apiserver where one is given.
//!
//! All servers are alive at once and asked in turns; clients are processes of their own. A rate is of 16 connections,
//! each of which asks again when it has its answer.

#![forbid(unsafe_code)]

mod disk;
mod figures;
mod http;
mod load;
mod objects;
mod population;
mod rounds;
mod side;
mod tls;
mod watchers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::runtime::Runtime;

use figures::{Figures, RECORDED_NAME, Target};
use http::{Call, Connection};
use side::{Program, Side};

/// How long a server is left alone before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(10);
const STARTS: usize = 5;

/// Measures the API server beside a kube-apiserver.
#[derive(Debug, Parser)]
#[command(name = "api", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    client: Option<Client>,
}

/// The clients; started by the bench.
#[derive(Debug, Subcommand)]
enum Client {
    #[command(hide = true)]
    Load { load: String },
    #[command(hide = true)]
    Watch { watching: String },
}

/// What the bench takes.
#[derive(Debug, Args)]
struct Options {
    /// Write the figures to this file, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A third of the rounds and 10,000 Pods: to see that it runs, not to compare.
    #[arg(long)]
    quick: bool,
    /// Measure this kube-apiserver too, with an etcd of its own.
    #[arg(long, value_name = "PATH", requires = "etcd")]
    kube_apiserver: Option<PathBuf>,
    /// The etcd below it and below ours; default: the one in PATH.
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// Only the embedded store.
    #[arg(long, conflicts_with_all = ["etcd", "kube_apiserver"])]
    embedded_only: bool,
}

/// The bench while it runs.
#[derive(Debug)]
struct Bench {
    runtime: Runtime,
    sides: Vec<Side>,
    figures: Figures,
    folder: tempfile::TempDir,
    quick: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.client {
        None => run(&cli.options),
        Some(Client::Load { load }) => load::serve(&load),
        Some(Client::Watch { watching }) => watchers::serve(&watching),
    }
}

/// Runs the bench, prints its table and writes its figures.
fn run(options: &Options) -> Result<()> {
    allow_many_files()?;
    let mut bench = Bench::start(options)?;
    bench.start_ups()?;
    bench.rounds()?;
    bench.watches()?;
    bench.populate()?;
    bench.hold_to_targets();
    print!("{}", bench.figures.table());
    if options.kube_apiserver.is_none() {
        println!(
            "{RECORDED_NAME}: kube-apiserver 1.28.0 on etcd 3.5.30 over TLS, of another run on such a machine; \
             --kube-apiserver and --etcd measure one beside"
        );
    }
    if let Some(path) = &options.json {
        bench.figures.write_json(path)?;
    }
    bench.figures.verdict()
}

impl Bench {
    fn start(options: &Options) -> Result<Self> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program lies in no folder")?;
        let program = beside.join("fairlead-control-plane");
        ensure!(
            program.exists(),
            "there is no {}: `cargo xtask bench api` builds it",
            program.display()
        );
        // Beside the programs: a temporary folder may be in memory, where a sync costs nothing.
        let folder = tempfile::tempdir_in(beside)?;
        let mut programs = vec![Program::Embedded(program.clone())];
        if !options.embedded_only {
            let etcd = options.etcd.clone().or_else(|| in_path("etcd"));
            let etcd = etcd.context(
                "there is no etcd in PATH: `cargo xtask setup` installs it, --etcd names another, \
                 --embedded-only does without",
            )?;
            programs.push(Program::Etcd(program, etcd.clone()));
            let reference = options.kube_apiserver.clone();
            programs.extend(reference.map(|reference| Program::Kubernetes(reference, etcd)));
        }
        let sides = programs.into_iter().map(|p| Side::new(p, folder.path()));
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            sides: sides.collect::<Result<_>>()?,
            figures: Figures::default(),
            folder,
            quick: options.quick,
        })
    }

    /// How long an empty server takes to be ready, and what it holds then; afterwards all are started.
    fn start_ups(&mut self) -> Result<()> {
        eprintln!("start-up");
        for side in &mut self.sides {
            let mut seconds = Vec::new();
            for _ in 0..STARTS {
                seconds.push(side.start(&self.runtime, "all")? * 1e3);
                side.stop()?;
            }
            self.figures.add(side.name, "start_empty", "ms", &seconds);
            side.start(&self.runtime, "all")?;
            std::thread::sleep(SETTLE);
            self.figures
                .add(side.name, "memory", "MiB", &[side.memory()?]);
            side.stop()?;
            side.start(&self.runtime, "apiserver")?;
        }
        Ok(())
    }

    /// Makes a namespace at `side`.
    fn make_namespace(runtime: &Runtime, side: &Side, name: &str) -> Result<()> {
        let body = json!({"metadata": {"name": name}}).to_string();
        let call = Call::with_json("POST", "/api/v1/namespaces".into(), body);
        runtime.block_on(async { Connection::open(&side.target()).await?.ask(&call).await })?;
        Ok(())
    }

    fn hold_to_targets(&mut self) {
        use Target::{AtMost, ShareOfKubernetes, TimesKubernetes};
        for (side, metric, target) in [
            ("embedded", "creates", TimesKubernetes(4.0)),
            ("embedded", "patches", TimesKubernetes(4.0)),
            ("embedded", "gets", TimesKubernetes(5.0)),
            ("etcd", "creates", TimesKubernetes(1.0)),
            ("etcd", "patches", TimesKubernetes(1.0)),
            ("etcd", "gets", TimesKubernetes(1.0)),
            ("embedded", "list_3000", AtMost(10.0)),
            ("etcd", "list_3000", AtMost(10.0)),
            ("embedded", "events", TimesKubernetes(4.0)),
            ("etcd", "events", TimesKubernetes(4.0)),
            ("embedded", "event_p99", ShareOfKubernetes(0.5)),
            ("etcd", "event_p99", ShareOfKubernetes(0.5)),
            ("embedded", "start_empty", AtMost(300.0)),
            ("etcd", "start_empty", AtMost(300.0)),
            ("embedded", "start_150000", AtMost(3_000.0)),
            ("etcd", "start_150000", AtMost(3_000.0)),
            ("embedded", "memory", AtMost(60.0)),
            ("etcd", "memory", AtMost(60.0)),
            ("embedded", "memory_of_watcher", AtMost(200.0)),
            ("etcd", "memory_of_watcher", AtMost(200.0)),
        ] {
            self.figures.hold(side, metric, target);
        }
    }
}

/// A thousand watches are more files than a process may open by default; the servers inherit it.
fn allow_many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("allow more open files")
}

fn in_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| Path::is_file(path))
}
