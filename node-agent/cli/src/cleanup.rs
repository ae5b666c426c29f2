//! `fairlead cleanup`: gives the node back as it was, and says what went.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use node_agent_host::{HOST_DEVICE, Network, SysctlRecord, VXLAN_DEVICE};
use node_agent_maps::{Pin, PinKind, PinLock, links, pins, remove_pins};
use serde::Serialize;

use crate::{
    output::{Report, Section},
    status,
};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The agent's state directory (its --state-dir).
    #[arg(long, value_name = "PATH", default_value = node_agent_host::STATE_DIR)]
    pub state_dir: PathBuf,

    /// Where the CNI plugin was installed (the agent's --cni-bin-dir).
    #[arg(long, value_name = "PATH", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Where its configuration was (the agent's --cni-conf-dir).
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// The socket of the CNI plugin (the agent's --cni-socket).
    #[arg(long, value_name = "PATH", default_value = node_agent_cni::DEFAULT_SOCKET)]
    pub cni_socket: PathBuf,

    /// What the agent may have written for flannel's CNI plugin (its --subnet-env).
    #[arg(long, value_name = "PATH", default_value = "/run/flannel/subnet.env")]
    pub subnet_env: PathBuf,

    /// Also while an agent runs, which will fail or write everything again.
    #[arg(long)]
    pub force: bool,

    /// Only say what would be removed.
    #[arg(long)]
    pub dry_run: bool,
}

/// What cleaning did, or would do.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    pub dry_run: bool,
    pub removed: Vec<Item>,
    /// What is still there, and why.
    pub left: Vec<Item>,
}

#[derive(Debug, Serialize)]
pub struct Item {
    /// `link`, `program`, `map`, `interface`, `route`, `rule`, `sysctl`, `file`.
    pub kind: &'static str,
    pub name: String,
    pub note: String,
}

/// # Errors
///
/// While an agent runs, unless forced; when something cannot be removed: then what went before is gone.
pub fn run(pin_dir: &Path, options: &Options) -> Result<Cleanup> {
    // Held to the end: an agent that starts meanwhile would find half a node.
    let _lock = match options.force || !pin_dir.exists() {
        true => None,
        false => Some(
            PinLock::of_existing(pin_dir).context("an agent runs (--force cleans nevertheless)")?,
        ),
    };
    let mut cleanup = Cleanup {
        dry_run: options.dry_run,
        ..Cleanup::default()
    };
    // First: a runtime that still found the plugin would make pods without a network.
    cleanup.cni(options)?;
    cleanup.pins(pin_dir)?;
    // One thread: the network is that of the thread which asks.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(cleanup.network())?;
    cleanup.sysctls(&options.state_dir)?;
    cleanup.files(&options.state_dir)?;
    Ok(cleanup)
}

impl Cleanup {
    fn remove(&mut self, kind: &'static str, name: impl Into<String>, note: impl Into<String>) {
        self.removed.push(Item {
            kind,
            name: name.into(),
            note: note.into(),
        });
    }

    fn cni(&mut self, options: &Options) -> Result<()> {
        let installed =
            node_agent_cni::installed_files(&options.cni_bin_dir, &options.cni_conf_dir);
        for path in installed.iter().chain([&options.cni_socket]) {
            self.file(path)?;
        }
        if options.subnet_env.exists() {
            self.left.push(Item {
                kind: "file",
                name: options.subnet_env.display().to_string(),
                note: "flannel's CNI plugin reads it; flanneld may have written it".into(),
            });
        }
        Ok(())
    }

