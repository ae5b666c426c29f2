//! An API server on a machine of the underlay.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
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

use crate::real_api::RealApi;

/// The machine's number on the underlay.
const NUMBER: u8 = 250;
pub(crate) const PORT: u16 = 6443;
/// Far longer than its threads take to end.
const STOPPING: Duration = Duration::from_secs(10);

/// A running API server over a store of its own: ours, or the real one that is given. It ends when this is dropped.
#[derive(Debug)]
pub struct Api {
    /// Its threads live in the machine's network namespace; none while the server is stopped.
    runtime: Option<Runtime>,
    server: Server,
    machine: Machine,
    directory: TempDir,
}

#[derive(Debug)]
enum Server {
    /// In the runtime.
    Ours,
    Real(RealApi),
}

impl Api {
    /// # Errors
    ///
    /// When the server cannot start.
    pub fn start(underlay: &Underlay) -> Result<Self> {
        let machine = underlay.machine(NUMBER)?;
        let directory = tempfile::tempdir().context("make a temporary folder")?;
        let server = match tests_reference::given() {
            Some(program) => Server::Real(RealApi::new(program, &machine, directory.path())?),
            None => Server::Ours,
        };
        let mut api = Self {
            runtime: None,
            server,
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
        match &mut self.server {
            Server::Ours => {
                let store = self.directory.path().join("store.redb");
                runtime.block_on(runtime.spawn(serve_ours(store)))??;
            }
            Server::Real(server) => server.start(&self.machine, &runtime)?,
        }
        self.runtime = Some(runtime);
        Ok(())
    }

    /// Ends it as a crash does: connections are cut, watches with them.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The store's file must be closed before it is opened again.
            runtime.shutdown_timeout(STOPPING);
        }
        if let Server::Real(server) = &mut self.server {
            server.stop();
        }
    }

    /// The agent's flag that leads here.
    #[must_use]
    pub fn flag(&self) -> String {
        self.flag_at(self.machine.ipv4.into(), "--server", "--kubeconfig")
    }

    /// For nodes without IPv4.
    #[must_use]
    pub fn flag_v6(&self) -> String {
        self.flag_at(self.machine.ipv6.into(), "--server", "--kubeconfig")
    }

    /// The flag of a program that leads to this address of the server: `url` takes a URL, `kubeconfig` a file.
    #[must_use]
    pub fn flag_at(&self, address: IpAddr, url: &str, kubeconfig: &str) -> String {
        match &self.server {
            Server::Ours => format!("{url}=http://{}", SocketAddr::new(address, PORT)),
            Server::Real(server) => {
                format!("{kubeconfig}={}", server.kubeconfig(address).display())
            }
        }
    }

    /// For clients that reach the underlay.
    ///
    /// # Errors
    ///
    /// When its address is none.
    pub fn config(&self) -> Result<Config> {
        match &self.server {
            Server::Ours => Ok(Config::new(
                format!("http://{}:{PORT}", self.machine.ipv4).parse()?,
            )),
            Server::Real(server) => server.config(),
        }
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
        let config = self.config()?;
        self.run(async move { work(Client::try_from(config)?).await })
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

/// In a runtime, for as long as that lives.
async fn serve_ours(store: PathBuf) -> Result<()> {
    let store = EmbeddedStore::open(store, embedded::Options::default())?;
    let registry = Registry::open(Arc::new(store), Options::default()).await?;
    // Of both families.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
    let (stop, stopping) = watch::channel(false);
    let app = control_plane_apiserver::app(registry, stopping.clone());
    tokio::spawn(async move {
        // Nobody tells it to stop: it goes with the runtime.
        let _stop = stop;
        control_plane_apiserver::serve(listener, app, stopping).await
    });
    Ok(())
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
