//! Metrics that mean what kube-proxy's of the same name mean, so that its dashboards and alerts go on.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use node_agent_model::Change;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug)]
pub(crate) struct KubeProxyMetrics {
    network_programming: Histogram,
    sync_duration: Histogram,
    last_sync: Seconds,
    last_queued: Seconds,
    service_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
}

/// Which counter a change belongs to; changes of the host and of Nodes have none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Counted {
    Service,
    Endpoints,
    Not,
}

/// Changes that are not in the maps yet.
#[derive(Debug)]
pub(crate) struct Pending {
    services: i64,
    endpoints: i64,
    triggers: Vec<SystemTime>,
    /// What was triggered before this process ran says nothing about how fast it is.
    started: SystemTime,
}

impl Counted {
    pub(crate) fn of(change: &Change) -> Self {
        match change {
            Change::Service(..) => Self::Service,
            Change::EndpointSlice(..) => Self::Endpoints,
            _ => Self::Not,
        }
    }
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self {
            services: 0,
            endpoints: 0,
            triggers: Vec::new(),
            started: SystemTime::now(),
        }
    }

    pub(crate) fn add(&mut self, counted: Counted, triggered_at: Option<SystemTime>) {
        match counted {
            Counted::Service => self.services += 1,
            Counted::Endpoints => self.endpoints += 1,
            Counted::Not => {}
        }
        let started = self.started;
        self.triggers
            .extend(triggered_at.filter(|trigger| *trigger > started));
    }

    pub(crate) fn clear(&mut self) {
        (self.services, self.endpoints) = (0, 0);
        self.triggers.clear();
    }
}

impl KubeProxyMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            // In seconds: quarters to half a second, then whole ones to a minute, then coarser to five minutes.
            network_programming: Histogram::new(
                linear_buckets(0.25, 0.25, 2)
                    .chain(linear_buckets(1.0, 1.0, 59))
                    .chain(linear_buckets(60.0, 5.0, 12))
                    .chain(linear_buckets(120.0, 30.0, 7)),
            ),
            sync_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
        };
        registry.register(
            "network_programming_duration_seconds",
            "Time from the change of a Pod or Service until the maps hold it, by the trigger time of EndpointSlices",
            metrics.network_programming.clone(),
        );
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "Time that one pass took: planning and writing to the maps",
            metrics.sync_duration.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the maps last held everything that was known",
            metrics.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change came",
            metrics.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services",
            metrics.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not in the maps yet",
            metrics.service_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices",
            metrics.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that are not in the maps yet",
            metrics.endpoint_changes_pending.clone(),
        );
        metrics
    }

    /// A change was taken in.
    pub(crate) fn queued(&self, counted: Counted, pending: &Pending) {
        match counted {
            Counted::Service => self.service_changes.inc(),
            Counted::Endpoints => self.endpoint_changes.inc(),
            Counted::Not => return,
        };
        self.last_queued.set(now());
        self.service_changes_pending.set(pending.services);
        self.endpoint_changes_pending.set(pending.endpoints);
    }

    /// A pass was made, whether it succeeded or not.
    pub(crate) fn passed(&self, took: Duration) {
        self.sync_duration.observe(took.as_secs_f64());
    }

    /// The maps hold all that was pending.
    pub(crate) fn synced(&self, pending: &Pending) {
        self.last_sync.set(now());
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
        for trigger in &pending.triggers {
            // The control plane's clock may be ahead of ours.
            let took = trigger.elapsed().unwrap_or_default();
            self.network_programming.observe(took.as_secs_f64());
        }
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
