//! A node's agent as a process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tests_testkit::{Bpffs, Cgroup, Machine, Underlay};

use crate::{Api, Plugin, binary, eventually};

/// A node with its agent; both end when this is dropped, the agent without a farewell.
#[derive(Debug)]
pub struct Agent {
    name: String,
    arguments: Vec<String>,
    child: Option<Child>,
    machine: Machine,
    directory: TempDir,
    bpffs: Bpffs,
    _cgroup: Cgroup,
}

impl Agent {
    /// Starts an agent named `name` on `machine`, with further arguments, and does not wait for it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(name: &str, machine: Machine, server: &str, more: &[&str]) -> Result<Self> {
        let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new()?);
        let directory = tempfile::tempdir().context("make a temporary folder")?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let arguments = [
            format!("--node-name={name}"),
            format!("--server={server}"),
            "--uplink=eth0".to_owned(),
            "--kubelet=false".to_owned(),
            format!("--pin-dir={}", bpffs.pin_dir().display()),
            format!("--cgroup={}", cgroup.path().display()),
            format!("--state-dir={}", path("state")),
            format!("--cni-socket={}", path("cni.sock")),
            format!("--cni-bin-dir={}", path("bin")),
            format!("--cni-conf-dir={}", path("net.d")),
            format!("--subnet-env={}", path("subnet.env")),
        ];
        let mut agent = Self {
            name: name.to_owned(),
            arguments: arguments
                .into_iter()
                .chain(more.iter().map(|word| (*word).to_owned()))
                .collect(),
            child: None,
            machine,
            directory,
            bpffs,
            _cgroup: cgroup,
        };
        agent.again()?;
        Ok(agent)
    }

    /// Makes the Node `nNUMBER` with podCIDRs, starts its agent on machine NUMBER and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready, with what it logged.
    pub fn node(
        underlay: &Underlay,
        api: &Api,
        number: u8,
        pod_cidrs: &[&str],
        more: &[&str],
    ) -> Result<Self> {
        let name = format!("n{number}");
        api.add_node(&name, pod_cidrs, serde_json::json!({}))?;
        let mut agent = Self::start(&name, underlay.machine(number)?, &api.url(), more)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts it (again) with the same words.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn again(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))?;
        let mut command = Command::new(binary("fairlead-node-agent")?);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = self.machine.run(|| command.spawn());
        self.child = Some(child.context("start the agent")?);
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    ///
    /// When it does not run (any more).
    pub fn pid(&mut self) -> Result<u32> {
        let child = self.child.as_mut().context("the agent does not run")?;
        if let Some(status) = child.try_wait()? {
            bail!("the agent ended with {status}:\n{}", self.log());
        }
        Ok(self.child.as_ref().context("the agent does not run")?.id())
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// When it does not, with what it logged.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = eventually("the agent is not ready", || {
            let answer = self.get("/readyz")?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        });
        ready.with_context(|| format!("agent {}:\n{}", self.name, self.log()))
    }

    /// What it answers to a request, headers included.
    ///
    /// # Errors
    ///
    /// When it does not listen.
    pub fn get(&self, path: &str) -> Result<String> {
        self.machine.run(|| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10256));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Where it pins.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.pin_dir()
    }

    /// Below its own directory: `state`, `net.d`, `bin`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The plugin that the agent installed, as a runtime on this node calls it.
    #[must_use]
    pub fn plugin(&self) -> Plugin<'_> {
        Plugin {
            netns: &self.machine.netns,
            program: self.path("bin/fairlead-cni"),
            socket: Some(self.path("cni.sock")),
        }
    }

    /// What `ip` prints on the node.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let output = self
            .machine
            .run(|| Command::new("ip").args(arguments.split(' ')).output())?;
        if !output.status.success() {
            bail!(
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of agent {}:\n{}", self.name, self.log());
        }
    }
}
