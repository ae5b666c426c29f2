//! The objects that the clients write: a ConfigMap of half a kilobyte, and a Pod as a Deployment makes them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is written.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum Kind {
    ConfigMap,
    Pod,
}

impl Kind {
    pub fn collection(self, namespace: &str) -> String {
        let plural = match self {
            Self::ConfigMap => "configmaps",
            Self::Pod => "pods",
        };
        format!("/api/v1/namespaces/{namespace}/{plural}")
    }

    /// The object with this number.
    pub fn object(self, number: u64) -> Bytes {
        let object = match self {
            Self::ConfigMap => config_map(number),
            Self::Pod => pod(number),
        };
        object.to_string().into()
    }
}

pub fn name(number: u64) -> String {
    format!("bench-{number:06}")
}

/// A merge patch that says when it was sent.
pub fn patch() -> Bytes {
    json!({"data": {SENT: now()}}).to_string().into()
}

/// The key of the moment at which a write was sent.
pub const SENT: &str = "a-sent";

/// Nanoseconds since 1970, as a text: two processes of one machine compare them.
pub fn now() -> String {
    nanoseconds().to_string()
}

pub fn nanoseconds() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}

fn config_map(number: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name(number), "labels": {"app": "bench"}},
        "data": {SENT: now(), "text": "x".repeat(330)},
    })
}

fn pod(number: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(number),
            "labels": {"app": "bench", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"example.com/revision": "7"},
        },
        "spec": {
            "containers": [{
                "name": "server",
                "image": "registry.example.com/team/server:1.2.3",
                "args": ["--listen", "0.0.0.0:8080"],
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "MODE", "value": "production"}],
                "resources": {
                    "requests": {"cpu": "100m", "memory": "64Mi"},
                    "limits": {"memory": "128Mi"},
                },
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            }],
        },
    })
}
