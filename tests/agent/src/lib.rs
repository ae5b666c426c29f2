//! The real agent and the real CNI plugin as processes, each node in namespaces of its own, against an API server of
//! ours on a machine beside them. No kubelet and no container: the tests are the container runtime.
#![forbid(unsafe_code)]

mod agent;
mod api;
mod etcd;
mod plugin;
mod pod;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use agent::Agent;
pub use api::Api;
pub use etcd::Etcd;
pub use plugin::{Plugin, reference};
pub use pod::Pod;

/// Far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `ask` has an answer.
///
/// # Errors
///
/// When it has none for a minute; with its last complaint.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.context(what.to_owned())),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether tests cannot run here, which is then printed.
#[must_use]
pub fn without_root() -> bool {
    let missing = !tests_testkit::is_root();
    if missing {
        tests_testkit::skip("making network namespaces needs root");
    }
    missing
}

/// A binary of this workspace, freshly built.
fn binary(name: &str) -> Result<PathBuf> {
    use std::sync::OnceLock;
    static BUILT: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    if let Err(error) = built {
        anyhow::bail!("{error}");
    }
    let own = std::env::current_exe().context("find the test's own file")?;
    // target/PROFILE/deps/TEST
    let directory = own.ancestors().nth(2).context("the test lies in target")?;
    let path = directory.join(name);
    ensure!(path.exists(), "{} was not built", path.display());
    Ok(path)
}

fn build() -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "-p=node-agent-daemon",
            "-p=node-agent-cni",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo build ended with {status}");
    Ok(())
}
