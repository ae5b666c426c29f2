//! The long-running programs of the cluster, each with its log and in its place.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::node;
use super::place::{self, Place};
use crate::command::{self, last_lines};
use crate::workspace;

const API_PORT: u16 = 6443;

/// A started program. Dropping it leaves it running: the control group is what ends it.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(place: &Place, name: &str, mut command: Command) -> Result<Daemon> {
        let log = place.log(name);
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = command
            // A log is read as text; an error's chain says more than where it was made.
            .env("NO_COLOR", "1")
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C in the terminal is for this program, not for the daemons.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} on {}", place.name()))?;
        Ok(Daemon {
            name: format!("{name} on {}", place.name()),
            log,
            child,
        })
    }

    /// Fails with the log's last lines if the program has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self
            .child
            .try_wait()
            .context("cannot ask for a daemon's state")?
        {
            bail!("{} ended with {status}; its log is above", self.name);
        }
        Ok(())
    }

    /// The log's last lines; fewer of Docker's, which warns of much that is as it should be.
    pub fn tail(&self) -> String {
        let count = if self.name.starts_with("docker") {
            3
        } else {
            15
        };
        let text = fs::read(&self.log).unwrap_or_default();
        format!(
            "--- {}\n{}",
            self.log.display(),
            last_lines(&String::from_utf8_lossy(&text), count)
        )
    }
}

pub fn docker(place: &Place) -> Result<Daemon> {
    let run = place.run_folder();
    let dockerd = command::find("dockerd").context("there is no dockerd: run cargo xtask setup")?;
    let mut command = node::command(place, dockerd);
    command
        // The agent wires the pods; Docker must touch neither links nor rules nor sysctls.
        .args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ])
        // Groups of the containers below the node's own, on every hierarchy that Docker uses.
        .args([
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--log-level=warn",
        ])
        .arg(format!(
            "--cgroup-parent=/{}/{}/pods",
            place::CGROUP,
            place.name()
        ))
        .arg(format!("--host=unix://{}", place.docker_socket().display()))
        .arg(format!(
            "--data-root={}",
            place.data_folder().join("docker").display()
        ))
        .arg(format!("--exec-root={}", run.join("docker").display()))
        .arg(format!("--pidfile={}", run.join("docker.pid").display()));
    Daemon::start(place, "docker", command)
}

/// Where the API server is reached.
#[derive(Debug, Clone, Copy)]
pub struct ApiPort(u16);

impl ApiPort {
    /// 6443 if it is free on both of our addresses, else the next that is.
    pub fn choose() -> Result<ApiPort> {
        let free = |port: &u16| {
            ["127.0.0.1", place::ROOT_IPV4]
                .iter()
                .all(|address| TcpListener::bind(format!("{address}:{port}")).is_ok())
        };
        (API_PORT..API_PORT + 100)
            .find(free)
            .map(ApiPort)
            .context("no port between 6443 and 6542 is free on 127.0.0.1")
    }

    pub fn is_usual(self) -> bool {
        self.0 == API_PORT
    }

    pub fn local(self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.0))
    }

    fn on_underlay(self) -> String {
        format!("{}:{}", place::ROOT_IPV4, self.0)
    }
}

pub fn control_plane(port: ApiPort) -> Result<Daemon> {
    let place = Place::ControlPlane;
    let mut command = node::command(&place, workspace::binary("fairlead-control-plane"));
    command
        .arg(format!("--data-dir={}", place.data_folder().display()))
        .arg(format!("--listen={}", port.local()))
        .arg(format!("--development-link={}", port.on_underlay()));
    Daemon::start(&place, "fairlead-control-plane", command)
}

pub fn agent(place: &Place, port: ApiPort) -> Result<Daemon> {
    let mut command = node::command(place, workspace::binary("fairlead-node-agent"));
    command
        .arg(format!("--node-name={}", place.name()))
        .arg(format!("--server=http://{}", port.on_underlay()))
        .args(["--uplink=eth0", "--kubelet=true"])
        .arg(format!("--cgroup={}", place.cgroup()?.display()))
        .arg(format!(
            "--docker-socket={}",
            place.docker_socket().display()
        ))
        .arg(format!(
            "--state-dir={}",
            place.data_folder().join("agent").display()
        ));
    Daemon::start(place, "fairlead-node-agent", command)
}

pub fn write_kubeconfig(port: ApiPort) -> Result<()> {
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: fairlead
clusters:
  - name: fairlead
    cluster:
      server: http://{}
contexts:
  - name: fairlead
    context:
      cluster: fairlead
      user: developer
users:
  - name: developer
    user: {{}}
",
        port.local()
    );
    let path = place::kubeconfig();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
