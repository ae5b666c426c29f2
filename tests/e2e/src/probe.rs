//! Many requests from one position, counted by who answered.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{Cluster, Position};

/// What to ask, how often.
#[derive(Debug, Clone)]
pub struct Probe {
    pub from: Position,
    /// `http://ADDRESS:PORT/`, or `udp:ADDRESS:PORT`.
    pub target: String,
    pub count: u32,
    /// Requests a second; each has a connection or socket of its own.
    pub rate: u32,
}

/// What the example's program prints.
#[derive(Debug, Clone, Deserialize)]
pub struct Tally {
    pub sent: u32,
    pub replies: u32,
    pub backends: BTreeMap<String, Answers>,
    /// How often each error came.
    pub errors: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Answers {
    pub count: u32,
}

/// A probe on its way.
#[derive(Debug)]
pub struct Running {
    probe: Probe,
    child: Child,
}

impl Probe {
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn start(self, cluster: &Cluster) -> Result<Running> {
        let mut command = match &self.from {
            Position::Host(place) => cluster.on(place, &[&cluster.hello()]),
            Position::InPod(pod) => {
                cluster.on(&pod.node, &["docker", "exec", &pod.container, "/hello"])
            }
        };
        command.arg("probe");
        match self.target.strip_prefix("udp:") {
            Some(address) => command.args(["--udp", address]),
            None => command.args(["--http", &self.target]),
        };
        command
            .args(["--json", "--timeout-ms", "3000"])
            .args([
                "--count",
                &self.count.to_string(),
                "--rate",
                &self.rate.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Running { probe: self, child })
    }
}

impl Running {
    /// Waits for the last answer.
    ///
    /// # Errors
    ///
    /// If the program did not run to its end.
    pub fn finish(self) -> Result<(Probe, Tally)> {
        let output = self
            .child
            .wait_with_output()
            .context("cannot wait for a probe")?;
        let tally = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "{:?} printed no JSON and ended with {}",
                self.probe, output.status
            )
        })?;
        Ok((self.probe, tally))
    }
}
