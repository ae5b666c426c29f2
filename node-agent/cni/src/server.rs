//! The agent's socket: one connection, one request.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tracing::{debug, warn};

use crate::protocol::{answer, receive};
use crate::{Attachments, Request};

/// How long a plugin may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens at `path`, which only root may use, and serves for ever. A socket that an earlier agent left is replaced.
///
/// # Errors
///
/// When the socket cannot be made.
pub async fn serve(path: &Path, attachments: Arc<Attachments>) -> io::Result<()> {
    let listener = listen(path)?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Descriptors may have run out for a moment.
                warn!(%error, "a CNI connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let attachments = attachments.clone();
        tokio::spawn(async move {
            let blocking = stream.into_std().and_then(|stream| {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            });
            let served = match blocking {
                Ok(stream) => one(stream, &attachments).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                // The plugin was killed: the runtime calls again, or collects.
                debug!(%error, "a CNI connection broke off");
            }
        });
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn one(stream: UnixStream, attachments: &Attachments) -> io::Result<()> {
    let (mut stream, request, netns): (UnixStream, Request, Option<OwnedFd>) =
        tokio::task::spawn_blocking(move || {
            receive(&stream).map(|(request, netns)| (stream, request, netns))
        })
        .await??;
    let path = netns.as_ref().map(|netns| {
        let process = std::process::id();
        PathBuf::from(format!("/proc/{process}/fd/{}", netns.as_raw_fd()))
    });
    let reply = attachments.handle(request, path.as_deref()).await;
    tokio::task::spawn_blocking(move || answer(&mut stream, &reply)).await?
}
