//! The cluster that `cargo xtask up --detach` leaves running, removed when this guard goes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Removes the cluster when dropped.
#[derive(Debug)]
pub struct Cluster {
    root: PathBuf,
}

/// A pod of the example.
#[derive(Debug, Clone)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub ipv4: String,
    /// Docker's id of its container.
    pub container: String,
}

/// From where a client asks.
#[derive(Debug, Clone)]
pub enum Position {
    /// A host process on the node, or `outside`.
    Host(String),
    InPod(Pod),
}

impl Cluster {
    /// Starts a cluster of three nodes with the example in it.
    ///
    /// # Errors
    ///
    /// If one is there already, or does not become ready.
    pub fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .canonicalize()?;
        let cluster = Self { root };
        let status = cluster
            .xtask(&["up", "--detach"])
            .status()
            .context("cannot start cargo xtask up")?;
        if !status.success() {
            // Not ours to remove: it may be somebody's own.
            std::mem::forget(cluster);
            bail!("cargo xtask up --detach ended with {status}");
        }
        Ok(cluster)
    }

    /// `cargo xtask ARGUMENTS`, at the workspace's root.
    #[must_use]
    pub fn xtask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["run", "--quiet", "--package", "xtask", "--"])
            .args(arguments)
            .current_dir(&self.root);
        command
    }

    /// A command line that runs where the node (or `outside`) is.
    #[must_use]
    pub fn on(&self, place: &str, arguments: &[&str]) -> Command {
        // The binary itself: cargo would take its lock for each of many probes.
        let mut command = Command::new(self.root.join("target/debug/xtask"));
        command
            .args(["node", "exec", place, "--"])
            .args(arguments)
            .current_dir(&self.root);
        command
    }

    /// What a command prints where the node is.
    ///
    /// # Errors
    ///
    /// If it fails; with what it said.
    pub fn output(&self, place: &str, arguments: &[&str]) -> Result<String> {
        run(self.on(place, arguments))
    }

    /// What kubectl prints.
    ///
    /// # Errors
    ///
    /// If it fails; with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let own = self.root.join("target/tools/kubectl");
        let mut command = Command::new(if own.exists() { own } else { "kubectl".into() });
        command
            .arg("--kubeconfig")
            .arg(self.root.join("target/up/kubeconfig"))
            .arg("--cache-dir")
            .arg(self.root.join("target/up/kubectl-cache"))
            .args(arguments);
        run(command)
    }

    /// # Errors
    ///
    /// If kubectl fails or prints no JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Applies one object, as `kubectl apply` does.
    ///
    /// # Errors
    ///
    /// If kubectl fails; with what it said.
    pub fn apply_json(&self, object: &Value) -> Result<()> {
        let file = self.root.join("target/up/applied.json");
        std::fs::write(&file, object.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        self.kubectl(&["apply", "--filename", &file.to_string_lossy()])
            .map(drop)
    }

    /// The example's pods by name.
    ///
    /// # Errors
    ///
    /// If there are none, or one of them is not running.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.get(&["pods", "--selector=app=hello"])?;
        let items = list["items"]
            .as_array()
            .context("kubectl printed no list")?;
        ensure!(!items.is_empty(), "the example has no pods");
        let mut pods = items.iter().map(Pod::read).collect::<Result<Vec<_>>>()?;
        pods.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(pods)
    }

    /// Path of the example's program, to run it as a host process.
    #[must_use]
    pub fn hello(&self) -> String {
        self.root
            .join("target/up/hello")
            .to_string_lossy()
            .into_owned()
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.root.join("target/up/logs").join(name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.xtask(&["down"]).status() {
            Ok(status) if status.success() => {}
            outcome => eprintln!("cargo xtask down: {outcome:?}"),
        }
    }
}

impl Pod {
    /// Process id of its container's first process, as this machine sees it.
    ///
    /// # Errors
    ///
    /// If Docker does not know the container.
    pub fn pid(&self, cluster: &Cluster) -> Result<String> {
        let words = [
            "docker",
            "inspect",
            "--format={{.State.Pid}}",
            &self.container,
        ];
        Ok(cluster.output(&self.node, &words)?.trim().to_string())
    }

    fn read(pod: &Value) -> Result<Self> {
        let text = |pointer: &str| {
            let value = pod.pointer(pointer).and_then(Value::as_str);
            value
                .map(str::to_string)
                .with_context(|| format!("a pod without {pointer}"))
        };
        let container = text("/status/containerStatuses/0/containerID")?;
        Ok(Self {
            name: text("/metadata/name")?,
            node: text("/spec/nodeName")?,
            ipv4: text("/status/podIP")?,
            container: container.trim_start_matches("docker://").to_string(),
        })
    }
}

/// Runs a command to its end and returns what it printed.
fn run(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
