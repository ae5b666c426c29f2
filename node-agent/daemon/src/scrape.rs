//! Metrics that the kernel keeps: read from the maps at each scrape.

use std::fmt;

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
