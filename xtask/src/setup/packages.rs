//! Debian and Ubuntu packages, each with what shows that it is there already.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::require_root;
use crate::command::{Run, find};

/// One package and the evidence that makes installing it needless.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// The name on Debian, or alternatives of which the first that the lists know is taken.
    pub names: &'static [&'static str],
    pub shown_by: Evidence,
    pub purpose: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub enum Evidence {
    Program(&'static str),
    File(&'static str),
}

pub const TOOLS: &[Package] = &[
    Package {
        names: &["docker.io"],
        shown_by: Evidence::Program("dockerd"),
        purpose: "runs the pods",
    },
    Package {
        // Newer Debians have the client apart.
        names: &["docker-cli", "docker.io"],
        shown_by: Evidence::Program("docker"),
        purpose: "imports the images of the example",
    },
    Package {
        names: &["iproute2"],
        shown_by: Evidence::Program("ip"),
        purpose: "namespaces and links of the development cluster",
    },
    Package {
        names: &["ethtool"],
        shown_by: Evidence::Program("ethtool"),
        purpose: "turns offloads on and off in tests",
    },
    Package {
        names: &["bpftool", "linux-tools-generic"],
        shown_by: Evidence::Program("bpftool"),
        purpose: "loads the object and dumps the maps in tests",
    },
    Package {
        names: &["busybox-static"],
        shown_by: Evidence::Program("busybox"),
        purpose: "container images of the tests",
    },
    Package {
        // Newer Debians call it as the program is called.
        names: &["etcd-server", "etcd"],
        shown_by: Evidence::Program("etcd"),
        purpose: "the store of the tests with etcd",
    },
    Package {
        names: &["etcd-client"],
        shown_by: Evidence::Program("etcdctl"),
        purpose: "reads in tests what was kept in etcd",
    },
    Package {
        names: &["protobuf-compiler"],
        shown_by: Evidence::Program("protoc"),
        purpose: "builds the client of etcd",
    },
    Package {
        names: &["libprotobuf-dev"],
        shown_by: Evidence::File("/usr/include/google/protobuf/descriptor.proto"),
        purpose: "builds the client of etcd",
    },
    Package {
        names: &["containernetworking-plugins"],
        shown_by: Evidence::File("/usr/lib/cni/ptp"),
        purpose: "CNI plugins that ours is compared with",
    },
    Package {
        names: &["nftables"],
        shown_by: Evidence::Program("nft"),
        purpose: "shows that no rule was made",
    },
    Package {
        names: &["iptables"],
        shown_by: Evidence::Program("iptables-save"),
        purpose: "shows that no rule was made",
    },
];

impl Package {
    pub fn is_there(&self) -> bool {
        match self.shown_by {
            Evidence::Program(program) => find(program).is_some(),
            Evidence::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs those of `packages` that nothing shows to be there.
pub fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages
        .iter()
        .filter(|package| !package.is_there())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        let wanted: Vec<String> = missing
            .iter()
            .map(|package| format!("{} ({})", package.names[0], package.purpose))
            .collect();
        bail!(
            "setup knows only apt-get; install these with your package manager and run it again: {}",
            wanted.join(", ")
        );
    }
    require_root("setup")?;
    // Lists that came with the machine's image may name versions that are too old or gone.
    update_lists();
    let mut names = Vec::new();
    for package in &missing {
        names.push(choose(package)?);
        println!(
            "setup: installing {} ({})",
            names[names.len() - 1],
            package.purpose
        );
    }
    apt_install(&names)?;
    if let Some(package) = missing.iter().find(|package| !package.is_there()) {
        bail!(
            "apt-get installed {}, but {:?} is still missing",
            package.names[0],
            package.shown_by
        );
    }
    Ok(())
}

/// True if each of the packages is there already or can be had.
pub fn are_offered(packages: &[Package]) -> bool {
    let offered =
        |package: &Package| package.is_there() || package.names.iter().any(|name| is_known(name));
    if packages.iter().all(offered) {
        return true;
    }
    update_lists();
    packages.iter().all(offered)
}

/// True if the package lists have an installable version.
fn is_known(name: &str) -> bool {
    Run::new("apt-cache")
        .args(["policy", name])
        .text()
        .is_ok_and(|policy| {
            policy
                .lines()
                .any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
        })
}

fn choose(package: &Package) -> Result<&'static str> {
    let offered = package.names.iter().find(|name| is_known(name));
    offered
        .copied()
        .with_context(|| format!("no package source offers {}", package.names.join(" or ")))
}

/// Fetches the lists once; a source that cannot be reached is no failure, the others may do.
fn update_lists() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    println!("setup: updating the package lists");
    if let Err(error) = Run::new("apt-get").args(["update", "-q"]).text() {
        eprintln!("setup: going on with the sources that answered: {error:#}");
    }
}

fn apt_install(names: &[&str]) -> Result<()> {
    // Daemons that packages bring (docker.io) are not wanted: the cluster starts its own.
    let _policy = ServicesStayDown::set();
    Run::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(names)
        .variable("DEBIAN_FRONTEND", "noninteractive")
        .text()
        .with_context(|| format!("cannot install {}", names.join(" ")))
        .map(drop)
}

/// invoke-rc.d asks this file before it starts a service; exit code 101 forbids it.
#[derive(Debug)]
struct ServicesStayDown {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl ServicesStayDown {
    fn set() -> ServicesStayDown {
        let ours = !Path::new(POLICY).exists()
            && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && Run::new("chmod").args(["755", POLICY]).succeeds();
        ServicesStayDown { ours }
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("setup: cannot remove {POLICY}: {error}");
        }
    }
}
