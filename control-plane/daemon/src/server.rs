//! The API server with its store: opened, listening, and ended in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use control_plane_registry::{Options, Registry};
use control_plane_store::{EmbeddedStore, embedded};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::flags::Flags;

/// How long open requests get to end.
const DRAIN: Duration = Duration::from_secs(10);

/// A running API server.
#[derive(Debug)]
pub struct Server {
    tasks: JoinSet<std::io::Result<()>>,
    /// Where it listens, with the ports that the system chose for port 0.
    pub addresses: Vec<SocketAddr>,
}

impl Server {
    /// Opens the store, reads it and listens.
    pub async fn start(
        flags: &Flags,
        addresses: &[SocketAddr],
        stopping: watch::Receiver<bool>,
    ) -> Result<Self> {
        let store = open_store(&flags.data_dir).await?;
        let options = Options {
            service_cidrs: flags.service_cidr.clone(),
            node_ports: flags.node_port_range.clone(),
        };
        let registry = Registry::open(Arc::new(store), options).await?;
        // Listen before anything is published: an address that cannot be had ends the start.
        let mut listeners = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            listeners.push((listener.local_addr()?, listener));
        }
        let listening: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
        let reachable: Vec<SocketAddr> = listening
            .iter()
            .filter(|a| !a.ip().is_loopback() && !a.ip().is_unspecified())
            .copied()
            .collect();
        registry
            .publish(&reachable)
            .await
            .context("cannot publish the endpoints of Service default/kubernetes")?;
        let app = control_plane_apiserver::app(registry, stopping.clone());
        let mut tasks = JoinSet::new();
        for (address, listener) in listeners {
            tracing::info!(%address, "the API server listens");
            tasks.spawn(control_plane_apiserver::serve(
                listener,
                app.clone(),
                stopping.clone(),
            ));
        }
        Ok(Self {
            tasks,
            addresses: listening,
        })
    }

    /// Waits until the open requests are answered, but not for ever.
    pub async fn finish(mut self) -> Result<()> {
        let drained = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended??;
            }
            Ok::<_, anyhow::Error>(())
        };
        match tokio::time::timeout(DRAIN, drained).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!("requests are still open; ending all the same");
                Ok(())
            }
        }
    }
}

/// Opens the store of a data folder, which is made if it is not there.
async fn open_store(data_dir: &Path) -> Result<EmbeddedStore> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make the folder --data-dir {}", data_dir.display()))?;
    let path: PathBuf = data_dir.join("store.redb");
    let store = tokio::task::spawn_blocking(move || {
        EmbeddedStore::open(path, embedded::Options::default())
    });
    Ok(store.await??)
}
