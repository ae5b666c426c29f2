//! A cgroup of its own, which threads enter: sockets belong to the cgroup of the thread that makes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::unique;

/// A threaded cgroup (v2) below that of this process; removed on drop, when no thread is in it any more.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// # Errors
    ///
    /// When no cgroup2 file system is mounted, or the process's own cgroup has controllers that threads cannot have.
    pub fn new() -> Result<Self> {
        unique::sweep_once();
        let path = own_cgroup()?.join(unique::name());
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        let guard = Self { path };
        let kind = guard.path.join("cgroup.type");
        fs::write(&kind, "threaded").with_context(|| format!("write {}", kind.display()))?;
        Ok(guard)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into the cgroup, for good.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn enter(&self) -> Result<()> {
        let file = self.path.join("cgroup.threads");
        // The kernel takes 0 for the writing thread.
        fs::write(&file, "0").with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A thread that just ended leaves its cgroup a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// The directory of the cgroup2 that this process is in.
pub(crate) fn own_cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let Some(mount) = mount else {
        bail!("no cgroup2 file system is mounted")
    };
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("/proc/self/cgroup has no line of cgroup2")?;
    Ok(mount.join(own))
}