    /// Removes a file or a directory, if it is there.
    fn file(&mut self, path: &Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        if !self.dry_run {
            match path.is_dir() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            }
            .with_context(|| format!("removing {}", path.display()))?;
        }
        self.remove("file", path.display().to_string(), "");
        Ok(())
    }

    fn pins(&mut self, pin_dir: &Path) -> Result<()> {
        let attached = match pin_dir.exists() {
            true => links(pin_dir)?,
            false => Vec::new(),
        };
        let pins = match self.dry_run {
            true => pins(pin_dir)?,
            false => remove_pins(pin_dir)?,
        };
        for Pin { kind, path } in pins {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let link = attached.iter().find(|link| link.name == name);
            let (kind, note) = match (kind, link) {
                (PinKind::Link, Some(link)) => {
                    ("link", format!("from {}", status::target(link.target)))
                }
                (PinKind::Link, None) => ("link", String::new()),
                (PinKind::Program, _) => ("program", String::new()),
                (PinKind::Map, _) => ("map", String::new()),
            };
            self.remove(kind, name, note);
        }
        Ok(())
    }

    async fn network(&mut self) -> Result<()> {
        let network = Network::connect()?;
        let device = match self.dry_run {
            true => network.host_device().await,
            false => network.remove_host_device().await,
        };
        if let Some(device) = device.with_context(|| format!("removing {HOST_DEVICE}"))? {
            for prefix in device.routes {
                self.remove("route", prefix.to_string(), format!("by {HOST_DEVICE}"));
            }
            self.remove("interface", HOST_DEVICE, "with its other side");
        }
        let rules = match self.dry_run {
            true => network.service_rules().await,
            false => network.remove_service_rules().await,
        };
        for rule in rules.context("removing the rules of routes to Services")? {
            self.remove("rule", rule, "");
        }
        let overlay = match self.dry_run {
            true => nix::net::if_::if_nametoindex(VXLAN_DEVICE).is_ok(),
            false => {
                let removed = network.remove_vxlan_device().await;
                removed.with_context(|| format!("removing {VXLAN_DEVICE}"))?
            }
        };
        if overlay {
            self.remove("interface", VXLAN_DEVICE, "with its forwarding entries");
        }
        for link in network
            .pod_links()
            .await
            .context("looking for the links of pods")?
        {
            self.left.push(Item {
                kind: "interface",
                name: link.ifname,
                note: format!(
                    "of pod {}/{}: it goes with the pod",
                    link.namespace, link.name
                ),
            });
        }
        Ok(())
    }

    fn sysctls(&mut self, state_dir: &Path) -> Result<()> {
        let path = node_agent_host::sysctl_record(state_dir);
        let record = SysctlRecord::open(&path).context("reading what was changed")?;
        // The other way round: forwarding goes before what was set because of it.
        for change in record.changes().iter().rev() {
            let name = change.path.display().to_string();
            let gone = !change.path.exists();
            if gone || (!self.dry_run && !change.revert()?) {
                let note = match gone {
                    true => "it went with its interface".to_owned(),
                    false => format!(
                        "somebody else has set it since: it was {:?} before",
                        change.before
                    ),
                };
                self.left.push(Item {
                    kind: "sysctl",
                    name,
                    note,
                });
                continue;
            }
            self.remove(
                "sysctl",
                name,
                format!("{:?} again, was {:?}", change.before, change.after),
            );
        }
        Ok(())
    }

    /// Leases and the record; what pods have as volumes stays theirs.
    fn files(&mut self, state_dir: &Path) -> Result<()> {
        self.file(&node_agent_host::sysctl_record(state_dir))?;
        self.file(&node_agent_host::lease_dir(state_dir))?;
        self.file(&node_agent_host::host_port_dir(state_dir))?;
        if self.dry_run || !state_dir.exists() {
            return Ok(());
        }
        match fs::remove_dir(state_dir) {
            Ok(()) => self.remove("file", state_dir.display().to_string(), ""),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.left.push(Item {
                    kind: "file",
                    name: state_dir.display().to_string(),
                    note: "holds what is not the dataplane's, such as volumes of pods".into(),
                })
            }
            Err(error) => {
                return Err(error).with_context(|| format!("removing {}", state_dir.display()));
            }
        }
        Ok(())
    }
}

impl Report for Cleanup {
    fn sections(&self) -> Vec<Section> {
        let rows = |items: &[Item]| {
            let row =
                |item: &Item| vec![item.kind.to_owned(), item.name.clone(), item.note.clone()];
            items.iter().map(row).collect::<Vec<_>>()
        };
        let heading = match (self.removed.is_empty(), self.dry_run) {
            (true, _) => "nothing of Fairlead is on this node",
            (false, true) => "would remove:",
            (false, false) => "removed:",
        };
        let mut sections = vec![Section::new(&[], rows(&self.removed)).headed(heading)];
        if !self.left.is_empty() {
            sections.push(Section::new(&[], rows(&self.left)).headed("left:"));
        }
        sections
    }
}
