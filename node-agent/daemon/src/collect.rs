//! Takes connections that are over out of the tables, from time to time.

use std::time::Duration;

use node_agent_maps::{Maps, Timeouts, monotonic_now_ns};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::{debug, warn};

const EVERY: Duration = Duration::from_secs(10);

/// What the collections did.
#[derive(Clone, Debug, Default)]
pub struct CollectMetrics {
    deleted: Counter,
    runs: Counter,
}

impl CollectMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let deleted = metrics.deleted.clone();
        registry.register(
            "conn_expired",
            "Connection entries that were deleted because they were over",
            deleted,
        );
        registry.register(
            "conn_collections",
            "Walks through the connection tables",
            metrics.runs.clone(),
        );
        metrics
    }
}

/// Collects for ever; only to be started once the services are in the maps.
pub async fn run(maps: Maps, metrics: CollectMetrics) {
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let maps = maps.clone();
        let collected = tokio::task::spawn_blocking(move || {
            maps.collect(monotonic_now_ns(), &Timeouts::default())
        })
        .await;
        match collected {
            Ok(Ok(reports)) => {
                metrics.runs.inc();
                let deleted: u64 = reports.iter().map(|report| u64::from(report.deleted)).sum();
                metrics.deleted.inc_by(deleted);
                if deleted > 0 {
                    debug!(deleted, "connections collected");
                }
            }
            Ok(Err(error)) => warn!(%error, "connections could not be collected"),
            Err(error) => warn!(%error, "the collection panicked"),
        }
    }
}
