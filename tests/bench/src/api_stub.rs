//! The Kubernetes API as far as proxies' watches see it, on a loopback port: pages of lists, and a watch of EndpointSlices
//! into which the bench puts events. It runs in the bench, so that its memory is not the agent's.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use serde_json::{Value, json};

/// What the lists hold.
pub trait Objects: Send + Sync {
    /// How many objects of a kind there are, `services` for example.
    fn count(&self, plural: &str) -> u32;
    /// The object with this number, which is less than [`Objects::count`].
    fn object(&self, plural: &str, number: u32) -> Value;
}

/// How many services there are, and what is behind each.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub services: u32,
    /// EndpointSlices of each.
    pub slices: u32,
    /// Endpoints of each EndpointSlice.
    pub endpoints: u32,
}

/// The lists and the watches.
#[derive(Clone)]
pub struct ApiStub {
    objects: Arc<dyn Objects>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Lists that have been handed over to their last page, and when the last one was.
    complete: u32,
    lists_arrived: Option<Instant>,
    slices: Option<mpsc::UnboundedSender<Bytes>>,
    /// Watches in which nothing ever happens.
    silent: Vec<mpsc::UnboundedSender<Bytes>>,
}

/// Services, EndpointSlices, Nodes.
const KINDS: u32 = 3;

impl Shape {
    /// The ClusterIP of a service.
    pub fn cluster_ip(service: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + service)
    }

    /// The address of an endpoint of a slice, the slices counted through all services.
    pub fn endpoint(self, slice: u32, index: u32) -> Ipv4Addr {
        let first = Ipv4Addr::new(10, 128, 0, 1).to_bits();
        Ipv4Addr::from_bits(first + slice * self.endpoints + index)
    }

    fn service(self, number: u32) -> Value {
        json!({
            "metadata": meta(&format!("service-{number}"), number, &json!({"app": "bench"})),
            "spec": {
                "type": "ClusterIP",
                "clusterIP": Self::cluster_ip(number),
                "clusterIPs": [Self::cluster_ip(number)],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "selector": {"app": format!("service-{number}")},
                "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            },
            "status": {"loadBalancer": {}},
        })
    }

    /// A slice; `first` takes its first endpoint's place.
    pub fn slice(self, number: u32, first: Option<Ipv4Addr>) -> Value {
        let service = format!("service-{}", number / self.slices);
        let endpoints: Vec<Value> = (0..self.endpoints)
            .map(|index| {
                let own = self.endpoint(number, index);
                let address = first.filter(|_| index == 0).unwrap_or(own);
                json!({
                    "addresses": [address],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("node-{}", index % 16),
                    "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("{service}-{index}")},
                })
            })
            .collect();
        let labels = json!({"kubernetes.io/service-name": service});
        json!({
            "metadata": meta(&format!("slice-{number}"), number, &labels),
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": endpoints,
        })
    }

    pub fn slice_count(self) -> u32 {
        self.services * self.slices
    }
}

impl Objects for Shape {
    fn count(&self, plural: &str) -> u32 {
        match plural {
            "services" => self.services,
            "endpointslices" => self.slice_count(),
            _ => 0,
        }
    }

    fn object(&self, plural: &str, number: u32) -> Value {
        match plural {
            "services" => self.service(number),
            _ => self.slice(number, None),
        }
    }
}

pub fn meta(name: &str, number: u32, labels: &Value) -> Value {
    json!({
        "name": name,
        "namespace": "bench",
        "uid": format!("{number:08x}-0000-4000-8000-000000000000"),
        "resourceVersion": "1000",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
    })
}

impl ApiStub {
    pub fn new(objects: impl Objects + 'static) -> Self {
        Self {
            objects: Arc::new(objects),
            state: Arc::default(),
        }
    }

    /// A free port of loopback, in the network namespace of the calling thread.
    pub fn listener() -> Result<TcpListener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Serves until the runtime ends; the address.
    pub async fn serve(&self, listener: TcpListener) -> Result<SocketAddr> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        // As kube-apiserver and ours do: else an event waits now and then for the acknowledgement of the one before it.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                eprintln!("TCP_NODELAY: {error}");
            }
        });
        let stub = self.clone();
        let router = axum::Router::new().fallback(move |uri: Uri| {
            let answer = stub.answer(&uri);
            async move { answer }
        });
        tokio::spawn(async { axum::serve(listener, router).await });
        Ok(address)
    }

    /// When the last page of the last list was handed over.
    pub fn lists_arrived(&self) -> Option<Instant> {
        self.state().lists_arrived
    }

    /// An event of the watch of EndpointSlices, as its bytes.
    pub fn modified(slice: &Value) -> Bytes {
        let mut object = slice.clone();
        object["kind"] = "EndpointSlice".into();
        object["apiVersion"] = "discovery.k8s.io/v1".into();
        let event = json!({"type": "MODIFIED", "object": object});
        format!("{event}\n").into()
    }

    /// Puts an event into the watch of EndpointSlices.
    pub fn send(&self, event: Bytes) -> Result<()> {
        let state = self.state();
        let sender = state
            .slices
            .as_ref()
            .context("nobody watches EndpointSlices")?;
        sender.unbounded_send(event).context("the watch has ended")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn answer(&self, uri: &Uri) -> Response {
        let query = uri.query().unwrap_or_default();
        let of = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let plural = uri.path().rsplit('/').next().unwrap_or_default();
        // Not ignored: who asks for them waits for them, and lists when they are refused.
        if of("sendInitialEvents").is_some() {
            return refuse_initial_events();
        }
        if of("watch").is_some() {
            return self.watch(plural == "endpointslices");
        }
        let number = |text: Option<&str>, default| text.map_or(default, |t| t.parse().unwrap_or(0));
        let (first, limit) = (number(of("continue"), 0), number(of("limit"), u32::MAX));
        let page = self.page(plural, first, limit).to_string();
        ([(CONTENT_TYPE, "application/json")], page).into_response()
    }

    fn page(&self, plural: &str, first: u32, limit: u32) -> Value {
        let total = self.objects.count(plural);
        let last = first.saturating_add(limit).min(total);
        let objects = (first..last).map(|number| self.objects.object(plural, number));
        let items: Vec<Value> = objects.collect();
        let mut metadata = json!({"resourceVersion": "1000"});
        if last < total {
            metadata["continue"] = last.to_string().into();
        } else {
            let mut state = self.state();
            state.complete += 1;
            if state.complete == KINDS {
                state.lists_arrived = Some(Instant::now());
            }
        }
        let (api_version, kind) = match plural {
            "services" => ("v1", "ServiceList"),
            "endpointslices" => ("discovery.k8s.io/v1", "EndpointSliceList"),
            "nodes" => ("v1", "NodeList"),
            "servicecidrs" => ("networking.k8s.io/v1", "ServiceCIDRList"),
            _ => ("v1", "List"),
        };
        json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items})
    }

    fn watch(&self, slices: bool) -> Response {
        let (sender, receiver) = mpsc::unbounded();
        let mut state = self.state();
        if slices {
            state.slices = Some(sender);
        } else {
            state.silent.push(sender);
        }
        Body::from_stream(receiver.map(Ok::<_, Infallible>)).into_response()
    }
}

fn refuse_initial_events() -> Response {
    let message = "sendInitialEvents is not served";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
        "message": message, "details": {"causes": [{"field": "sendInitialEvents", "message": message}]}});
    let json = [(CONTENT_TYPE, "application/json")];
    (StatusCode::UNPROCESSABLE_ENTITY, json, status.to_string()).into_response()
}
