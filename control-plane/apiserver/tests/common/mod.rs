//! The API over a real store, asked without a network between.
#![allow(dead_code, reason = "every test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use control_plane_apiserver::Settings;
use control_plane_registry::{Options, Registry};
use control_plane_store::{EmbeddedStore, embedded};
use futures::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::ServiceExt;

pub struct Server {
    app: Router,
    pub registry: Registry,
    pub stop: watch::Sender<bool>,
    _dir: TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |v| v.to_str().expect("ASCII"))
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub async fn start_with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("store.redb");
        let store = EmbeddedStore::open(path, embedded::Options::default()).expect("a store");
        let registry = Registry::open(Arc::new(store), Options::default())
            .await
            .expect("a registry");
        let (stop, stopping) = watch::channel(false);
        Self {
            app: control_plane_apiserver::app_with(registry.clone(), settings, stopping),
            registry,
            stop,
            _dir: dir,
        }
    }

    /// Serves connections too, on a port of loopback; the task ends when the server is told to stop and all requests
    /// are answered.
    pub async fn listen(&self) -> (SocketAddr, JoinHandle<std::io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving =
            control_plane_apiserver::serve(listener, self.app.clone(), self.stop.subscribe());
        (address, tokio::spawn(serving))
    }

    pub async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).expect("a request");
        self.app.clone().oneshot(request).await.expect("an answer")
    }

    pub async fn ask(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let response = self.send(method, uri, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .expect("a body");
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_vec(),
        }
    }

    pub async fn get(&self, uri: &str) -> Answer {
        self.ask(Method::GET, uri, &[], Body::empty()).await
    }

    pub async fn post(&self, uri: &str, body: Value) -> Answer {
        self.ask(Method::POST, uri, &[], body.to_string()).await
    }

    pub async fn delete(&self, uri: &str) -> Answer {
        self.ask(Method::DELETE, uri, &[], Body::empty()).await
    }

    /// Opens a watch.
    pub async fn watch(&self, uri: &str, headers: &[(&str, &str)]) -> Lines {
        let response = self.send(Method::GET, uri, headers, Body::empty()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines {
            body: response.into_body().into_data_stream(),
            read: Vec::new(),
        }
    }
}

/// The lines of a watch.
pub struct Lines {
    body: axum::body::BodyDataStream,
    read: Vec<u8>,
}

impl Lines {
    /// The next line as JSON; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            let wait = std::time::Duration::from_secs(5);
            let chunk = tokio::time::timeout(wait, self.body.next()).await;
            let chunk = chunk.expect("something within five seconds")?;
            self.read.extend_from_slice(&chunk.expect("a chunk"));
        }
    }
}
