//! A server of its own in a pod's network namespace: it can be closed, which a pod of the example cannot.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{Cluster, Pod};

/// A running server, closed when dropped.
#[derive(Debug)]
pub struct Backend {
    pub pod: Pod,
    /// TCP port of its HTTP server.
    pub port: u16,
    /// What it answers.
    pub name: String,
    child: Child,
}

impl Backend {
    /// Starts the example's server beside the pod's own, on another port, and waits until it listens. `pid`: of a
    /// process of the pod.
    ///
    /// # Errors
    ///
    /// If it cannot be started or does not listen.
    pub fn start(cluster: &Cluster, pod: &Pod, pid: &str, port: u16) -> Result<Self> {
        let name = format!("{}:{port}", pod.name);
        let namespace = format!("--net=/proc/{pid}/ns/net");
        let number = port.to_string();
        let hello = cluster.hello();
        // Both replace themselves by the next command: the child is the server in the end.
        let words = [
            "nsenter", &namespace, "--", &hello, "serve", "--http", &number, "--udp", &number,
            "--name", &name,
        ];
        let mut child = cluster
            .on(&pod.node, &words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let output = child.stdout.take().context("the server has no output")?;
        let backend = Self {
            pod: pod.clone(),
            port,
            name,
            child,
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(
            line.contains("serves HTTP"),
            "{} does not listen: {line:?}",
            backend.name
        );
        Ok(backend)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Both fail only for a child that is gone, and then there is nothing to close.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
