//! The real kubectl against a test's node.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use super::{TestNode, daemons::SERVER};

/// Names another kubectl.
const BINARY: &str = "FAIRLEAD_KUBECTL";

impl TestNode {
    /// `kubectl ARGUMENTS`, to be started by the caller.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg(format!("--server=http://{SERVER}"))
            .args(arguments)
            .env("HOME", self.path("home"))
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs kubectl beside the kubelet's own tasks, and answers what it did.
    pub async fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with(arguments, "").await
    }

    /// As [`Self::kubectl`], with this on its standard input.
    pub async fn kubectl_with(&self, arguments: &[&str], input: impl Into<Vec<u8>>) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut command = tokio::process::Command::from(self.kubectl_command(arguments));
        let mut child = command
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.into();
        let feed = async move {
            // Not everything that runs reads what it is given.
            let _ = stdin.write_all(&input).await;
        };
        let limit = std::time::Duration::from_secs(60);
        let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = tokio::time::timeout(limit, ended).await;
        output
            .unwrap_or_else(|_| panic!("kubectl {} does not end", arguments.join(" ")))
            .unwrap()
    }

    /// What a kubectl that must succeed prints.
    pub async fn kubectl_ok(&self, arguments: &[&str]) -> String {
        ok(arguments, self.kubectl(arguments).await)
    }
}

pub fn ok(arguments: &[&str], output: Output) -> String {
    assert!(
        output.status.success(),
        "kubectl {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "kubectl should fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the variable names, else what `cargo xtask setup` fetched.
fn binary() -> PathBuf {
    if let Ok(path) = std::env::var(BINARY) {
        return path.into();
    }
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kubectl");
    assert!(
        own.exists(),
        "no kubectl: run `cargo xtask setup`, or set {BINARY} to one"
    );
    own
}
