//! What makes a place on this machine a node: its control group, its mounts, and the way into it.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::place::{self, Place};
use crate::command::Run;

// What a process on the node sees: the node's own links in /sys/class/net, its own bpffs, and no
// containerd of the machine, which would start the pods outside of the node's control group.
const MOUNTS: &str = r#"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mount --bind "$1/bpf" /sys/fs/bpf
mkdir -p /run/containerd
mount -t tmpfs tmpfs /run/containerd
"#;

/// Mounts the tmpfs below which everything of the running cluster lies.
pub fn make_run_folder() -> Result<()> {
    fs::create_dir_all(place::RUN).with_context(|| format!("cannot make {}", place::RUN))?;
    Run::new("mount")
        .args(["-t", "tmpfs", "fairlead-up", place::RUN])
        .text()?;
    // A mount namespace can be kept in a file only where mounts do not propagate.
    Run::new("mount")
        .args(["--make-private", place::RUN])
        .text()
        .map(drop)
}

pub fn make(place: &Place) -> Result<()> {
    let cgroup = place.process_cgroup()?;
    fs::create_dir_all(&cgroup)
        .with_context(|| format!("cannot make the control group {}", cgroup.display()))?;
    for folder in [place.run_folder(), place.data_folder()] {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    match place.mount_namespace() {
        Some(file) => make_mounts(place, &file),
        None => Ok(()),
    }
}

fn make_mounts(place: &Place, namespace_file: &Path) -> Result<()> {
    let run = place.run_folder();
    for name in ["bpf", "cgroup"] {
        fs::create_dir_all(run.join(name))
            .with_context(|| format!("cannot make {name} in {}", run.display()))?;
    }
    Run::new("mount")
        .args(["-t", "bpf", "bpf"])
        .args([run.join("bpf")])
        .text()?;
    File::create(namespace_file)
        .with_context(|| format!("cannot make {}", namespace_file.display()))?;
    let mount = format!("--mount={}", namespace_file.display());
    Run::new("unshare")
        .args([mount.as_str(), "--propagation", "private", "true"])
        .text()?;
    let network = format!(
        "--net=/run/netns/{}",
        place.namespace().context("a node has a namespace")?
    );
    Run::new("nsenter")
        .args([mount.as_str(), network.as_str(), "sh", "-ec", MOUNTS, "sh"])
        .args([run])
        .text()
        .map(drop)
}

/// A command line that runs at the place; it goes through this very program (`node exec`), which
/// can change its namespaces because it has one thread.
pub fn command(place: &Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
    // Not the path: the binary may be rebuilt while the cluster is up.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["node", "exec", &place.name(), "--"])
        .arg(program);
    command
}

/// Turns this process into `command` at the place.
pub fn exec(place: &Place, command: &[String]) -> Result<Infallible> {
    let [program, arguments @ ..] = command else {
        bail!("give a command after --");
    };
    let folder = std::env::current_dir().context("cannot tell the current folder")?;
    let cgroup = place.process_cgroup()?.join("cgroup.procs");
    if !cgroup.exists() {
        bail!(
            "there is no {}: is the cluster up? (cargo xtask up --detach)",
            place.name()
        );
    }
    let network = place
        .namespace()
        .map(|name| open_namespace(Path::new("/run/netns").join(name)))
        .transpose()?;
    let mount = place.mount_namespace().map(open_namespace).transpose()?;
    fs::write(&cgroup, std::process::id().to_string())
        .with_context(|| format!("cannot join {}", cgroup.display()))?;
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET).context("cannot join the network namespace")?;
    }
    if let Some(mount) = mount {
        setns(mount, CloneFlags::CLONE_NEWNS).context("cannot join the mount namespace")?;
        // Joining moves the process to the namespace's root folder.
        std::env::set_current_dir(&folder)
            .with_context(|| format!("cannot go back to {}", folder.display()))?;
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("KUBECONFIG", place::kubeconfig());
    if matches!(place, Place::Node(_)) {
        command.env(
            "DOCKER_HOST",
            format!("unix://{}", place.docker_socket().display()),
        );
    }
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}

fn open_namespace(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    File::open(path).with_context(|| {
        format!(
            "cannot open {}: is the cluster up? (cargo xtask up --detach)",
            path.display()
        )
    })
}
