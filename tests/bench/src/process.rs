//! Processes of this program in namespaces: the servers of the backend pods, the TUN proxies of the nodes.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

const READY: &str = "ready";

/// A running process. It ends when its standard input does: when this goes, so also when the bench is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    _stdin: ChildStdin,
}

impl Process {
    /// Starts this program with other arguments inside `netns`, and waits until it is ready.
    pub fn start(netns: &Netns, arguments: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("find the path of this program")?;
        let mut child = netns.run(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {arguments:?}"))
        })?;
        let stdin = child
            .stdin
            .take()
            .context("stdin of a child that was asked for a pipe")?;
        let stdout = child
            .stdout
            .take()
            .context("stdout of a child that was asked for a pipe")?;
        let process = Self {
            child,
            _stdin: stdin,
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim_end() != READY {
            bail!("{arguments:?} did not start");
        }
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs this program with other arguments to its end; what it printed.
pub fn output(subcommand: &str, arguments: &[String]) -> Result<String> {
    let program = std::env::current_exe().context("find the path of this program")?;
    let output = Command::new(program)
        .arg(subcommand)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {subcommand}"))?;
    if !output.status.success() {
        bail!("{subcommand} {arguments:?} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What the process itself calls when its threads work: says so, and returns when nobody needs it any more.
pub fn be_ready() -> Result<()> {
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
