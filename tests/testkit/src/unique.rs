//! Names that no other process uses, and removal of what dead processes left.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = "fairlead-test-";

/// A name that starts with our prefix and carries this process's id.
pub(crate) fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// Where bpffs are mounted.
pub(crate) fn temporary_dir() -> PathBuf {
    std::env::temp_dir()
}

/// Removes the cgroups and mounts of test processes that were killed. Guards of living processes are not touched.
/// Called when the first guard of a process is made.
pub fn sweep() {
    for dir in left_over(&temporary_dir()) {
        // Not mounted any more, or busy: then it stays for the next sweep.
        if nix::mount::umount2(&dir, nix::mount::MntFlags::MNT_DETACH).is_ok() || is_empty(&dir) {
            fs::remove_dir(&dir).ok();
        }
    }
    if let Ok(own) = crate::cgroup::own_cgroup() {
        for dir in left_over(&own) {
            fs::remove_dir(&dir).ok();
        }
    }
}

/// Sweeps once a process.
pub(crate) fn sweep_once() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(sweep);
}

fn left_over(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| is_of_dead_process(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

fn is_of_dead_process(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, _)| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_dead_processes_are_left_over() {
        assert!(!is_of_dead_process(&name()));
        assert!(!is_of_dead_process("fairlead-test-"));
        assert!(!is_of_dead_process("something-else-1-1"));
        // Greater than the kernel's greatest process id, 2^22.
        assert!(is_of_dead_process("fairlead-test-4194305-0"));
    }
}
