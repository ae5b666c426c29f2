//! An API server on a machine of the underlay.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use control_plane_registry::{Options, Registry};
use control_plane_store::{EmbeddedStore, embedded};
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_testkit::{Machine, Underlay};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// The machine's number on the underlay.
const NUMBER: u8 = 250;
const PORT: u16 = 6443;
/// Far longer than its threads take to end.
const STOPPING: Duration = Duration::from_secs(10);

/// A running API server over a store of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Api {
    /// Its threads live in the machine's network namespace; none while it is stopped.
    runtime: Option<Runtime>,
    machine: Machine,
    directory: TempDir,
}

impl Api {
    /// # Errors
    ///
    /// When the server cannot start.
    pub fn start(underlay: &Underlay) -> Result<Self> {
        let machine = underlay.machine(NUMBER)?;
        let directory = tempfile::tempdir().context("make a temporary folder")?;
        let mut api = Self {
            runtime: None,
            machine,
            directory,
        };
        api.again()?;
        Ok(api)
    }

    /// Starts it (again), with what its store holds.
    ///
    /// # Errors
    ///
    /// When the server cannot start.
    pub fn again(&mut self) -> Result<()> {
        let runtime = self.machine.run(|| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
        })?;
        let store = self.directory.path().join("store.redb");
        // Of both families.
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let serving = async move {
            let store = EmbeddedStore::open(store, embedded::Options::default())?;
            let registry = Registry::open(Arc::new(store), Options::default()).await?;
            let listener = TcpListener::bind(address).await?;
            let (stop, stopping) = watch::channel(false);
            let app = control_plane_apiserver::app(registry, stopping.clone());
            tokio::spawn(async move {
                // Nobody tells it to stop: it goes with the runtime.
                let _stop = stop;
                control_plane_apiserver::serve(listener, app, stopping).await
            });
            anyhow::Ok(())
        };
        runtime.block_on(runtime.spawn(serving))??;
        self.runtime = Some(runtime);
        Ok(())
    }

    /// Ends it as a crash does: connections are cut, watches with them.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The store's file must be closed before it is opened again.
            runtime.shutdown_timeout(STOPPING);
        }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}:{PORT}", self.machine.ipv4)
    }

    /// For nodes without IPv4.
    #[must_use]
    pub fn url_v6(&self) -> String {
        format!("http://[{}]:{PORT}", self.machine.ipv6)
    }

    /// Where it runs.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs `work` on the machine.
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().context("it was stopped")?;
        runtime.block_on(runtime.spawn(work))?
    }

    /// Runs `work` with a client of this server.
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub fn ask<T, F>(&self, work: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let url = self.url().parse().context("the URL")?;
        self.run(async move {
            let client = Client::try_from(Config::new(url))?;
            work(client).await
        })
    }

    /// Sends one request with a JSON body, if any; a PATCH is a merge patch.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let request = Request::builder().method(&method).uri(path);
        let request = request.header(
            CONTENT_TYPE,
            match method {
                Method::PATCH => "application/merge-patch+json",
                _ => "application/json",
            },
        );
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request.body(body.into_bytes())?;
        let what = format!("{method} {path}");
        self.ask(async move |client| client.request(request).await.context(what))
    }

    /// Makes a Node as another kubelet would have.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub fn add_node(&self, name: &str, pod_cidrs: &[&str], annotations: Value) -> Result<()> {
        let node = json!({"metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs}});
        self.ask(async move |client| {
            let node: Node = serde_json::from_value(node)?;
            let nodes = kube::Api::all(client);
            nodes.create(&PostParams::default(), &node).await?;
            Ok(())
        })
    }

    /// # Errors
    ///
    /// When the server refuses it.
    pub fn patch_node(&self, name: &str, patch: Value) -> Result<()> {
        let name = name.to_owned();
        self.ask(async move |client| {
            let nodes: kube::Api<Node> = kube::Api::all(client);
            let patch = Patch::Merge(patch);
            nodes.patch(&name, &PatchParams::default(), &patch).await?;
            Ok(())
        })
    }

    /// # Errors
    ///
    /// When there is none.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.ask(async move |client| {
            let nodes: kube::Api<Node> = kube::Api::all(client);
            nodes.delete(&name, &DeleteParams::default()).await?;
            Ok(())
        })
    }

    /// # Errors
    ///
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<Node> {
        let name = name.to_owned();
        self.ask(async move |client| Ok(kube::Api::all(client).get(&name).await?))
    }

    /// The reasons and messages of the events in `default`.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub fn events(&self) -> Result<Vec<(String, String)>> {
        self.ask(async move |client| {
            let events: kube::Api<Event> = kube::Api::default_namespaced(client);
            let list = events.list(&ListParams::default()).await?;
            let text = |text: Option<String>| text.unwrap_or_default();
            Ok(list
                .items
                .into_iter()
                .map(|event| (text(event.reason), text(event.message)))
                .collect())
        })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
