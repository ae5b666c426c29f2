//! A bpffs of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::unique;

/// A bpffs on a temporary directory; unmounted on drop, with every pin in it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// # Errors
    ///
    /// When this process may not mount.
    pub fn new() -> Result<Self> {
        unique::sweep_once();
        let path = unique::temporary_dir().join(unique::name());
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let guard = Self { path };
        mount(
            Some("bpf"),
            &guard.path,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount a bpffs at {}", guard.path.display()))?;
        Ok(guard)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for a node's pins.
    pub fn pin_dir(&self) -> PathBuf {
        self.path.join("fairlead")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).ok();
        fs::remove_dir(&self.path).ok();
    }
}
