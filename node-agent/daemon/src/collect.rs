//! Takes connections that are over out of the tables, from time to time, and tells when a table has refused some.

use std::time::Duration;

use ebpf_abi::DropReason;
use node_agent_maps::{Maps, Timeouts, monotonic_now_ns};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::{debug, warn};

use crate::events::Recorder;

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
            "Connections that were deleted because they were over",
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
pub async fn run(maps: Maps, metrics: CollectMetrics, recorder: Recorder) {
    let mut refusals = Refusals::default();
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        refusals.tell(&maps, &recorder);
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

/// Connections that were refused because no more fit.
#[derive(Debug, Default)]
struct Refusals {
    /// Packets counted so far; `None` before the first look, which an earlier agent's refusals may precede.
    packets: Option<u64>,
    /// While refusals go on they are told once.
    told: bool,
}

impl Refusals {
    fn tell(&mut self, maps: &Maps, recorder: &Recorder) {
        let drops = match maps.drops() {
            Ok(drops) => drops,
            Err(error) => return warn!(%error, "the drops could not be read"),
        };
        let full = drops
            .iter()
            .find(|(reason, _)| *reason == DropReason::ConnTableFull);
        let packets = full.map_or(0, |(_, counter)| counter.packets);
        if self.is_news(packets) {
            let capacities = [maps.v4.conns.capacity(), maps.v6.conns.capacity()];
            recorder.warn("ConnTableFull", message(capacities));
        }
    }

    /// Whether refusals began since the last look.
    fn is_news(&mut self, packets: u64) -> bool {
        let grew = self.packets.is_some_and(|before| packets > before);
        let news = grew && !self.told;
        (self.packets, self.told) = (Some(packets), grew);
        news
    }
}

fn message([v4, v6]: [u32; 2]) -> String {
    format!(
        "new connections are refused: as many as the tables hold are established ({v4} of IPv4, {v6} of IPv6); \
         the old ones go on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_when_they_begin_and_again_after_a_pause() {
        let mut refusals = Refusals::default();
        let news = [7, 7, 9, 12, 12, 13].map(|packets| refusals.is_news(packets));
        assert_eq!(news, [false, false, true, false, false, true]);
    }
}
