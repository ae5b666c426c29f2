//! A proxy between agents and the API server: it does to requests what networks and servers in trouble do, and remembers
//! what was asked.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_testkit::{Machine, Underlay};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, watch};

use crate::tls::{Identity, TlsListener};
use crate::{Api, runtime_in};

/// The machine's number on the underlay.
const NUMBER: u8 = 251;
const PORT: u16 = 8443;

/// What becomes of requests while it lasts.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// They are answered with this status, and with seconds after which to ask again if there are any.
    Refuse {
        status: u16,
        retry_after: Option<u32>,
    },
    /// They are taken and never answered; watches that are open say nothing.
    Silence,
    /// Watches end as soon as they begin; all else is answered.
    ShortWatches,
    /// Answers are no JSON.
    Garbage,
    /// Objects have fields that nobody knows.
    UnknownFields,
}

/// What becomes of the watches that are open now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disturbance {
    /// They end as they should.
    Close,
    /// The next event comes by half, then the connection breaks.
    Cut,
    /// The next event is lost, and something comes in its place that cannot be read.
    Garble,
    /// Their resourceVersion is too old: `410 Gone` as an event.
    Expire,
}

/// A request that came by.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub method: Method,
    pub path: String,
    pub query: String,
    /// Of `Authorization: Bearer`.
    pub token: Option<String>,
}

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    machine: Machine,
    shared: Arc<Shared>,
    /// Its threads live in the machine's network namespace.
    runtime: Option<Runtime>,
    identity: Option<Identity>,
    directory: TempDir,
}

struct Shared {
    /// Of the API server.
    client: Client,
    trouble: watch::Sender<Option<Trouble>>,
    disturbance: broadcast::Sender<Disturbance>,
    seen: Mutex<Vec<Seen>>,
}

