//! Real clients against an API server of ours, in this process and on a loopback port; or kubectl and helm against a real
//! kube-apiserver, by the same cases.

#![forbid(unsafe_code)]

pub mod case;
pub mod reference;
pub mod transcript;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use control_plane_registry::{Options, Registry};
use control_plane_store::{EmbeddedStore, embedded};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// An API server over an empty store. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    pub registry: Registry,
    stop: watch::Sender<bool>,
    kubectl: PathBuf,
    /// The store, and kubectl's home with its caches.
    dir: TempDir,
}

impl Server {
    /// A server for the test that runs on this thread.
    ///
    /// # Errors
    /// When there is no kubectl, or the server cannot start.
    pub async fn start() -> Result<Self> {
        // The test's own thread has its name, and it is the one that waits for this.
        let test = std::thread::current().name().map(ToOwned::to_owned);
        Self::start_for(&test.context("the test runs on a thread without a name")?).await
    }

    /// A server for the test of this name.
    ///
    /// # Errors
    /// When there is no kubectl, or the server cannot start.
    pub async fn start_for(test: &str) -> Result<Self> {
        let kubectl = find("kubectl", "FAIRLEAD_KUBECTL")?;
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let path = dir.path().join("store.redb");
        let store = EmbeddedStore::open(path, embedded::Options::default())?;
        let registry = Registry::open(Arc::new(store), Options::default()).await?;
        let (stop, stopping) = watch::channel(false);
        let app = control_plane_apiserver::app(registry.clone(), stopping.clone());
        let app = tests_coverage::record(app, test)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(control_plane_apiserver::serve(listener, app, stopping));
        Ok(Self {
            address,
            registry,
            stop,
            kubectl,
            dir,
        })
    }

    /// The same server, asked by another kubectl.
    #[must_use]
    pub fn with_kubectl(mut self, kubectl: PathBuf) -> Self {
        self.kubectl = kubectl;
        self
    }

    /// The server for clients other than kubectl.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How clients that read a kubeconfig reach it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url(), "", "")
    }

    /// `kubectl ARGS`, to be started by the caller.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.args(["--server", &self.url()]).args(args);
        self.confine(&mut command);
        command
    }

    /// Nothing of the caller's settings, and no terminal.
    fn confine(&self, command: &mut Command) {
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
    }

    /// What `kubectl ARGS` prints.
    ///
    /// # Errors
    /// When it fails; the text is what it printed as its error.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().await?;
        answer(args, output)
    }

    /// What `kubectl ARGS` complains of.
    ///
    /// # Errors
    /// When it does not fail.
    pub async fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output().await?;
        if output.status.success() {
            bail!(
                "kubectl {} should fail and printed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(String::from_utf8(output.stderr)?)
    }

    /// `kubectl ARGS -o json`, parsed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        Ok(serde_json::from_str(&self.kubectl(&args).await?)?)
    }

    /// Writes a manifest into a file, to be named with `-f`.
    ///
    /// # Errors
    /// The file system's.
    pub fn manifest(&self, text: &str) -> Result<PathBuf> {
        let mut file = tempfile::Builder::new()
            .suffix(".yaml")
            .tempfile_in(self.dir.path())?;
        file.write_all(text.as_bytes())?;
        let (_, path) = file.keep()?;
        Ok(path)
    }

    /// `kubectl VERB -f -` with this manifest, and more arguments.
    ///
    /// # Errors
    /// When it fails.
    pub async fn with_manifest(&self, args: &[&str], text: &str) -> Result<String> {
        let path = self.manifest(text)?;
        let path = path.to_str().context("the path is no UTF-8")?;
        let args: Vec<&str> = args.iter().copied().chain(["-f", path]).collect();
        self.kubectl(&args).await
    }

    /// `kubectl apply` of this manifest.
    ///
    /// # Errors
    /// When it fails.
    pub async fn apply(&self, text: &str) -> Result<String> {
        self.with_manifest(&["apply"], text).await
    }

    /// Starts `kubectl ARGS` and leaves it running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        Ok(self.command(args).spawn()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn answer(args: &[&str], output: Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "kubectl {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A kubeconfig with one cluster; `more` and `user` are parts of YAML flow mappings.
fn kubeconfig(server: &str, more: &str, user: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: it
clusters: [{{name: it, cluster: {{server: \"{server}\"{more}}}}}]
users: [{{name: it, user: {{{user}}}}}]
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
"
    )
}

/// What the environment variable names, else what `cargo xtask setup` fetched, else the one in `PATH`.
fn find(tool: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/tools")
        .join(tool);
    if own.exists() {
        return Ok(own.canonicalize()?);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(tool))
        .find(|file| file.exists())
        .with_context(|| format!("no {tool}: run `cargo xtask setup`, or set {variable} to one"))
}

/// The cells of a table that kubectl printed, by the places of its headings. A blank cell is a dot, and blanks in
/// cells and headings are underscores and dashes, so that a row can be written as one text.
#[must_use]
pub fn columns(table: &str) -> Vec<Vec<String>> {
    let head = table.lines().next().unwrap_or_default();
    let bytes = head.as_bytes();
    // Columns are parted by three blanks; a heading may hold one.
    let starts: Vec<usize> = (0..head.len())
        .filter(|&at| {
            bytes[at] != b' '
                && (at == 0 || (at >= 2 && bytes[at - 1] == b' ' && bytes[at - 2] == b' '))
        })
        .collect();
    let cells = |line: &str, blank: &str| {
        let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
        let cells = starts.iter().zip(ends).map(|(&from, to)| {
            let cell = line.get(from.min(line.len())..to.min(line.len()));
            match cell.unwrap_or_default().trim() {
                "" => ".".to_owned(),
                cell => cell.replace(' ', blank),
            }
        });
        cells.collect()
    };
    table
        .lines()
        .enumerate()
        .map(|(at, line)| cells(line, if at == 0 { "-" } else { "_" }))
        .collect()
}
