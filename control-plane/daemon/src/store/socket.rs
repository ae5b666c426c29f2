//! Backups of a file that a running control plane has open: whoever connects to the Unix socket beside the file gets
//! one, made at that moment. Only the file's owner can connect.

use std::fs::Permissions;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use control_plane_registry::ROOT;
use control_plane_store::{Snapshot, Store, backup};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

/// Who takes nothing for so long gets no more.
const STALLED: Duration = Duration::from_secs(60);

/// Serves backups until dropped.
#[derive(Debug)]
pub struct BackupSocket {
    path: PathBuf,
    task: AbortHandle,
}

impl BackupSocket {
    /// Serves backups of the store in the file `path`, which must be open: so a socket that is there is a leftover.
    pub fn serve(path: &Path, store: &Arc<dyn Store>) -> Result<Self> {
        let path = socket_of(path);
        let context = || format!("cannot serve backups at {}", path.display());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(context);
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(context)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).with_context(context)?;
        let task = tokio::spawn(accept(listener, store.clone())).abort_handle();
        Ok(Self { path, task })
    }
}

impl Drop for BackupSocket {
    fn drop(&mut self) {
        self.task.abort();
        // If it stays, the next start removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The backup that the control plane sends which has the store file `path` open.
pub fn fetch(path: &Path) -> Result<Snapshot> {
    let socket = socket_of(path);
    let stream = UnixStream::connect(&socket).with_context(|| {
        format!(
            "{} is open in another process, which serves no backup at {}",
            path.display(),
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(STALLED))?;
    backup::read(std::io::BufReader::new(stream))
        .context("the running control plane sent no whole backup; its log says why")
}

fn socket_of(path: &Path) -> PathBuf {
    path.with_extension("sock")
}

async fn accept(listener: UnixListener, store: Arc<dyn Store>) {
    loop {
        let sent = match listener.accept().await {
            // One after the other: each holds a whole snapshot.
            Ok((stream, _)) => send(stream, store.as_ref()).await,
            Err(error) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(error.into())
            }
        };
        match sent {
            Ok(revision) => tracing::info!(revision, "backup sent"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "backup not sent"),
        }
    }
}

async fn send(stream: tokio::net::UnixStream, store: &dyn Store) -> Result<u64> {
    let snapshot = Snapshot::take(store, ROOT).await?;
    let revision = snapshot.revision;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(STALLED))?;
    let write = move || backup::write(&snapshot, BufWriter::new(stream));
    tokio::task::spawn_blocking(write).await??;
    Ok(revision)
}
