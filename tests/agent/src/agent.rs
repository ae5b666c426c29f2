//! A node's agent as a process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tests_testkit::{Bpffs, Cgroup, Machine, Underlay, program};

use crate::{Api, Plugin, eventually};

/// A node with its agent; both end when this is dropped, the agent without a farewell.
#[derive(Debug)]
pub struct Agent {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    /// Where it finds what a pod's container finds in /run, and its environment.
    as_pod: Option<(PathBuf, Vec<(String, String)>)>,
    child: Option<Child>,
    machine: Machine,
    directory: TempDir,
    bpffs: Bpffs,
    cgroup: Cgroup,
}

impl Agent {
    /// Starts an agent named `name` on `machine` and does not wait for it; one of the arguments says where the API server is.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(name: &str, machine: Machine, more: &[&str]) -> Result<Self> {
        let mut agent = Self::prepare(name, machine, more)?;
        agent.again()?;
        Ok(agent)
    }

    /// As [`Agent::start`], as the container of a pod: `run` is its `/run`, with the service account's files in
    /// `secrets/kubernetes.io/serviceaccount`, and its environment says where the API server is.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_as_pod(
        name: &str,
        machine: Machine,
        run: &Path,
        server: SocketAddr,
        more: &[&str],
    ) -> Result<Self> {
        let mut agent = Self::prepare(name, machine, more)?;
        let environment = [
            ("KUBERNETES_SERVICE_HOST", server.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", server.port().to_string()),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value));
        agent.as_pod = Some((run.to_owned(), environment.to_vec()));
        agent.again()?;
        Ok(agent)
    }

    fn prepare(name: &str, machine: Machine, more: &[&str]) -> Result<Self> {
        let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new()?);
        let directory = tempfile::tempdir().context("make a temporary folder")?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let arguments = [
            format!("--node-name={name}"),
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
        // The agent installs the plugin that lies beside it.
        program("node-agent-cni", "fairlead-cni")?;
        Ok(Self {
            name: name.to_owned(),
            program: program("node-agent-daemon", "fairlead-node-agent")?,
            arguments: arguments
                .into_iter()
                .chain(more.iter().map(|word| (*word).to_owned()))
                .collect(),
            as_pod: None,
            child: None,
            machine,
            directory,
            bpffs,
            cgroup,
        })
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
        let flag = api.flag();
        let arguments = [&[flag.as_str()], more].concat();
        let mut agent = Self::start(&name, underlay.machine(number)?, &arguments)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Another program is what [`Agent::again`] starts from now on.
    pub fn install(&mut self, program: PathBuf) -> PathBuf {
        std::mem::replace(&mut self.program, program)
    }

    /// Whether a flag is said when it starts again.
    pub fn say(&mut self, flag: &str, wanted: bool) {
        self.arguments.retain(|argument| argument != flag);
        if wanted {
            self.arguments.push(flag.to_owned());
        }
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
        let mut command = match &self.as_pod {
            // In mounts of its own; /var/run leads to /run.
            Some((run, environment)) => {
                let mut command = Command::new("unshare");
                let mount = "mount --bind \"$0\" /run && exec \"$@\"";
                command.args(["--mount", "sh", "-c", mount]).arg(run);
                command.arg(&self.program).envs(environment.iter().cloned());
                command
            }
            None => Command::new(&self.program),
        };
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

    /// `fairlead cleanup` after [`Agent::kill`], and what it said, as JSON.
    ///
    /// # Errors
    ///
    /// When it fails, as it does while the agent runs.
    pub fn clean(&self) -> Result<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let words = [
            "fairlead".to_owned(),
            format!("--pin-dir={}", self.pin_dir().display()),
            "cleanup".into(),
            "--output=json".into(),
            format!("--state-dir={}", path("state")),
            format!("--cni-bin-dir={}", path("bin")),
            format!("--cni-conf-dir={}", path("net.d")),
            format!("--cni-socket={}", path("cni.sock")),
            format!("--subnet-env={}", path("subnet.env")),
        ];
        self.machine.run(|| {
            let mut out = Vec::new();
            node_agent_cli::run(words.map(OsString::from), &mut out)?;
            Ok(String::from_utf8(out)?)
        })
    }

    /// The machine without its agent, as [`Agent::clean`] leaves it.
    ///
    /// # Errors
    ///
    /// When the agent does not run, or cleaning fails.
    pub fn leave(mut self) -> Result<Machine> {
        self.kill()?;
        self.clean()?;
        let Machine {
            number,
            ipv4,
            ipv6,
            mac,
            ifindex,
            ..
        } = self.machine;
        let netns = self.machine.netns.again()?;
        Ok(Machine {
            netns,
            number,
            ipv4,
            ipv6,
            mac,
            ifindex,
        })
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

    /// Whose sockets are balanced when they connect.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
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
