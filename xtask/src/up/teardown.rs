//! Removing a cluster: everything in the state's list, whatever of it exists.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place;
use super::state::State;
use crate::command::Run;

const PATIENCE: Duration = Duration::from_secs(20);

/// Goes on after a failure, so that one stubborn thing keeps nothing else; returns the first one.
pub fn remove(state: &State) -> Result<()> {
    let mut outcomes = vec![end_processes(&state.cgroup)];
    outcomes.extend(state.namespaces.iter().map(|name| remove_namespace(name)));
    outcomes.push(remove_link(place::ROOT_LINK));
    outcomes.extend(state.mounts.iter().map(|mount| unmount(mount)));
    outcomes.extend(state.folders.iter().map(|folder| remove_path(folder)));
    outcomes.push(remove_cgroups(&state.cgroup));
    outcomes.into_iter().collect::<Result<()>>()?;
    State::forget()
}

/// Ends every process in the cluster's own control groups and waits until they are gone.
fn end_processes(cgroup: &str) -> Result<()> {
    let roots = cgroup_roots(cgroup)?;
    let begun = Instant::now();
    // The agents' and the API server's own way down comes first; containers get no farewell.
    for pid in processes(&roots, |name| name.starts_with("fairlead-")) {
        signal(pid, Signal::SIGTERM);
    }
    while begun.elapsed() < Duration::from_secs(3)
        && !processes(&roots, |name| name.starts_with("fairlead-")).is_empty()
    {
        thread::sleep(Duration::from_millis(50));
    }
    loop {
        let alive = processes(&roots, |_| true);
        if alive.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("processes {alive:?} of the control group {cgroup} do not end");
        }
        // Again and again: a dying shim may have started something in between.
        for pid in alive {
            signal(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn signal(pid: i32, signal: Signal) {
    // A process that has ended meanwhile is what we want.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The living processes in our groups, on any hierarchy, whose program's name fits.
fn processes(roots: &[PathBuf], wanted: impl Fn(&str) -> bool) -> BTreeSet<i32> {
    let own = std::process::id().cast_signed();
    let groups = roots.iter().flat_map(|root| folders_below(root));
    groups
        .filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|list| {
            list.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<i32>>()
        })
        // Zero stands for a process of another PID namespace.
        .filter(|pid| *pid > 0 && *pid != own)
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| wanted(name.trim()))
        })
        .collect()
}

fn cgroup_roots(cgroup: &str) -> Result<Vec<PathBuf>> {
    Ok(place::cgroup_mounts()?
        .into_iter()
        .map(|(_, mount)| mount.join(cgroup))
        .filter(|path| path.is_dir())
        .collect())
}

/// The folder itself and all below it, parents first.
fn folders_below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            let folders = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(folders.map(|entry| entry.path()));
        }
        next += 1;
    }
    found
}

fn remove_cgroups(cgroup: &str) -> Result<()> {
    for root in cgroup_roots(cgroup)? {
        for folder in folders_below(&root).into_iter().rev() {
            patiently(&folder, || fs::remove_dir(&folder))?;
        }
    }
    Ok(())
}

fn remove_namespace(name: &str) -> Result<()> {
    if Path::new("/run/netns").join(name).exists() {
        Run::new("ip").args(["netns", "delete", name]).text()?;
    }
    Ok(())
}

fn remove_link(name: &str) -> Result<()> {
    // It may just be going with the namespace of its other end: then the answer is no fault.
    if Path::new("/sys/class/net").join(name).exists() {
        let outcome = Run::new("ip").args(["link", "delete", name]).text();
        if Path::new("/sys/class/net").join(name).exists() {
            outcome?;
        }
    }
    Ok(())
}

fn unmount(mount: &Path) -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let inside: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|path| path.starts_with(mount))
        .collect();
    for path in inside.iter().rev() {
        Run::new("umount")
            .args(["--lazy".as_ref(), path.as_os_str()])
            .text()?;
    }
    Ok(())
}

fn remove_path(path: &Path) -> Result<()> {
    patiently(path, || {
        if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
    })
}

/// The kernel lets go of mounts and groups a moment after their last process.
fn patiently(path: &Path, remove: impl Fn() -> std::io::Result<()>) -> Result<()> {
    let begun = Instant::now();
    loop {
        match remove() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
