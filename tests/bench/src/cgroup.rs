//! A cgroup that the client joins while the socket programs should see it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A cgroup of version 2, removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

/// This process is in the cgroup while this lives.
#[derive(Debug)]
pub struct Membership<'a> {
    cgroup: &'a Cgroup,
}

impl Cgroup {
    pub fn new(name: &str) -> Result<Self> {
        let root = version_2_root()?;
        let path = root.join(format!("fairlead-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create the cgroup {}", path.display()))?;
        Ok(Self { root, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process, and no other, into the cgroup.
    pub fn join(&self) -> Result<Membership<'_>> {
        move_self(&self.path)?;
        Ok(Membership { cgroup: self })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup that cannot be removed is empty and harms nobody.
        let _ = fs::remove_dir(&self.path);
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        move_self(&self.cgroup.root).expect("the root of the cgroup hierarchy takes every process");
    }
}

fn move_self(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    // 0 stands for the writer (Documentation/admin-guide/cgroup-v2.rst).
    fs::write(&file, "0").with_context(|| format!("move this process by {}", file.display()))
}

/// Where the hierarchy is mounted: on its own or beside version 1.
fn version_2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .context("no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}
