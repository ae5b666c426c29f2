//! Metrics that others keep: the kernel in its maps, the kubelet in its counters. Read at each scrape.

use std::fmt;
use std::sync::{Arc, OnceLock};

use node_agent_kubelet::Kubelet;
use node_agent_maps::Maps;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::warn;

/// Drops by reason, and how full the maps are.
#[derive(Debug)]
pub struct Dataplane(pub Maps);

/// What the kubelet did; empty where none runs.
pub struct Pods(pub Arc<OnceLock<Kubelet>>);

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pods")
            .field(&self.0.get().is_some())
            .finish()
    }
}

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(metrics) = self.0.get().map(Kubelet::metrics) else {
            return Ok(());
        };
        let pods = i64::try_from(metrics.pods).unwrap_or(i64::MAX);
        let gauge = encoder.encode_descriptor(
            "fairlead_pods",
            "Pods of this node",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(pods).encode(gauge)?;
        for (name, help, value) in [
            (
                "fairlead_sandboxes_started",
                "Sandboxes made and wired",
                metrics.sandboxes_started,
            ),
            (
                "fairlead_containers_started",
                "Containers started",
                metrics.containers_started,
            ),
            (
                "fairlead_container_restarts",
                "Starts of containers that had run before",
                metrics.container_restarts,
            ),
            (
                "fairlead_sandbox_failures",
                "Sandboxes that could not be made or wired",
                metrics.sandbox_failures,
            ),
            (
                "fairlead_container_failures",
                "Containers that could not be started",
                metrics.container_failures,
            ),
            (
                "fairlead_images_pulled",
                "Images pulled",
                metrics.images_pulled,
            ),
            (
                "fairlead_probes_succeeded",
                "Probes that succeeded",
                metrics.probes_succeeded,
            ),
            (
                "fairlead_probes_failed",
                "Probes that failed",
                metrics.probes_failed,
            ),
            (
                "fairlead_pods_terminated",
                "Pods removed after their deletion",
                metrics.pods_terminated,
            ),
        ] {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(counter)?;
        }
        Ok(())
    }
}

impl Collector for Dataplane {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        match self.0.drops() {
            Ok(drops) => {
                let packets = drops
                    .iter()
                    .map(|(reason, counter)| (reason.label(), counter.packets));
                counters(
                    &mut encoder,
                    "fairlead_drop_packets",
                    "Packets that the programs dropped",
                    packets,
                )?;
                let bytes = drops
                    .iter()
                    .map(|(reason, counter)| (reason.label(), counter.bytes));
                counters(
                    &mut encoder,
                    "fairlead_drop_bytes",
                    "Bytes of these packets",
                    bytes,
                )?;
            }
            Err(error) => warn!(%error, "the drop counters could not be read"),
        }
        match self.0.usage() {
            Ok(usage) => {
                let entries = usage.iter().map(|usage| (usage.map, usage.entries));
                gauges(
                    &mut encoder,
                    "fairlead_map_entries",
                    "Entries of the map",
                    entries,
                )?;
                let capacity = usage.iter().map(|usage| (usage.map, usage.capacity));
                gauges(
                    &mut encoder,
                    "fairlead_map_capacity",
                    "Entries that fit into the map",
                    capacity,
                )?;
            }
            Err(error) => warn!(%error, "the maps could not be counted"),
        }
        Ok(())
    }
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (reason, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&[("reason", reason)])?)?;
    }
    Ok(())
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'a str, u32)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (map, value) in values {
        ConstGauge::new(i64::from(value)).encode(metric.encode_family(&[("map", map)])?)?;
    }
    Ok(())
}
