//! Where the development cluster's parts are: names, addresses and paths, in one place.
//!
//! Everything that `up` makes carries the name `fairlead`: namespaces `fairlead-n1`… and
//! `fairlead-outside` on the bridge of `fairlead-underlay`, control groups below `fairlead/`,
//! mounts below /run/fairlead/up, files below target/up.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A tmpfs of our own: sockets, bpffs and mount namespaces live here while the cluster does.
pub const RUN: &str = "/run/fairlead/up";
pub const UNDERLAY_NAMESPACE: &str = "fairlead-underlay";
/// The root namespace's end of its cable to the underlay.
pub const ROOT_LINK: &str = "fairlead-up";
pub const ROOT_IPV4: &str = "172.31.240.254";
pub const ROOT_IPV6: &str = "fd00:fa1e::fe";
pub const CGROUP: &str = "fairlead";
/// The highest node number that the addresses and names allow.
pub const MAX_NODES: u8 = 32;

/// Something that runs processes: a node, the machine outside, or the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Numbered from 1.
    Node(u8),
    Outside,
    /// In the root namespace; only its control group is its own.
    ControlPlane,
}

impl Place {
    pub fn parse(name: &str) -> Result<Place> {
        match name {
            "outside" => Ok(Place::Outside),
            "control-plane" => Ok(Place::ControlPlane),
            _ => match name
                .strip_prefix('n')
                .and_then(|number| number.parse().ok())
            {
                Some(number @ 1..=MAX_NODES) => Ok(Place::Node(number)),
                _ => bail!("{name} is no node: give n1, n2, … or outside"),
            },
        }
    }

    pub fn name(&self) -> String {
        match self {
            Place::Node(number) => format!("n{number}"),
            Place::Outside => "outside".to_string(),
            Place::ControlPlane => "control-plane".to_string(),
        }
    }

    /// The network namespace; none means the root's.
    pub fn namespace(&self) -> Option<String> {
        (*self != Place::ControlPlane).then(|| format!("fairlead-{}", self.name()))
    }

    /// Addresses on the underlay.
    pub fn addresses(&self) -> (String, String) {
        let number = match self {
            Place::Node(number) => 10 + number,
            Place::Outside => 250,
            Place::ControlPlane => return (ROOT_IPV4.to_string(), ROOT_IPV6.to_string()),
        };
        let low = if let Place::Node(node) = self {
            0x10 + node
        } else {
            0xfa
        };
        (
            format!("172.31.240.{number}"),
            format!("fd00:fa1e::{low:x}"),
        )
    }

    /// Sockets, the bpffs and the mount namespace.
    pub fn run_folder(&self) -> PathBuf {
        Path::new(RUN).join(self.name())
    }

    /// Data that goes with the cluster.
    pub fn data_folder(&self) -> PathBuf {
        folder().join(self.name())
    }

    /// The mount namespace's file; only nodes have one.
    pub fn mount_namespace(&self) -> Option<PathBuf> {
        matches!(self, Place::Node(_)).then(|| self.run_folder().join("mnt"))
    }

    pub fn docker_socket(&self) -> PathBuf {
        self.run_folder().join("docker.sock")
    }

    /// The control group that the node's eBPF hooks are attached to.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup2()?.join(CGROUP).join(self.name()))
    }

    /// The leaf for the processes themselves: under pure cgroup2 a group with processes of its
    /// own cannot hand controllers to children (cgroups(7), "no internal processes").
    pub fn process_cgroup(&self) -> Result<PathBuf> {
        Ok(self.cgroup()?.join("host"))
    }

    pub fn log(&self, program: &str) -> PathBuf {
        logs().join(format!("{}-{program}.log", self.name()))
    }
}

pub fn nodes(count: u8) -> impl Iterator<Item = Place> {
    (1..=count).map(Place::Node)
}

/// The folder of everything that belongs to the cluster on disk.
pub fn folder() -> PathBuf {
    workspace::target().join("up")
}

pub fn logs() -> PathBuf {
    folder().join("logs")
}

/// Makes the folders on disk, without the logs of the cluster before.
pub fn make_folders() -> Result<()> {
    match fs::remove_dir_all(logs()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", logs().display()));
        }
        _ => {}
    }
    fs::create_dir_all(logs()).with_context(|| format!("cannot make {}", logs().display()))
}

pub fn kubeconfig() -> PathBuf {
    folder().join("kubeconfig")
}

pub fn hello_binary() -> PathBuf {
    folder().join("hello")
}

/// The mount point of the unified hierarchy: /sys/fs/cgroup, or a folder in it on hybrid machines.
pub fn cgroup2() -> Result<PathBuf> {
    cgroup_mounts()?
        .into_iter()
        .find_map(|(kind, path)| (kind == "cgroup2").then_some(path))
        .context(
            "no cgroup2 is mounted on this machine: mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
}

/// All control group hierarchies: Docker makes groups in the version 1 ones too.
pub fn cgroup_mounts() -> Result<Vec<(String, PathBuf)>> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (path, kind) = (fields.nth(1)?, fields.next()?);
            kind.starts_with("cgroup")
                .then(|| (kind.to_string(), PathBuf::from(path)))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_places_and_back() {
        for place in [Place::Node(1), Place::Node(32), Place::Outside] {
            assert_eq!(Place::parse(&place.name()).unwrap(), place);
        }
        for wrong in ["n0", "n33", "node1", "", "n"] {
            assert!(
                Place::parse(wrong)
                    .unwrap_err()
                    .to_string()
                    .contains("outside"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn no_two_places_share_an_address() {
        let mut seen = std::collections::BTreeSet::new();
        for place in nodes(MAX_NODES).chain([Place::Outside, Place::ControlPlane]) {
            let (ipv4, ipv6) = place.addresses();
            assert!(seen.insert(ipv4) && seen.insert(ipv6), "{place:?}");
        }
    }
}
