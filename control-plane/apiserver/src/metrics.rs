//! `/metrics`, under kube-apiserver's names where the meaning is the same.
//!
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use control_plane_registry::Kind;
use http::{HeaderValue, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::attributes::Attributes;
use crate::flow::FlowMetrics;
use crate::spans::Tracing;
use crate::{Api, respond};

/// What a request is about; only words of the tables, so that no client can make up series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct About {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Inflight {
    request_kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stored {
    group: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreRequest {
    operation: &'static str,
    group: &'static str,
    resource: &'static str,
}

type StoreDurations = Family<StoreRequest, Histogram, fn() -> Histogram>;
type Durations = Family<About, Histogram, fn() -> Histogram>;

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Durations,
    reading: Gauge,
    writing: Gauge,
    lasting: Family<About, Gauge>,
    watch_events: Family<Resource, Counter>,
    objects: Family<Stored, Gauge>,
    store: StoreDurations,
    pub flow: FlowMetrics,
}

/// A request that is worked on; counted as such until it ends or is given up.
pub struct Running<'a> {
    metrics: &'a Metrics,
    about: About,
    gauge: Option<&'a Gauge>,
}

/// Counts one open watch for as long as it lives, and its events.
#[derive(Debug)]
pub struct WatchGuard {
    open: Gauge,
    events: Counter,
}

impl WatchGuard {
    /// So many events went to the watcher.
    pub fn sent(&self, events: usize) {
        self.events.inc_by(events as u64);
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge {
            gauge.dec();
        }
    }
}

impl Running<'_> {
    /// The head of the answer is there.
    pub fn end(self, status: StatusCode, took: Duration) {
        let about = &self.about;
        let answered = Answered {
            verb: about.verb,
            group: about.group,
            version: about.version,
            resource: about.resource,
            subresource: about.subresource,
            scope: about.scope,
            component: about.component,
            code: status.as_u16(),
        };
        let metrics = self.metrics;
        metrics.requests.get_or_create(&answered).inc();
        let durations = metrics.durations.get_or_create(about);
        durations.observe(took.as_secs_f64());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let inflight = Family::<Inflight, Gauge>::default();
        let of = |request_kind| inflight.get_or_create(&Inflight { request_kind }).clone();
        let (reading, writing) = (of("readOnly"), of("mutating"));
        let flow = FlowMetrics::new(&mut registry);
        let metrics = Self {
            requests: Family::default(),
            durations: Durations::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 14))
            }),
            reading,
            writing,
            lasting: Family::default(),
            watch_events: Family::default(),
            objects: Family::default(),
            store: StoreDurations::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 14))
            }),
            flow,
            registry,
        };
        metrics.registered(inflight)
    }
}

impl Metrics {
    fn registered(mut self, inflight: Family<Inflight, Gauge>) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "apiserver_request",
            "Answered requests, by what they are about and status code",
            self.requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time until the head of the answer, by what is asked",
            self.durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests that are worked on and are not long-running",
            inflight,
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Open watches",
            self.lasting.clone(),
        );
        registry.register(
            "apiserver_watch_events",
            "Events sent to watchers, by resource",
            self.watch_events.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Objects that are stored, by resource",
            self.objects.clone(),
        );
        registry.register(
            "etcd_request_duration_seconds",
            "Time that the store takes, whatever it is, by operation and resource",
            self.store.clone(),
        );
        self
    }

    /// A request begins.
    pub fn begin(&self, attributes: &Attributes) -> Running<'_> {
        let gauge = match (attributes.long_running(), attributes.mutates()) {
            (true, _) => None,
            (false, true) => Some(&self.writing),
            (false, false) => Some(&self.reading),
        };
        if let Some(gauge) = gauge {
            gauge.inc();
        }
        Running {
            metrics: self,
            about: About::of(attributes),
            gauge,
        }
    }

    /// Measures every request of `registry` to its store from now on, and tells those of traced requests.
    pub fn follow_store(
        &self,
        registry: &control_plane_registry::Registry,
        tracing: Option<Tracing>,
    ) {
        let durations = self.store.clone();
        registry.observe_store(move |operation, kind, took| {
            if let Some(tracing) = &tracing {
                tracing.stored(operation, kind, took);
            }
            let request = StoreRequest {
                operation,
                group: kind.group,
                resource: kind.plural,
            };
            durations
                .get_or_create(&request)
                .observe(took.as_secs_f64());
        });
    }

    /// A watch is open.
    pub fn watch(&self, kind: &'static Kind, one_namespace: bool) -> WatchGuard {
        let about = About {
            verb: "WATCH",
            group: kind.group,
            version: kind.version,
            resource: kind.plural,
            subresource: "",
            scope: if one_namespace {
                "namespace"
            } else {
                "cluster"
            },
            component: "apiserver",
        };
        let resource = Resource {
            group: kind.group,
            version: kind.version,
            resource: kind.plural,
        };
        let open = self.lasting.get_or_create(&about).clone();
        open.inc();
        WatchGuard {
            open,
            events: self.watch_events.get_or_create(&resource).clone(),
        }
    }
}

impl About {
    fn of(attributes: &Attributes) -> Self {
        let kind = attributes.kind();
        Self {
            verb: reported(attributes.verb),
            group: kind.map_or("", |k| k.group),
            version: kind.map_or("", |k| k.version),
            resource: kind.map_or("", |k| k.plural),
            subresource: attributes.subresource(),
            scope: attributes.scope(),
            component: "apiserver",
        }
    }
}

/// The verb as Kubernetes' metrics write it.
fn reported(verb: &'static str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "head" => "HEAD",
        "options" => "OPTIONS",
        _ => "OTHER",
    }
}

pub async fn show(State(api): State<Api>) -> Response {
    for kind in api.registry.kinds().all().filter(|k| k.is_stored()) {
        let stored = Stored {
            group: kind.group,
            resource: kind.plural,
        };
        let count = api.registry.count(kind, "");
        let gauge = api.metrics.objects.get_or_create(&stored);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let mut text = String::new();
    match encode(&mut text, &api.metrics.registry) {
        Ok(()) => {
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            let content_type = HeaderValue::from_static(open_metrics);
            respond::with_type(StatusCode::OK, content_type, text.into())
        }
        Err(error) => respond::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
