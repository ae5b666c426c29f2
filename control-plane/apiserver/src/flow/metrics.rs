//! Flow control in numbers, under Kubernetes' names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::queues::Limits;
use super::rules::Schema;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    priority_level: Arc<str>,
    flow_schema: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    priority_level: Arc<str>,
    flow_schema: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Level {
    priority_level: Arc<str>,
}

type Waits = Family<Of, Histogram, fn() -> Histogram>;

/// What is counted of queues and seats.
#[derive(Clone, Debug)]
pub struct FlowMetrics {
    dispatched: Family<Of, Counter>,
    rejected: Family<Rejection, Counter>,
    waiting: Family<Of, Gauge>,
    waits: Waits,
    executing: Family<Level, Gauge>,
    nominal: Family<Level, Gauge>,
}

/// Takes away from a gauge, when dropped, what it has put there.
#[derive(Debug)]
pub struct Running(Gauge, i64);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec_by(self.1);
    }
}

impl FlowMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            dispatched: Family::default(),
            rejected: Family::default(),
            waiting: Family::default(),
            waits: Waits::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 3.0, 10))
            }),
            executing: Family::default(),
            nominal: Family::default(),
        };
        registry.register(
            "apiserver_flowcontrol_dispatched_requests",
            "Requests that got their seats, by level and schema",
            metrics.dispatched.clone(),
        );
        registry.register(
            "apiserver_flowcontrol_rejected_requests",
            "Requests that were told to come back, by level, schema and reason",
            metrics.rejected.clone(),
        );
        registry.register(
            "apiserver_flowcontrol_current_inqueue_requests",
            "Requests that wait for seats, by level and schema",
            metrics.waiting.clone(),
        );
        registry.register(
            "apiserver_flowcontrol_request_wait_duration_seconds",
            "Time in a queue of those that came out with a seat, by level and schema",
            metrics.waits.clone(),
        );
        registry.register(
            "apiserver_flowcontrol_current_executing_seats",
            "Seats that are taken, by level",
            metrics.executing.clone(),
        );
        registry.register(
            "apiserver_flowcontrol_nominal_limit_seats",
            "Seats of each level",
            metrics.nominal.clone(),
        );
        metrics
    }

    pub fn dispatched(&self, schema: &Schema) {
        self.dispatched.get_or_create(&of(schema)).inc();
    }

    pub fn rejected(&self, schema: &Schema, reason: &'static str) {
        let label = Rejection {
            priority_level: schema.level.clone(),
            flow_schema: schema.name.clone(),
            reason,
        };
        self.rejected.get_or_create(&label).inc();
    }

    /// Counts one who waits, for as long as the answer lives.
    pub fn waiting(&self, schema: &Schema) -> Running {
        let gauge = self.waiting.get_or_create(&of(schema)).clone();
        gauge.inc();
        Running(gauge, 1)
    }

    pub fn waited(&self, schema: &Schema, time: Duration) {
        let waits = self.waits.get_or_create(&of(schema));
        waits.observe(time.as_secs_f64());
    }

    /// Counts seats as taken, for as long as the answer lives.
    pub fn running(&self, level: &Arc<str>, seats: u32) -> Running {
        let label = Level {
            priority_level: level.clone(),
        };
        let gauge = self.executing.get_or_create(&label).clone();
        gauge.inc_by(i64::from(seats));
        Running(gauge, i64::from(seats))
    }

    pub fn limits(&self, limits: &BTreeMap<Arc<str>, Limits>) {
        self.nominal.clear();
        for (level, limits) in limits {
            let label = Level {
                priority_level: level.clone(),
            };
            let gauge = self.nominal.get_or_create(&label);
            gauge.set(i64::from(limits.nominal));
        }
    }
}

fn of(schema: &Schema) -> Of {
    Of {
        priority_level: schema.level.clone(),
        flow_schema: schema.name.clone(),
    }
}
