//! `up`: a whole cluster on this machine, step by step, its proof, and its end.

mod cluster;
mod daemons;
mod images;
mod node;
mod place;
mod progress;
mod proof;
mod state;
mod table;
mod teardown;
mod underlay;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::{setup, workspace};
use cluster::Kubectl;
use daemons::{ApiPort, Daemon};
use place::Place;
use progress::{Progress, Wait};
use state::{Lock, State};

/// How long any one wait may take on a small, busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const EXAMPLE: &str = "deploy/examples/hello.yaml";

#[derive(Debug, Args)]
pub struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(place::MAX_NODES)))]
    nodes: u8,
    /// Prove the traffic, then remove the cluster and exit
    #[arg(long, conflicts_with = "detach")]
    once: bool,
    /// Return when the cluster is ready and leave it running; `cargo xtask down` removes it
    #[arg(long)]
    detach: bool,
    /// Apply this manifest instead of deploy/examples/hello.yaml (its pods are waited for; no proof)
    #[arg(long, value_name = "FILE")]
    apply: Option<PathBuf>,
    /// Start the binaries that target/debug holds, without building them
    #[arg(long)]
    no_build: bool,
    /// Requests that each client makes per cell of the proof
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Run a command in a node's namespaces and control group
    Exec {
        /// n1, n2, … or outside
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// A cluster that is being built or stands; dropped, it is removed.
#[derive(Debug)]
struct Cluster {
    state: State,
    daemons: Vec<Daemon>,
    /// Of the example's HTTP port; unknown with a manifest of the user's own.
    node_port: Option<u64>,
    kept: bool,
}

pub fn run(options: &Options) -> Result<()> {
    setup::require_root("up")?;
    let apply = options
        .apply
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    if let Some(file) = apply.as_deref().filter(|file| !file.is_file()) {
        bail!("--apply {}: there is no such file", file.display());
    }
    let lock = Lock::take()?;
    if State::load()?.is_some() {
        bail!(
            "a development cluster is already there, detached or left by a crash: cargo xtask down removes it"
        );
    }
    setup::run()?;
    let progress = Progress::new()?;
    let kubectl = Kubectl::find()?;
    if !options.no_build {
        progress.step(
            "build the control plane, the agent and the eBPF object",
            || workspace::build(&["control-plane-daemon", "node-agent-daemon"]),
        )?;
    }
    let mut cluster = Cluster {
        state: State::new(options.nodes),
        daemons: Vec::new(),
        node_port: None,
        kept: false,
    };
    let outcome = cluster
        .start(&progress, &kubectl)
        .and_then(|()| cluster.prove(&progress, &kubectl, options, apply.as_deref()));
    if let Err(error) = outcome {
        if !progress.interrupted() {
            cluster.show_logs();
        }
        if let Err(second) = cluster.remove(&progress) {
            eprintln!("error: {second:#}; cargo xtask down tries again");
        }
        return Err(error);
    }
    print_usage(options, &kubectl, cluster.node_port);
    if options.detach {
        cluster.kept = true;
        drop(lock);
        return Ok(());
    }
    if !options.once {
        progress.note("\nThe cluster stays up until Ctrl-C.");
        progress.wait_for_signal();
        progress.note("");
    }
    cluster.remove(&progress)
}

pub fn down() -> Result<()> {
    setup::require_root("down")?;
    let _lock = Lock::take()?;
    match State::load()? {
        Some(state) => {
            teardown::remove(&state)?;
            println!("down: the cluster of {} nodes is gone", state.nodes);
        }
        None => println!("down: there is no development cluster"),
    }
    Ok(())
}

pub fn node(command: &NodeCommand) -> Result<()> {
    setup::require_root("node exec")?;
    let NodeCommand::Exec { node, command } = command;
    node::exec(&Place::parse(node)?, command).map(drop)
}

impl Cluster {
    fn start(&mut self, progress: &Progress, kubectl: &Kubectl) -> Result<()> {
        let count = self.state.nodes;
        progress.step("underlay: bridge and cables", || {
            place::make_folders()?;
            self.state.save()?;
            node::make_run_folder()?;
            underlay::make(count)
        })?;
        progress.step(
            &format!("{count} nodes: control group, bpffs, mount namespace"),
            || {
                place::nodes(count)
                    .chain([Place::Outside, Place::ControlPlane])
                    .try_for_each(|place| node::make(&place))
            },
        )?;
        self.start_docker(progress)?;
        let port = ApiPort::choose()?;
        if !port.is_usual() {
            progress.note(&format!(
                "           port 6443 is taken: the API server listens on {}",
                port.local()
            ));
        }
        daemons::write_kubeconfig(port)?;
        self.daemons.push(daemons::control_plane(port)?);
        self.wait(progress, "control plane", || Ok(kubectl.api_is_ready()))?;
        for place in place::nodes(count) {
            self.daemons.push(daemons::agent(&place, port)?);
        }
        self.wait(progress, &format!("{count} node agents"), || {
            kubectl.nodes_are_ready(count)
        })
    }

    fn start_docker(&mut self, progress: &Progress) -> Result<()> {
        let count = self.state.nodes;
        for place in place::nodes(count) {
            self.daemons.push(daemons::docker(&place)?);
        }
        progress.step("images of the example", images::build)?;
        self.wait(progress, &format!("{count} Docker daemons"), || {
            let ready = place::nodes(count).filter(images::docker_answers).count();
            Ok(if ready == usize::from(count) {
                Wait::Done(())
            } else {
                Wait::Pending(format!("{ready} of {count} answer"))
            })
        })?;
        progress.step("images on every node", || {
            place::nodes(count).try_for_each(|place| images::import(&place))
        })
    }

    fn prove(
        &mut self,
        progress: &Progress,
        kubectl: &Kubectl,
        options: &Options,
        apply: Option<&Path>,
    ) -> Result<()> {
        let example = workspace::root().join(EXAMPLE);
        let file = apply.unwrap_or(&example);
        progress.step(&format!("kubectl apply -f {}", file.display()), || {
            kubectl.apply(file)
        })?;
        self.wait(progress, "pods are ready", || {
            kubectl.pods_of_file_are_ready(file)
        })?;
        if apply.is_some() {
            return Ok(());
        }
        let pods = kubectl.pods("app=hello")?;
        let service = kubectl.service("hello")?;
        self.node_port = Some(service.http_node_port);
        self.wait(progress, "endpoints are ready", || {
            kubectl.endpoints_are_ready("hello", pods.len())
        })?;
        let proof = proof::Proof::new(self.state.nodes, pods, service, options.requests);
        self.wait(progress, "every node knows every backend", || {
            proof.has_converged()
        })?;
        let results = progress.step("proof of the traffic", || proof.run())?;
        proof.save(&results)?;
        let rows = proof.rows(&results);
        progress.note(&format!("\n{}", table::draw(&proof.legend(), &rows)));
        let faults = proof.faults(&results);
        if !faults.is_empty() {
            bail!(
                "the traffic is not as it should be:\n  {}",
                faults.join("\n  ")
            );
        }
        progress.note(&proof.verdict(&results));
        Ok(())
    }

    fn wait(
        &mut self,
        progress: &Progress,
        name: &str,
        mut poll: impl FnMut() -> Result<Wait<()>>,
    ) -> Result<()> {
        let daemons = &mut self.daemons;
        progress.wait(name, PATIENCE, || {
            daemons.iter_mut().try_for_each(Daemon::check)?;
            poll()
        })
    }

    fn show_logs(&self) {
        for daemon in &self.daemons {
            eprintln!("{}", daemon.tail());
        }
        eprintln!("--- all logs: {}", place::logs().display());
    }

    fn remove(mut self, progress: &Progress) -> Result<()> {
        self.kept = true;
        // Ctrl-C asks for just this, so it must not stop it.
        progress.uninterrupted("remove the cluster", || teardown::remove(&self.state))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only a panic comes here: every other way removes the cluster or keeps it on purpose.
        if !self.kept
            && let Err(error) = teardown::remove(&self.state)
        {
            eprintln!("error: cannot remove the cluster: {error:#}; try cargo xtask down");
        }
    }
}

fn print_usage(options: &Options, kubectl: &Kubectl, node_port: Option<u64>) {
    if options.once {
        return;
    }
    let exec = "cargo xtask node exec";
    println!("\nUse it:");
    println!("  export KUBECONFIG={}", place::kubeconfig().display());
    println!("  {} get pods -o wide", kubectl.path().display());
    println!("  {exec} n1 -- bpftool map dump pinned /sys/fs/bpf/fairlead/service_v2");
    println!("  {exec} n1 -- docker ps");
    if let Some(port) = node_port {
        let url = format!("http://{}:{port}/", Place::Node(1).addresses().0);
        println!(
            "  {exec} outside -- {} probe --http {url} --count 12",
            place::hello_binary().display()
        );
    }
    println!("Logs: {}", place::logs().display());
    if options.detach {
        println!("Remove it: cargo xtask down");
    }
}
