//! A real flanneld as a process, with what flannel's manifest says to it: it masquerades, and lays rules to forward.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use ipnetwork::Ipv4Network;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_testkit::{Machine, NetNs};

use crate::{Registry, eventually};

/// As docs/overlay.md says to remove what flanneld lays in its two modes.
const REMOVE_IPTABLES: &str = "
    iptables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
    iptables -t nat -F FLANNEL-POSTRTG
    iptables -t nat -X FLANNEL-POSTRTG
    iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
    iptables -F FLANNEL-FWD
    iptables -X FLANNEL-FWD";
const REMOVE_NFTABLES: &str = "
    nft delete table ip flannel-ipv4
    nft delete table ip6 flannel-ipv6";

/// The program, if this test run was given one.
#[must_use]
pub fn flanneld() -> Option<PathBuf> {
    std::env::var_os("FLANNELD").map(PathBuf::from)
}

/// What a cluster's net-conf.json says.
#[derive(Clone, Copy, Debug)]
pub struct FlannelConfig {
    /// `vxlan`, `udp`, `host-gw`.
    pub backend: &'static str,
    /// With `vxlan`: packets to nodes on the same link go as they are.
    pub direct_routing: bool,
    /// Its rules go to nftables, not to iptables.
    pub nftables: bool,
}

impl FlannelConfig {
    #[must_use]
    pub fn json(self) -> Value {
        json!({
            "Network": "10.64.0.0/16",
            "EnableNFTables": self.nftables,
            "Backend": {"Type": self.backend, "DirectRouting": self.direct_routing},
        })
    }
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
                    .args(["--kube-api-url", &api.url()]);
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
    pub fn subnet(&self) -> Result<Ipv4Network> {
        let path = |file: &str| self.directory.path().join(file);
        let subnet = eventually("flanneld has no subnet", || {
            let text = std::fs::read_to_string(path("subnet.env"))?;
            let mut lines = text.lines();
            let found = lines.find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
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

impl FlannelConfig {
    /// Removes what an ended flanneld leaves on its node.
    ///
    /// # Errors
    ///
    /// When something of it is not there, or something else is.
    pub fn remove_rest(self, host: &NetNs) -> Result<()> {
        // With udp the TUN device goes with its process.
        if self.backend == "vxlan" {
            host.ip("link del flannel.1")?;
        }
        if self.backend == "host-gw" || self.direct_routing {
            host.ip("route flush root 10.64.0.0/16 dev eth0")?;
        }
        let remove_rules = if self.nftables {
            REMOVE_NFTABLES
        } else {
            REMOVE_IPTABLES
        };
        shell(host, remove_rules)?;
        let left = shell(
            host,
            "iptables-save; nft list ruleset; ip link; ip route show dev eth0",
        )?;
        ensure!(
            !left.to_lowercase().contains("flannel") && !left.contains("10.64."),
            "of flannel's there is still something in\n{left}"
        );
        Ok(())
    }
}

/// Runs commands on a node, up to the first that fails.
fn shell(host: &NetNs, commands: &str) -> Result<String> {
    let output = host.run(|| Command::new("sh").args(["-ec", commands]).output())?;
    ensure!(
        output.status.success(),
        "{}\nin:\n{commands}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
