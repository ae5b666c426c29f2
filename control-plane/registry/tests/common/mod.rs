//! A registry over a real store in a folder of its own.
#![allow(dead_code, reason = "every test file uses its part")]

use std::sync::Arc;

use control_plane_registry::decode::Body;
use control_plane_registry::{
    ApiError, DeleteOptions, Deleted, Kind, Options, PatchType, Registry, Subresource,
    WriteOptions, kinds,
};
use control_plane_store::{EmbeddedStore, Store, embedded};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Cluster {
    pub registry: Registry,
    pub store: Arc<dyn Store>,
    pub dir: TempDir,
}

pub fn kind(plural: &str) -> &'static Kind {
    kinds::all()
        .find(|k| k.plural == plural)
        .expect("a kind of the table")
}

pub fn body(value: Value) -> Body {
    Body {
        value,
        found: Vec::new(),
    }
}

impl Cluster {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (registry, store) = open(&dir, options).await;
        Self {
            registry,
            store,
            dir,
        }
    }

    /// Closes everything and opens the same store again.
    pub async fn restart(self, options: Options) -> Self {
        let Self {
            registry,
            store,
            dir,
        } = self;
        drop((registry, store));
        // The tasks of the old registry let go of the store soon after they are ended.
        for _ in 0..200 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let path = dir.path().join("store.redb");
            if EmbeddedStore::open(path, embedded::Options::default()).is_ok() {
                break;
            }
        }
        let (registry, store) = open(&dir, options).await;
        Self {
            registry,
            store,
            dir,
        }
    }

    pub async fn create(&self, plural: &str, value: Value) -> Result<Value, ApiError> {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        self.registry
            .create(kind, namespace, body(value), &WriteOptions::default())
            .await
            .map(|written| written.object.value())
    }

    pub async fn get(&self, plural: &str, name: &str) -> Result<Value, ApiError> {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        let object = self.registry.get(kind, namespace, name, None).await?;
        Ok(object.value())
    }

    pub async fn update(
        &self,
        plural: &str,
        subresource: Option<Subresource>,
        value: Value,
    ) -> Result<Value, ApiError> {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        let name = value["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let options = WriteOptions::default();
        self.registry
            .update(kind, subresource, namespace, &name, body(value), &options)
            .await
            .map(|written| written.object.value())
    }

    pub async fn patch(&self, plural: &str, name: &str, patch: Value) -> Result<Value, ApiError> {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        let options = WriteOptions::default();
        self.registry
            .patch(
                kind,
                None,
                namespace,
                name,
                &body(patch),
                PatchType::Strategic,
                &options,
            )
            .await
            .map(|written| written.object.value())
    }

    pub async fn delete(&self, plural: &str, name: &str) -> Result<Deleted, ApiError> {
        self.delete_with(plural, name, DeleteOptions::default())
            .await
    }

    pub async fn delete_with(
        &self,
        plural: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let kind = kind(plural);
        let namespace = if kind.namespaced { "default" } else { "" };
        self.registry.delete(kind, namespace, name, &options).await
    }
}

async fn open(dir: &TempDir, options: Options) -> (Registry, Arc<dyn Store>) {
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(path, embedded::Options::default()).expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let registry = Registry::open(store.clone(), options);
    (registry.await.expect("a registry"), store)
}

pub fn config_map(name: &str, data: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"v": data}})
}

pub fn service(name: &str, kind: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}})
}

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox:1"}]}})
}
