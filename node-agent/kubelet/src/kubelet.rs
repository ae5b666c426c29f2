//! The kubelet as the daemon drives it.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::{net::TcpListener, sync::Notify};
use tracing::info;

use crate::{
    KubeletConfig, KubeletMetrics, PodWiring,
    events::Recorder,
    lease,
    metrics::Metrics,
    node::{self, Readiness},
    objects::Objects,
    pods,
    runtime::Runtime,
    server::{self, Server},
    volumes::Volumes,
    worker::Shared,
};

/// One node's kubelet. Clones are the same kubelet.
#[derive(Clone)]
pub struct Kubelet {
    inner: Arc<Inner>,
}

struct Inner {
    config: KubeletConfig,
    client: Client,
    runtime: Runtime,
    metrics: Arc<Metrics>,
    /// Pods can be wired.
    network_ready: AtomicBool,
    readiness_changed: Notify,
}

impl Kubelet {
    /// Connects to the node's Docker daemon.
    ///
    /// # Errors
    ///
    /// If Docker does not answer at `config.docker_socket`.
    pub async fn connect(config: KubeletConfig, client: Client) -> anyhow::Result<Self> {
        let runtime = Runtime::connect(&config.docker_socket).await?;
        let version = runtime.version().await?;
        info!(version, socket = %config.docker_socket.display(), "connected to Docker");
        let inner = Inner {
            config,
            client,
            runtime,
            metrics: Arc::default(),
            network_ready: AtomicBool::new(false),
            readiness_changed: Notify::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Makes the Node or brings it up to date. It is not Ready until [`Kubelet::run_pods`] runs. Answers the Node as
    /// the API server has it, whose `spec.podCIDRs` may still be unset.
    ///
    /// # Errors
    ///
    /// A request that the API server refused or did not answer: try again.
    pub async fn register_node(&self) -> anyhow::Result<Node> {
        node::register(&self.inner.client, &self.inner.config, &self.inner.runtime)
            .await
            .context("register the node")
    }

    /// Renews the node's Lease and keeps its status up to date, for ever. Failures are logged and tried again.
    pub async fn run_heartbeats(self) -> Infallible {
        let Inner {
            config,
            client,
            runtime,
            ..
        } = &*self.inner;
        let readiness = || {
            if self.inner.network_ready.load(Relaxed) {
                Readiness::Ready
            } else {
                Readiness::Not("the network of pods is not set up yet".to_owned())
            }
        };
        let changed = &self.inner.readiness_changed;
        tokio::select! {
            never = lease::keep(client, &config.node_name) => never,
            never = node::keep_status(client, config, runtime, readiness, changed) => never,
        }
    }

    /// Serves the kubelet's own API to `callers`, for ever: logs, commands and ports of this node's pods.
    ///
    /// There is neither TLS nor a user yet: whoever comes from one of these addresses can do everything in every pod.
    ///
    /// # Errors
    ///
    /// The listener's.
    pub async fn serve(
        self,
        listener: TcpListener,
        callers: Vec<IpAddr>,
    ) -> anyhow::Result<Infallible> {
        let server = Server {
            runtime: self.inner.runtime.clone(),
            objects: Objects {
                client: self.inner.client.clone(),
            },
            node_name: self.inner.config.node_name.clone(),
            callers: Arc::new(callers),
        };
        server::serve(listener, server).await
    }

    /// Runs the pods that are bound to this node, for ever. Dropping the future leaves them running.
    ///
    /// # Errors
    ///
    /// The watch of pods or that of Docker's events has ended, which both never should: start again.
    pub async fn run_pods(self, wiring: PodWiring) -> anyhow::Result<Infallible> {
        let Inner {
            config,
            client,
            runtime,
            metrics,
            ..
        } = &*self.inner;
        let shared = Shared {
            config: config.clone(),
            runtime: runtime.clone(),
            objects: Objects {
                client: client.clone(),
            },
            recorder: Recorder::new(client.clone(), &config.node_name),
            metrics: metrics.clone(),
            volumes: Volumes::new(&config.state_dir),
            wiring,
        };
        self.inner.network_ready.store(true, Relaxed);
        self.inner.readiness_changed.notify_one();
        pods::run(Arc::new(shared)).await
    }

    /// The counters as they are now.
    #[must_use]
    pub fn metrics(&self) -> KubeletMetrics {
        self.inner.metrics.snapshot()
    }
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}
