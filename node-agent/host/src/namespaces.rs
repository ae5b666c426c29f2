//! The network namespaces of all processes: the host's and the pods'.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::{io, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `work` once in each network namespace that a process is in, on a thread of its own, and answers what came of
/// it. Namespaces that go meanwhile are left out. It needs `CAP_SYS_ADMIN`, and to see the processes.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn in_every_namespace<T: Send>(work: impl Fn() -> T + Sync) -> io::Result<Vec<T>> {
    let mut results = Vec::new();
    for namespace in namespaces()?.into_values() {
        let inside = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
            Some(work())
        };
        let result = thread::scope(|scope| scope.spawn(inside).join());
        match result {
            Ok(result) => results.extend(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(results)
}

/// By their identity (namespaces(7)).
fn namespaces() -> io::Result<BTreeMap<(u64, u64), File>> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let is_process = process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        if !is_process {
            continue;
        }
        // It may be gone by now, and threads of the kernel have none.
        let Ok(namespace) = File::open(process.path().join("ns/net")) else {
            continue;
        };
        let Ok(meta) = namespace.metadata() else {
            continue;
        };
        found.entry((meta.dev(), meta.ino())).or_insert(namespace);
    }
    Ok(found)
}
