//! What the loop counts.

use std::collections::BTreeMap;
use std::time::Duration;

use ebpf_abi::maps;
use node_agent_model::{FamilyOp, MapOp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::kube_proxy_metrics::KubeProxyMetrics;

/// Our own, and those that kube-proxy has under its names. A clone counts into the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    operations: Family<[(&'static str, &'static str); 1], Counter>,
    pub(crate) sync_duration: Histogram,
    pub(crate) failures: Counter,
    map_failures: Family<[(&'static str, &'static str); 1], Counter>,
    pub(crate) repairs: Counter,
    pub(crate) refused: Gauge,
    pub(crate) services: Gauge,
    pub(crate) endpoint_slices: Gauge,
    pub(crate) kube_proxy: KubeProxyMetrics,
}

impl Metrics {
    /// Registers the metrics: `fairlead_…` and `kubeproxy_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let kube_proxy = KubeProxyMetrics::register(registry.sub_registry_with_prefix("kubeproxy"));
        let registry = registry.sub_registry_with_prefix("fairlead");
        let metrics = Self {
            operations: Family::default(),
            sync_duration: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            failures: Counter::default(),
            map_failures: Family::default(),
            repairs: Counter::default(),
            refused: Gauge::default(),
            services: Gauge::default(),
            endpoint_slices: Gauge::default(),
            kube_proxy,
        };
        for map in RECONCILED {
            let _at_zero = metrics.operations.get_or_create(&[("map", map)]);
            let _at_zero = metrics.map_failures.get_or_create(&[("map", map)]);
        }
        registry.register(
            "map_operations",
            "Operations that the reconciler applied",
            metrics.operations.clone(),
        );
        registry.register(
            "sync_duration_seconds",
            "Time from the first change of a batch until the maps hold it",
            metrics.sync_duration.clone(),
        );
        registry.register(
            "sync_failures",
            "Batches that a map refused",
            metrics.failures.clone(),
        );
        registry.register(
            "map_failures",
            "Writes that the map refused, and objects that were refused because it is full",
            metrics.map_failures.clone(),
        );
        registry.register(
            "repairs",
            "Operations that repaired maps which somebody else changed",
            metrics.repairs.clone(),
        );
        registry.register(
            "refused_objects",
            "Objects that do not fit into the maps",
            metrics.refused.clone(),
        );
        registry.register(
            "services",
            "Services that this node serves",
            metrics.services.clone(),
        );
        registry.register(
            "endpoint_slices",
            "EndpointSlices of them",
            metrics.endpoint_slices.clone(),
        );
        metrics
    }

    pub(crate) fn applied(&self, counts: &OpCounts) {
        for (map, count) in counts {
            let counter = self.operations.get_or_create(&[("map", *map)]);
            counter.inc_by(*count);
        }
    }

    /// A map did not take what it should.
    pub(crate) fn refused_by(&self, map: &'static str) {
        self.map_failures.get_or_create(&[("map", map)]).inc();
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.sync_duration.observe(took.as_secs_f64());
    }
}

/// By the name of the map how many operations there were.
pub(crate) type OpCounts = BTreeMap<&'static str, u64>;

pub(crate) fn count(ops: &[MapOp]) -> OpCounts {
    let mut counts = OpCounts::new();
    for op in ops {
        *counts.entry(map_of(op)).or_default() += 1;
    }
    counts
}

/// The maps that the reconciler owns.
const RECONCILED: [&str; 16] = [
    maps::CONFIG,
    maps::FRONTEND4,
    maps::FRONTEND6,
    maps::SERVICE,
    maps::SERVICE_NAME,
    maps::SLOT,
    maps::RANGE4,
    maps::RANGE6,
    maps::BACKEND4,
    maps::BACKEND6,
    maps::ENDPOINT4,
    maps::ENDPOINT6,
    maps::ROUTE4,
    maps::ROUTE6,
    maps::PEER,
    maps::PEER_NAME,
];

fn map_of(op: &MapOp) -> &'static str {
    match op {
        MapOp::V4(op) => family_map(
            op,
            [
                maps::FRONTEND4,
                maps::RANGE4,
                maps::BACKEND4,
                maps::ENDPOINT4,
                maps::ROUTE4,
            ],
        ),
        MapOp::V6(op) => family_map(
            op,
            [
                maps::FRONTEND6,
                maps::RANGE6,
                maps::BACKEND6,
                maps::ENDPOINT6,
                maps::ROUTE6,
            ],
        ),
        MapOp::Config(_) => maps::CONFIG,
        MapOp::Slots { .. } => maps::SLOT,
        MapOp::Service { .. } => maps::SERVICE,
        MapOp::ServiceName { .. } => maps::SERVICE_NAME,
        MapOp::Peer { .. } => maps::PEER,
        MapOp::PeerName { .. } => maps::PEER_NAME,
    }
}

fn family_map<A>(
    op: &FamilyOp<A>,
    [frontend, range, backend, endpoint, route]: [&'static str; 5],
) -> &'static str {
    match op {
        FamilyOp::Frontend { .. } => frontend,
        FamilyOp::Range { .. } => range,
        FamilyOp::Backend { .. } => backend,
        FamilyOp::Endpoint { .. } => endpoint,
        FamilyOp::Route { .. } => route,
    }
}
