//! A cell whose packets a real flanneld brings to the other node: one flanneld a node, and flannel's registry in an etcd on
//! node 1.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::Client;
use nix::mount::{MsFlags, mount};
use serde_json::json;
use tokio::runtime::Builder;

use crate::cell::{Cell, OTHER_NODE, Underlay, node_v4, pod_cidr_v4};
use crate::netns::Netns;
use crate::process::Process;
use crate::server::ANSWER_PORT;

/// Where its files are, which nobody else sees.
const RUN: &str = "/run";
const PREFIX: &str = "/coreos.com/network";
/// Far longer than a start takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How flanneld is started on both nodes of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Flanneld<'a> {
    pub program: &'a Path,
    /// Of the folder of its files.
    pub name: &'a str,
    /// What its backend comes to: the kernel's vxlan device, or its process with a TUN device.
    pub underlay: Underlay,
    /// As in flannel's manifest: it masquerades and accepts what is forwarded by rules, so connections are tracked.
    pub rules: bool,
}

/// Gives this process, and what it starts, a `/run` that nobody else sees and that goes with the process: etcd and flanneld write
/// files. The mounts are this process's own already.
pub fn private_run() -> Result<()> {
    let none = None::<&str>;
    mount(Some("tmpfs"), RUN, Some("tmpfs"), MsFlags::empty(), none)
        .with_context(|| format!("mount a tmpfs at {RUN}"))
}

impl Flanneld<'_> {
    /// Starts both and waits until the client's connections reach the other node.
    pub fn cell(&self) -> Result<Cell> {
        std::fs::create_dir(self.file(""))?;
        let mut cell = Cell::apart(self.underlay)?;
        cell.netfilter = self.rules;
        let etcd = self.start_etcd(cell.node(1))?;
        cell.keep(etcd);
        cell.serve(&OTHER_NODE.ips())?;
        for number in [1, 2] {
            let daemon = self.start(&cell, number)?;
            cell.keep(daemon);
        }
        let address = SocketAddr::new(OTHER_NODE.v4().into(), ANSWER_PORT);
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        eventually(|| cell.client.run(|| Ok(connect()?)))
            .with_context(|| format!("{} does not connect:\n{}", self.name, self.logs()))?;
        Ok(cell)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(RUN).join(self.name).join(name)
    }

    fn start(&self, cell: &Cell, number: u8) -> Result<Process> {
        let subnet_file = self.file(&format!("subnet-{number}.env"));
        let rules = self.rules;
        let arguments = [
            "--iface=uplink".to_owned(),
            format!("--etcd-endpoints={}", etcd_url()),
            format!("--subnet-file={}", subnet_file.display()),
            format!("--ip-masq={rules}"),
            format!("--iptables-forward-rules={rules}"),
            // Looking after the rules starts programs, which would be measured.
            "--iptables-resync=86400".to_owned(),
        ];
        let log = self.file(&format!("log-{number}"));
        Process::other(cell.node(number), self.program, &arguments, &log)
    }

    fn start_etcd(&self, node: &Netns) -> Result<Process> {
        let (data, url) = (self.file("etcd"), etcd_url());
        let arguments = [
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        let log = self.file("log-etcd");
        let etcd = Process::other(node, Path::new("etcd"), &arguments, &log)?;
        let filled = eventually(|| node.run(|| self.fill()));
        filled.with_context(|| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            format!("etcd, which `cargo xtask setup` installs, does not answer:\n{log}")
        })?;
        Ok(etcd)
    }

    /// The network's configuration, and for each node the subnet that it has in every cell.
    fn fill(&self) -> Result<()> {
        let backend = match self.underlay {
            Underlay::TunProxy => "udp",
            _ => "vxlan",
        };
        let config = json!({"Network": "10.244.0.0/16", "Backend": {"Type": backend}});
        let mut pairs = vec![(format!("{PREFIX}/config"), config)];
        for node in [1, 2] {
            let key = pod_cidr_v4(node).replace('/', "-");
            let reservation = json!({"PublicIP": node_v4(node)});
            pairs.push((format!("{PREFIX}/subnets/{key}"), reservation));
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = Client::connect([etcd_url()], None).await?;
            for (key, value) in pairs {
                client.put(key, value.to_string(), None).await?;
            }
            Ok(())
        })
    }

    fn logs(&self) -> String {
        let logs = ["log-1", "log-2"].map(|name| std::fs::read_to_string(self.file(name)));
        logs.map(Result::unwrap_or_default).concat()
    }
}

fn etcd_url() -> String {
    format!("http://{}:2379", node_v4(1))
}

/// Asks until there is an answer.
fn eventually<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(_) if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}
