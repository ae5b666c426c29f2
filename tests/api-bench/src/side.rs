//! The servers that are compared: each a process with a data folder and an etcd of its own where it needs one.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::http::{Call, Connection, Target};

/// Far longer than a start takes, of kube-apiserver too.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Which server over which store.
#[derive(Clone, Debug)]
pub enum Program {
    /// Ours on the embedded store.
    Embedded(PathBuf),
    /// Ours on this etcd.
    Etcd(PathBuf, PathBuf),
    /// This kube-apiserver on this etcd.
    Kubernetes(PathBuf, PathBuf),
}

/// A server that can be started again on the same data.
#[derive(Debug)]
pub struct Side {
    pub name: &'static str,
    program: Program,
    folder: PathBuf,
    address: SocketAddr,
    etcd: Option<Etcd>,
    process: Option<Process>,
}

#[derive(Debug)]
struct Etcd {
    url: String,
    _process: Process,
}

/// Killed when dropped.
#[derive(Debug)]
struct Process(Child);

impl Side {
    /// On an empty store in `folder`; not started yet.
    pub fn new(program: Program, folder: &Path) -> Result<Self> {
        let name = program.name();
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let etcd = match &program {
            Program::Embedded(_) => None,
            Program::Etcd(_, etcd) | Program::Kubernetes(_, etcd) => {
                Some(Etcd::start(etcd, &folder)?)
            }
        };
        Ok(Self {
            name,
            program,
            address: free_address()?,
            folder,
            etcd,
            process: None,
        })
    }

    pub fn is_ours(&self) -> bool {
        !matches!(self.program, Program::Kubernetes(..))
    }

    pub fn target(&self) -> Target {
        let certificate = self.folder.join("certificates/apiserver.crt");
        Target {
            address: self.address,
            authorities: (!self.is_ours()).then_some(certificate),
            token: (!self.is_ours()).then(|| tests_reference::TOKEN.to_owned()),
        }
    }

    /// Starts it; seconds until it says that it is ready. `role` is one of ours.
    pub fn start(&mut self, runtime: &Runtime, role: &str) -> Result<f64> {
        let mut command = self.command(role)?;
        let log = std::fs::File::create(self.folder.join("server.log"))?;
        command.stderr(log);
        let begun = Instant::now();
        self.process = Some(Process::start(&mut command)?);
        runtime.block_on(self.ready(begun))?;
        Ok(begun.elapsed().as_secs_f64())
    }

    async fn ready(&mut self, begun: Instant) -> Result<()> {
        let target = self.target();
        let ask = async || -> Result<()> {
            let mut connection = Connection::open(&target).await?;
            connection.ask(&Call::get("/readyz")).await?;
            Ok(())
        };
        let mut last = String::new();
        while begun.elapsed() < PATIENCE {
            match ask().await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{error:#}"),
            }
            if let Some(process) = &mut self.process
                && let Some(status) = process.0.try_wait()?
            {
                break_off(self.name, &self.folder, &status.to_string())?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let why = format!("it is not ready after {PATIENCE:?}: {last}");
        break_off(self.name, &self.folder, &why)
    }

    /// Ends it as a service manager does.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(process.0.id())?);
        kill(pid, Signal::SIGTERM)?;
        process.0.wait()?;
        Ok(())
    }

    /// Resident memory of the server, MiB; without that of an etcd.
    pub fn memory(&self) -> Result<f64> {
        let process = self.process.as_ref().context("it does not run")?;
        let path = format!("/proc/{}/smaps_rollup", process.0.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find(|line| line.starts_with("Rss:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: f64 = number.context("no Rss in smaps_rollup")?.parse()?;
        Ok(kib / 1024.0)
    }

    fn command(&self, role: &str) -> Result<Command> {
        let address = self.address.to_string();
        let etcd = self.etcd.as_ref().map(|etcd| etcd.url.as_str());
        match &self.program {
            Program::Embedded(program) => {
                let mut command = Command::new(program);
                command.arg("--data-dir").arg(&self.folder);
                command.args(["--listen", &address, "--role", role]);
                Ok(command)
            }
            Program::Etcd(program, _) => {
                let mut command = Command::new(program);
                command.args(["--etcd-servers", etcd.context("etcd does not run")?]);
                command.args(["--listen", &address, "--role", role]);
                Ok(command)
            }
            Program::Kubernetes(program, _) => tests_reference::command(
                program,
                &self.folder,
                self.address,
                etcd.context("etcd does not run")?,
            ),
        }
    }
}

impl Program {
    fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Etcd(..) => "etcd",
            Self::Kubernetes(..) => "kube-apiserver",
        }
    }
}

impl Etcd {
    fn start(program: &Path, folder: &Path) -> Result<Self> {
        let url = format!("http://{}", free_address()?);
        let peers = format!("http://{}", free_address()?);
        let mut command = Command::new(program);
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            // 150,000 Pods with their history.
            .args(["--quota-backend-bytes", &(8_u64 << 30).to_string()])
            .stderr(std::fs::File::create(folder.join("etcd.log"))?);
        Ok(Self {
            url,
            _process: Process::start(&mut command)?,
        })
    }
}

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn break_off<T>(name: &str, folder: &Path, why: &str) -> Result<T> {
    let log = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
    let mut last: Vec<&str> = log.lines().rev().take(10).collect();
    last.reverse();
    bail!(
        "{name} did not start: {why}; the end of its log:\n{}",
        last.join("\n")
    )
}

/// An address of loopback that is free now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?)
}
