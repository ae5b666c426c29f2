//! Metrics that others keep: the kernel in its maps, the kubelet in its counters. Read at each scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use ebpf_abi::{Counter, PeerCount};
use node_agent_kubelet::Kubelet;
use node_agent_maps::{MapError, Maps};
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
                    "reason",
                    packets,
                )?;
                let bytes = drops
                    .iter()
                    .map(|(reason, counter)| (reason.label(), counter.bytes));
                counters(
                    &mut encoder,
                    "fairlead_drop_bytes",
                    "Bytes of these packets",
                    "reason",
                    bytes,
                )?;
            }
            Err(error) => warn!(%error, "the drop counters could not be read"),
        }
        match self.peers() {
            Ok(peers) => encode_peers(&mut encoder, &peers)?,
            Err(error) => warn!(%error, "the counters of peers could not be read"),
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

impl Dataplane {
    /// What went to and came from each node. A node that is reached in two ways, by plain routing of both families, is
    /// one.
    fn peers(&self) -> Result<BTreeMap<String, PeerCount>, MapError> {
        let mut peers: BTreeMap<String, PeerCount> = BTreeMap::new();
        for (id, name) in self.0.peer_name.entries()? {
            let count = self.0.peer_count(id)?;
            let node = name.name().trim_end_matches("/ipv6").to_owned();
            let sum = peers.entry(node).or_default();
            for (sum, more) in [
                (&mut sum.sent, count.sent),
                (&mut sum.received, count.received),
                (&mut sum.dropped, count.dropped),
            ] {
                sum.packets += more.packets;
                sum.bytes += more.bytes;
            }
        }
        Ok(peers)
    }
}

fn encode_peers(
    encoder: &mut DescriptorEncoder,
    peers: &BTreeMap<String, PeerCount>,
) -> fmt::Result {
    type Part = fn(&PeerCount) -> Counter;
    let parts: [(&str, &str, Part); 3] = [
        ("sent", "that went to the node", |count| count.sent),
        (
            "received",
            "that came out of the overlay from the node",
            |count| count.received,
        ),
        (
            "dropped",
            "to or from the node that were dropped here",
            |count| count.dropped,
        ),
    ];
    for (name, help, part) in parts {
        for (unit, value) in [
            ("packets", (|counter| counter.packets) as fn(Counter) -> u64),
            ("bytes", |counter| counter.bytes),
        ] {
            counters(
                encoder,
                &format!("fairlead_peer_{name}_{unit}"),
                &format!("Inner {unit} {help}"),
                "peer",
                peers
                    .iter()
                    .map(|(node, count)| (node.as_str(), value(part(count)))),
            )?;
        }
    }
    Ok(())
}

/// One counter for each value of a label.
fn counters<'a>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (text, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&[(label, text)])?)?;
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
