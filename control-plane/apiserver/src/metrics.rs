//! `/metrics`, with the names of kube-apiserver where the meaning is the same.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::{Api, respond};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: String,
}

type Durations = Family<Verb, Histogram, fn() -> Histogram>;

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Durations,
    watches: Gauge,
}

/// Counts one open watch for as long as it lives.
#[derive(Debug)]
pub struct WatchGuard(Gauge);

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<Answered, Counter>::default();
        let durations = Durations::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 14))
        });
        let watches = Gauge::default();
        registry.register(
            "apiserver_request",
            "Requests, by HTTP method and status code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time until the head of the answer, by HTTP method",
            durations.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Open watches",
            watches.clone(),
        );
        Self {
            registry,
            requests,
            durations,
            watches,
        }
    }
}

impl Metrics {
    pub fn count(&self, method: &Method, status: StatusCode, took: Duration) {
        let verb = method.as_str().to_owned();
        let answered = Answered {
            verb: verb.clone(),
            code: status.as_u16(),
        };
        self.requests.get_or_create(&answered).inc();
        self.durations
            .get_or_create(&Verb { verb })
            .observe(took.as_secs_f64());
    }

    pub fn watch(&self) -> WatchGuard {
        self.watches.inc();
        WatchGuard(self.watches.clone())
    }
}

pub async fn show(State(api): State<Api>) -> Response {
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
