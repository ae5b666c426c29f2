//! Processes in namespaces: of this program the servers of the backend pods and the TUN proxies of the nodes; flanneld.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

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

    /// Starts a program of others inside `netns`; what it prints goes into the file `log`.
    pub fn other(netns: &Netns, program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let own = std::env::current_exe().context("find the path of this program")?;
        let file = File::create(log).with_context(|| format!("write {}", log.display()))?;
        let mut child = netns.run(|| {
            Command::new(own)
                .arg("other")
                .arg(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(file.try_clone()?)
                .stderr(file)
                .spawn()
                .with_context(|| format!("start {}", program.display()))
        })?;
        let stdin = child.stdin.take().context("stdin was asked for")?;
        Ok(Self {
            child,
            _stdin: stdin,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running process of this program that is asked by lines and answers by lines of JSON. It ends as [`Process`] does.
#[derive(Debug)]
pub struct Spoken {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Spoken {
    pub fn start(subcommand: &str, arguments: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("find the path of this program")?;
        let mut child = Command::new(program)
            .arg(subcommand)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {subcommand}"))?;
        let stdin = child.stdin.take().context("stdin was asked for")?;
        let stdout = child.stdout.take().context("stdout was asked for")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{line}")?)
    }

    /// Waits for the next answer.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the process ended: {}", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("read the answer {line:?}"))
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process itself calls when its threads work: says so, and returns when nobody needs it any more.
pub fn be_ready() -> Result<()> {
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What the process itself calls to become a program of others, which knows nothing of its standard input: so the kernel ends
/// it with the bench.
pub fn become_other(program: &OsStr, arguments: &[OsString]) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}
