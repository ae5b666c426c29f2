//! Work inside another network namespace, on a thread of its own, so that no other thread ever leaves its namespace.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use crate::{Network, NetworkError};

/// Runs `work` on a new thread inside the network namespace at `path` (such as `/proc/PID/ns/net`), with a netlink
/// connection of that namespace. The thread ends with the work.
///
/// # Errors
///
/// [`NetworkError::Namespace`] if the namespace cannot be entered (it needs `CAP_SYS_ADMIN`), and what `work` returns.
pub async fn in_namespace<T, F>(path: &Path, work: F) -> Result<T, NetworkError>
where
    T: Send + 'static,
    F: AsyncFnOnce(Network) -> Result<T, NetworkError> + Send + 'static,
{
    let path = path.to_owned();
    let target = open(&path)?;
    let (answer, answered) = tokio::sync::oneshot::channel();
    let entered = path.clone();
    let fail = {
        let path = path.clone();
        move |operation, source| NetworkError::Namespace {
            operation,
            path,
            source,
        }
    };
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // The receiver is gone only if the caller no longer waits.
            let _ = answer.send(enter_and_run(&entered, &target, work));
        })
        .map_err(|source| fail("start a thread", source))?;
    answered
        .await
        .map_err(|_| NetworkError::NamespaceThread { path })?
}

/// The identity of a namespace: two paths name the same namespace exactly if their numbers agree (namespaces(7)).
///
/// # Errors
///
/// [`NetworkError::Namespace`] if the path cannot be opened.
pub fn namespace_id(path: &Path) -> Result<(u64, u64), NetworkError> {
    let file = open(path)?;
    let meta = file.metadata().map_err(|source| NetworkError::Namespace {
        operation: "stat",
        path: path.to_owned(),
        source,
    })?;
    Ok((meta.dev(), meta.ino()))
}

pub(crate) fn open(path: &Path) -> Result<File, NetworkError> {
    File::open(path).map_err(|source| NetworkError::Namespace {
        operation: "open",
        path: path.to_owned(),
        source,
    })
}

fn enter_and_run<T, F>(path: &Path, target: &File, work: F) -> Result<T, NetworkError>
where
    F: AsyncFnOnce(Network) -> Result<T, NetworkError>,
{
    let fail = |operation, source| NetworkError::Namespace {
        operation,
        path: path.to_owned(),
        source,
    };
    setns(target, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| fail("enter", io::Error::from(errno)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| fail("start a runtime in", source))?;
    runtime.block_on(async { work(Network::connect()?).await })
}
