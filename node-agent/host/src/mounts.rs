//! The two filesystems that the dataplane needs: a bpffs for its pins and the cgroup2 hierarchy for its socket hooks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

const MOUNTS: &str = "/proc/self/mountinfo";

/// A filesystem that is missing or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("look at the filesystem of {path}")]
    Stat {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount a bpffs at {path}")]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {MOUNTS}")]
    List(#[source] io::Error),
    #[error(
        "no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, or name one with --cgroup"
    )]
    NoCgroup2,
}

/// Whether `path` lies on a bpffs.
///
/// # Errors
///
/// [`MountError::Stat`] if the path does not exist or cannot be looked at.
pub fn bpffs_mounted(path: &Path) -> Result<bool, MountError> {
    let found = statfs(path).map_err(|errno| MountError::Stat {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a bpffs at `path` unless there is one.
///
/// # Errors
///
/// [`MountError::Stat`] if the directory does not exist, [`MountError::Mount`] if the kernel refuses.
pub fn mount_bpffs(path: &Path) -> Result<(), MountError> {
    if bpffs_mounted(path)? {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|errno| MountError::Mount {
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// The root of the cgroup2 hierarchy, wherever it is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside
/// version 1.
///
/// # Errors
///
/// [`MountError::NoCgroup2`] if none is mounted.
pub fn cgroup2_root() -> Result<PathBuf, MountError> {
    let text = fs::read_to_string(MOUNTS).map_err(MountError::List)?;
    cgroup2_mounts(&text)
        .into_iter()
        .find(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC))
        .ok_or(MountError::NoCgroup2)
}

/// Mount points of cgroup2 in the text of mountinfo (proc_pid_mountinfo(5)), the shortest first: a whole hierarchy
/// before a part of it that is bound elsewhere.
fn cgroup2_mounts(text: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            (filesystem.split(' ').next()? == "cgroup2")
                .then(|| mount.split(' ').nth(4))
                .flatten()
        })
        .map(PathBuf::from)
        .collect();
    found.sort_by_key(|path| path.as_os_str().len());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let text = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
27 25 0:25 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
99 30 0:24 /fairlead/n1 /run/fairlead/cgroup/long/path rw - cgroup2 cgroup2 rw
";
        let expected: Vec<PathBuf> = ["/sys/fs/cgroup/unified", "/run/fairlead/cgroup/long/path"]
            .map(PathBuf::from)
            .into();
        assert_eq!(cgroup2_mounts(text), expected);
    }

    #[test]
    fn a_directory_of_the_root_filesystem_is_no_bpffs() {
        assert!(!bpffs_mounted(Path::new("/proc")).unwrap());
        assert!(matches!(
            bpffs_mounted(Path::new("/nowhere/at/all")),
            Err(MountError::Stat { .. })
        ));
    }
}
