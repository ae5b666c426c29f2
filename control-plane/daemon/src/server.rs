//! The API server with its store: opened, listening, and ended in order.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use control_plane_apiserver::Settings;
use control_plane_apiserver::access::Authorization;
use control_plane_registry::{Options, Registry};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::Pki;
use crate::flags::Flags;
use crate::store::{BackupSocket, Place};

/// How long open requests get to end.
const DRAIN: Duration = Duration::from_secs(10);

/// A running API server.
#[derive(Debug)]
pub struct Server {
    tasks: JoinSet<std::io::Result<()>>,
    /// Where it listens, with the ports that the system chose for port 0.
    pub addresses: Vec<SocketAddr>,
    /// Gone when the server is.
    _backups: Option<BackupSocket>,
}

impl Server {
    /// Opens the store, reads it and listens.
    pub async fn start(
        flags: &Flags,
        settings: Settings,
        addresses: &[SocketAddr],
        stopping: watch::Receiver<bool>,
    ) -> Result<Self> {
        let place = Place::of_flags(&flags.store, &flags.data_dir)?;
        let store = place.open().await?;
        let backups = place.serve_backups(&store);
        let options = Options {
            service_cidrs: flags.service_cidr.clone(),
            node_ports: flags.node_port_range.clone(),
        };
        let registry = Registry::open(store, options).await?;
        if settings.authorization == Authorization::Rbac {
            let made = registry.make_roles().await;
            made.context("cannot make the roles that every cluster has")?;
        }
        // Listen before anything is published: an address that cannot be had ends the start.
        let mut listeners = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            listeners.push((listener.local_addr()?, listener));
        }
        let listening: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
        let mut secure = Vec::new();
        for address in &flags.api.tls_listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            secure.push((listener.local_addr()?, listener));
        }
        let secure_addresses: Vec<SocketAddr> =
            secure.iter().map(|(address, _)| *address).collect();
        let reachable: Vec<SocketAddr> = secure_addresses
            .iter()
            .chain(&listening)
            .filter(|a| !a.ip().is_loopback() && !a.ip().is_unspecified())
            .copied()
            .collect();
        registry
            .publish(&reachable)
            .await
            .context("cannot publish the endpoints of Service default/kubernetes")?;
        let app = control_plane_apiserver::app_with(registry, settings, stopping.clone());
        let mut tasks = JoinSet::new();
        if !secure.is_empty() {
            let pki = Pki::open(flags, &secure_addresses)?;
            for (address, listener) in secure {
                tracing::info!(%address, "the API server listens with TLS");
                let (app, config) = (app.clone(), pki.config.clone());
                let stopping = stopping.clone();
                tasks.spawn(control_plane_apiserver::serve_tls(
                    listener, app, config, stopping,
                ));
            }
        }
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
            _backups: backups,
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
