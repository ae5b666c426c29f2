//! A node's agent as a process: found, killed without a farewell, started again with the same words.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Cluster;

/// The agent's own port on its node, for health and metrics.
const PORT: u16 = 10256;

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    node: String,
    pid: Pid,
    arguments: Vec<String>,
}

impl Agent {
    /// Finds the agent among the processes of its node.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        // Its processes are those of the control group that a command on the node joins.
        let own = cluster.output(node, &["sh", "-c", "sed -n 's/^0:://p' /proc/self/cgroup"])?;
        let groups = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(|mount| format!("{mount}{}", own.trim()));
        let list = groups
            .iter()
            .find_map(|group| fs::read_to_string(format!("{group}/cgroup.procs")).ok())
            .with_context(|| format!("{node} has no control group"))?;
        for pid in list.lines() {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments: Vec<String> = words
                .split(|byte| *byte == 0)
                .filter(|word| !word.is_empty())
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            if arguments
                .first()
                .is_some_and(|program| program.ends_with("fairlead-node-agent"))
            {
                return Ok(Self {
                    node: node.to_string(),
                    pid: Pid::from_raw(pid.parse()?),
                    arguments,
                });
            }
        }
        bail!("no agent runs on {node}")
    }

    /// `kill -9`.
    ///
    /// # Errors
    ///
    /// If it is gone already.
    pub fn kill(&self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL)
            .with_context(|| format!("cannot kill the agent of {}", self.node))
    }

    /// Starts it again, as it had been started; the child is the command that becomes the agent.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn restart(&self, cluster: &Cluster) -> Result<Child> {
        let log = cluster.log(&format!("{}-fairlead-node-agent-again.log", self.node));
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let words: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command: Command = cluster.on(&self.node, &words);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        command
            .spawn()
            .with_context(|| format!("cannot start the agent of {} again", self.node))
    }

    /// Waits until the agent on the node says that it is ready.
    ///
    /// # Errors
    ///
    /// If it does not within half a minute; with what it says.
    pub fn wait_ready(&self, cluster: &Cluster) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answer = get(cluster, &self.node, "/readyz");
            if answer
                .as_ref()
                .is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
            {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "the agent of {} is not ready: {answer:?}",
                self.node
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The sum of a metric over its labels.
    ///
    /// # Errors
    ///
    /// If the agent does not answer or has no such metric.
    pub fn metric(&self, cluster: &Cluster, name: &str) -> Result<f64> {
        let text = get(cluster, &self.node, "/metrics")?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(
            !values.is_empty(),
            "the agent of {} has no metric {name}",
            self.node
        );
        Ok(values.iter().sum())
    }
}

/// Asks the agent; bash can, and every machine has it.
fn get(cluster: &Cluster, node: &str, path: &str) -> Result<String> {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{PORT} && printf 'GET {path} HTTP/1.1\\r\\nHost: agent\\r\\nConnection: close\\r\\n\\r\\n' >&3 && cat <&3"
    );
    cluster.output(node, &["bash", "-c", &script])
}
