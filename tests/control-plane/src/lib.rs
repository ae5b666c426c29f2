//! A whole control plane in this process: store, registry, API server, controllers and scheduler, wired as the daemon
//! wires them, on a port of loopback that the system chooses. The kubelets are played by the tests.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control_plane_registry::Registry;
use control_plane_store::{EmbeddedStore, Store, embedded};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope, jiff::Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Far longer than anything here takes; what is not so by then has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running control plane; it ends, without any clean-up of its own, when dropped.
#[expect(
    missing_debug_implementations,
    reason = "a client of the API has nothing to show"
)]
pub struct ControlPlane {
    pub client: Client,
    folder: Option<TempDir>,
    runtime: Option<Runtime>,
    options: control_plane_controllers::Options,
}

/// The controllers' options, with the waits of hours and minutes cut to what a test can wait for.
#[must_use]
pub fn quick() -> control_plane_controllers::Options {
    control_plane_controllers::Options {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/48".parse().unwrap(),
        ],
        pod_gc_quarantine: Duration::from_millis(100),
        ..control_plane_controllers::Options::default()
    }
}

impl ControlPlane {
    /// Starts on an empty store.
    pub async fn start(options: control_plane_controllers::Options) -> Self {
        Self::start_on(TempDir::new().unwrap(), options).await
    }

    /// Ends everything and starts again on the same store, as after a crash.
    pub async fn restart(mut self) -> Self {
        let folder = self.folder.take().unwrap();
        let (runtime, options) = (self.runtime.take().unwrap(), self.options.clone());
        tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE))
            .await
            .unwrap();
        Self::start_on(folder, options).await
    }

    async fn start_on(folder: TempDir, options: control_plane_controllers::Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let path = folder.path().join("store.redb");
        let address = runtime
            .spawn(async move { serve(open(&path).await).await })
            .await
            .unwrap();
        let with = options.clone();
        runtime.spawn(async move {
            let ended = control_plane_controllers::run(client(address), with).await;
            panic!("the controllers ended: {ended:?}");
        });
        runtime.spawn(async move {
            control_plane_scheduler::run(
                client(address),
                control_plane_scheduler::Options::default(),
            )
            .await;
            panic!("the scheduler ended");
        });
        Self {
            client: client(address),
            folder: Some(folder),
            runtime: Some(runtime),
            options,
        }
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// The objects of namespace `default`.
    pub fn here<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Makes a Node and plays a kubelet that is ready, with 4 CPUs and room for 110 Pods.
    pub async fn add_node(&self, name: &str) {
        let node =
            json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z"}}});
        create(&self.all::<Node>(), node).await;
        self.set_node_ready(name).await;
    }

    pub async fn set_node_ready(&self, name: &str) {
        let now = Timestamp::now();
        let status = json!({
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        });
        patch_status(&self.all::<Node>(), name, status).await;
    }

    /// Makes a Pod with the label `app`, and `spec` beside its one container that asks for `cpu`.
    pub async fn add_pod(&self, name: &str, app: &str, cpu: &str, spec: Value) {
        let mut whole = json!({"containers": [{
            "name": "c",
            "image": "none",
            "resources": {"requests": {"cpu": cpu}},
            "ports": [{"name": "api", "containerPort": 9000}],
        }]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let pod = json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": whole});
        create(&self.here::<Pod>(), pod).await;
    }

    /// Plays the kubelet that has started the Pod.
    pub async fn set_pod(&self, name: &str, address: &str, ready: bool) {
        let status = json!({
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        });
        patch_status(&self.here::<Pod>(), name, status).await;
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn open(path: &Path) -> Arc<dyn Store> {
    let path = path.to_owned();
    let open = || EmbeddedStore::open(path, embedded::Options::default()).unwrap();
    Arc::new(tokio::task::spawn_blocking(open).await.unwrap())
}

/// An API server over a store; answers where it listens.
pub async fn serve(store: Arc<dyn Store>) -> SocketAddr {
    let registry = Registry::open(store, control_plane_registry::Options::default())
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        // Never told to stop: the end comes without warning.
        let (_stop, stopping) = watch::channel(false);
        let app = control_plane_apiserver::app(registry, stopping.clone());
        control_plane_apiserver::serve(listener, app, stopping).await
    });
    address
}

pub fn client(address: SocketAddr) -> Client {
    let url = format!("http://{address}").parse().unwrap();
    Client::try_from(kube::Config::new(url)).unwrap()
}

pub async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

pub async fn patch_status<K>(api: &Api<K>, name: &str, status: Value)
where
    K: Clone + Debug + serde::de::DeserializeOwned,
{
    let patch = Patch::Strategic(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

pub async fn merge<K>(api: &Api<K>, name: &str, patch: Value)
where
    K: Clone + Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
}

/// Asks until the answer is `expected`.
pub async fn eventually<T, Fut>(what: &str, expected: T, ask: impl Fn() -> Fut)
where
    T: PartialEq + Debug,
    Fut: Future<Output = T>,
{
    let begun = std::time::Instant::now();
    loop {
        let answer = ask().await;
        if answer == expected {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: expected {expected:?}, got {answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