impl Proxy {
    /// Starts one that speaks HTTP.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start(underlay: &Underlay, api: &Api) -> Result<Self> {
        Self::new(underlay, api, false)
    }

    /// Starts one that speaks HTTPS, with a certificate of an authority of its own.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start_tls(underlay: &Underlay, api: &Api) -> Result<Self> {
        Self::new(underlay, api, true)
    }

    fn new(underlay: &Underlay, api: &Api, tls: bool) -> Result<Self> {
        let machine = underlay.machine(NUMBER)?;
        let runtime = runtime_in(&machine.netns)?;
        let identity = match tls {
            true => Some(Identity::new([machine.ipv4.into(), machine.ipv6.into()])?),
            false => None,
        };
        let config = api.config()?;
        let client = runtime.block_on(runtime.spawn(async { Client::try_from(config) }))??;
        let shared = Arc::new(Shared {
            client,
            trouble: watch::Sender::new(None),
            disturbance: broadcast::Sender::new(16),
            seen: Mutex::default(),
        });
        let app = Router::new().fallback(forward).with_state(shared.clone());
        let acceptor = identity.as_ref().map(Identity::acceptor).transpose()?;
        let serving = async move {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => axum::serve(TlsListener::new(listener, acceptor), app).await,
                    None => axum::serve(listener, app).await,
                }
            });
            anyhow::Ok(())
        };
        runtime.block_on(runtime.spawn(serving))??;
        Ok(Self {
            machine,
            shared,
            runtime: Some(runtime),
            identity,
            directory: tempfile::tempdir().context("make a temporary folder")?,
        })
    }

    fn url(&self) -> String {
        let scheme = if self.identity.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}:{PORT}", self.machine.ipv4)
    }

    /// The agent's flag that leads here.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--server={}", self.url())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.machine.ipv4.into(), PORT)
    }

    /// A kubeconfig file that leads here, with this bearer token.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn kubeconfig(&self, token: &str) -> Result<String> {
        let cluster = match &self.identity {
            Some(identity) => {
                let authority = self.directory.path().join("ca.crt");
                std::fs::write(&authority, identity.authority())?;
                json!({"server": self.url(), "certificate-authority": authority})
            }
            None => json!({"server": self.url()}),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "agent"}}],
        });
        let path = self.directory.path().join("kubeconfig");
        std::fs::write(&path, config.to_string())?;
        Ok(path.display().to_string())
    }

    /// The certificate of its authority, in PEM; empty without TLS.
    #[must_use]
    pub fn authority(&self) -> String {
        self.identity
            .as_ref()
            .map(Identity::authority)
            .unwrap_or_default()
    }

    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// From now on; `None` ends it.
    pub fn trouble(&self, trouble: impl Into<Option<Trouble>>) {
        self.shared.trouble.send_replace(trouble.into());
    }

    /// How many watches are open.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.shared.disturbance.receiver_count()
    }

    /// Disturbs the watches that are open.
    pub fn disturb(&self, disturbance: Disturbance) {
        // Nobody hears it if none is.
        let _ = self.shared.disturbance.send(disturbance);
    }

    /// What came by since the last call.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seen {
    /// A watch, and no list.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query
            .split('&')
            .any(|word| matches!(word, "watch=true" | "watch=1"))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("trouble", &self.trouble)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the API server answers; `502` as a proxy says it if it does not.
    async fn ask(&self, mut request: Request) -> Response {
        // The server behind gave out none of these tokens: it would refuse who shows one.
        request.headers_mut().remove(AUTHORIZATION);
        let (parts, body) = request.into_parts();
        let sent = async {
            let body = axum::body::to_bytes(body, usize::MAX).await?;
            let request = Request::from_parts(parts, body.into());
            anyhow::Ok(self.client.send(request).await?)
        };
        match sent.await {
            Ok(response) => response.map(Body::new),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let seen = seen(&request);
    let is_watch = seen.is_watch();
    shared.seen().push(seen);
    let trouble = shared.trouble.borrow().clone();
    match trouble {
        Some(Trouble::Refuse {
            status,
            retry_after,
        }) => return refuse(status, retry_after),
        Some(Trouble::Silence) => std::future::pending().await,
        Some(Trouble::ShortWatches) if is_watch => return Body::empty().into_response(),
        Some(Trouble::Garbage) => return "<html>this is no API server</html>\n".into_response(),
        Some(Trouble::ShortWatches | Trouble::UnknownFields) | None => {}
    }
    let embellished = trouble == Some(Trouble::UnknownFields);
    let response = shared.ask(request).await;
    if is_watch {
        let (disturbance, silence) = (shared.disturbance.subscribe(), shared.trouble.subscribe());
        return response.map(|body| {
            let watching = Watching {
                events: body.into_data_stream(),
                disturbance,
                silence,
                next: None,
                over: false,
                embellished,
            };
            Body::from_stream(watching.into_stream())
        });
    }
    match embellished {
        true => embellish_whole(response).await,
        false => response,
    }
}

fn seen(request: &Request) -> Seen {
    let bearer = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    Seen {
        at: Instant::now(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        token: bearer
            .and_then(|text| text.strip_prefix("Bearer "))
            .map(str::to_owned),
    }
}

fn refuse(status: u16, retry_after: Option<u32>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status.as_u16(),
        "message": "not now", "reason": "Trouble"});
    let mut response = (status, body.to_string()).into_response();
    if let Some(seconds) = retry_after {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer to a watch. Our API server sends whole lines.
struct Watching {
    events: BodyDataStream,
    disturbance: broadcast::Receiver<Disturbance>,
    silence: watch::Receiver<Option<Trouble>>,
    /// For the next event.
    next: Option<Disturbance>,
    over: bool,
    embellished: bool,
}

impl Watching {
    fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> {
        stream::unfold(self, async |mut watching| {
            let item = watching.next().await?;
            Some((item, watching))
        })
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        while !self.over {
            tokio::select! {
                disturbance = self.disturbance.recv() => match disturbance {
                    Ok(Disturbance::Expire) => {
                        self.over = true;
                        return Some(Ok(gone()));
                    }
                    Ok(disturbance @ (Disturbance::Cut | Disturbance::Garble)) => self.next = Some(disturbance),
                    Ok(Disturbance::Close) | Err(_) => self.over = true,
                },
                event = self.events.next() => {
                    let event = event?.map_err(std::io::Error::other);
                    // The sender lives as long as the proxy.
                    let _ = self.silence.wait_for(|trouble| *trouble != Some(Trouble::Silence)).await;
                    return Some(event.and_then(|event| self.disturbed(event)));
                }
            }
        }
        match self.next.take() {
            Some(Disturbance::Cut) => Some(Err(std::io::Error::other("cut"))),
            _ => None,
        }
    }

    fn disturbed(&mut self, event: Bytes) -> std::io::Result<Bytes> {
        match self.next {
            Some(Disturbance::Cut) => {
                self.over = true;
                Ok(event.slice(..event.len() / 2))
            }
            Some(Disturbance::Garble) => {
                self.next = None;
                Ok(Bytes::from_static(
                    b"{\"type\":\"MODIFIED\",\"object\":{\"metadata\":17}}\n",
                ))
            }
            _ if self.embellished => embellish_lines(&event),
            _ => Ok(event),
        }
    }
}

fn gone() -> Bytes {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410,
        "message": "too old resource version", "reason": "Expired"});
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))
}

async fn embellish_whole(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => body,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    parts.headers.remove(CONTENT_LENGTH);
    match embellish_lines(&body) {
        Ok(body) => Response::from_parts(parts, Body::from(body)),
        // Not every answer is JSON.
        Err(_) => Response::from_parts(parts, Body::from(body)),
    }
}

fn embellish_lines(text: &[u8]) -> std::io::Result<Bytes> {
    let mut out = Vec::new();
    for line in text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let mut value: Value = serde_json::from_slice(line)?;
        embellish(&mut value);
        out.extend(value.to_string().into_bytes());
        out.push(b'\n');
    }
    Ok(out.into())
}

/// Adds a field to every object that is no map of strings.
fn embellish(value: &mut Value) {
    const MAPS: [&str; 6] = [
        "labels",
        "annotations",
        "selector",
        "matchLabels",
        "capacity",
        "allocatable",
    ];
    match value {
        Value::Object(fields) => {
            let inner = fields
                .iter_mut()
                .filter(|(name, _)| !MAPS.contains(&name.as_str()));
            inner.for_each(|(_, value)| embellish(value));
            fields.insert(
                "ofALaterVersion".to_owned(),
                json!({"mode": "Unheard", "list": [1, null]}),
            );
        }
        Value::Array(items) => items.iter_mut().for_each(embellish),
        _ => {}
    }
}
