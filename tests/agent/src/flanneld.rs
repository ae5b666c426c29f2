//! A real flanneld as a process, with what flannel's manifest says to it: it masquerades, and lays rules to forward.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests_testkit::Machine;

use crate::{FlannelConfig, Registry, eventually};

/// The program, if this test run was given one.
#[must_use]
pub fn flanneld() -> Option<PathBuf> {
    std::env::var_os("FLANNELD").map(PathBuf::from)
}

/// Killed with its node, unless it was told to end before.
#[derive(Debug)]
pub struct Flanneld {
    child: Child,
    directory: TempDir,
}

impl Flanneld {
    /// Starts it on a machine; in Nodes its own one must be there.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(
        machine: &Machine,
        name: &str,
        registry: Registry<'_>,
        config: FlannelConfig,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |file: &str| directory.path().join(file).display().to_string();
        let mut command = Command::new(flanneld().context("FLANNELD names none")?);
        command
            .args(["--iface=eth0", "--ip-masq"])
            .arg(format!("--subnet-file={}", path("subnet.env")))
            .env("NODE_NAME", name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log"))?);
        match registry {
            Registry::Nodes(api) => {
                let conf = path("net-conf.json");
                std::fs::write(&conf, config.json().to_string())?;
                command
                    .args(["--kube-subnet-mgr", "--net-config-path", &conf])
                    .arg(config.flag(api, "--kube-api-url", "--kubeconfig-file"));
            }
            Registry::Etcd(etcd) => {
                command.args(["--etcd-endpoints", etcd.url()]);
            }
        }
        let child = machine.run(|| command.spawn());
        Ok(Self {
            child: child.context("start flanneld")?,
            directory,
        })
    }

    /// Waits until it is ready: that is when it writes its subnet down.
    ///
    /// # Errors
    ///
    /// When that takes more than a minute, with what it logged.
    pub fn subnet(&self) -> Result<IpNetwork> {
        let path = |file: &str| self.directory.path().join(file);
        let subnet = eventually("flanneld has no subnet", || {
            let text = std::fs::read_to_string(path("subnet.env"))?;
            let mut lines = text.lines();
            let found = lines.find_map(|line| {
                let words = ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="];
                words.iter().find_map(|word| line.strip_prefix(word))
            });
            Ok(found.context("no FLANNEL_SUBNET")?.parse()?)
        });
        subnet.with_context(|| {
            let log = std::fs::read_to_string(path("log"));
            format!("flanneld said:\n{}", log.unwrap_or_default())
        })
    }

    /// Ends it as a service manager does.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "flanneld ended with {ended}");
        Ok(())
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
