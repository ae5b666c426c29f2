//! Living connections by Service, counted in the maps at each scrape: those that programs translate packet by packet, and
//! those that were translated when a socket connected.

use std::collections::BTreeMap;
use std::fmt;

use ebpf_abi::{FrontendKey, conn_flag};
use node_agent_maps::{FamilyMaps, MapError, MapFamily, Maps};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::warn;

/// Services with a series of their own: those with the most connections. Else a cluster of 30,000 Services would have
/// as many series on each node.
const SHOWN: usize = 100;
/// All others, and connections whose Service is gone; no Service has such a name.
const OTHERS: &str = "(others)";
const TCP: u8 = 6;

/// Namespace and name.
type Name = (String, String);

/// The metric `fairlead_service_connections`.
#[derive(Debug)]
pub struct Connections(pub Maps);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = match by_service(&self.0) {
            Ok(counts) => shown(counts),
            Err(error) => {
                warn!(%error, "the connections could not be counted");
                return Ok(());
            }
        };
        let mut metric = encoder.encode_descriptor(
            "fairlead_service_connections",
            "Connections of the Service that the maps hold; the hundred Services with the most, and all others together",
            None,
            MetricType::Gauge,
        )?;
        for ((namespace, service), count) in counts {
            let labels = [("namespace", namespace), ("service", service)];
            ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Those with the most, and the sum of the rest.
fn shown(counts: BTreeMap<Name, i64>) -> Vec<(Name, i64)> {
    let nameless = (String::new(), OTHERS.to_owned());
    let (mut rest, mut named): (Vec<_>, Vec<_>) =
        counts.into_iter().partition(|(name, _)| *name == nameless);
    // The names decide between equals, so that a scrape is like the one before.
    named.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    rest.extend(named.split_off(named.len().min(SHOWN)));
    if !rest.is_empty() {
        named.push((nameless, rest.iter().map(|(_, count)| count).sum()));
    }
    named
}

fn by_service(maps: &Maps) -> Result<BTreeMap<Name, i64>, MapError> {
    let mut counts = BTreeMap::new();
    add(maps, &maps.v4, &mut counts)?;
    add(maps, &maps.v6, &mut counts)?;
    Ok(counts)
}

fn add<A: MapFamily + Ord>(
    maps: &Maps,
    of_family: &FamilyMaps<A>,
    counts: &mut BTreeMap<Name, i64>,
) -> Result<(), MapError> {
    for (key, count) in by_frontend(of_family)? {
        *counts.entry(name(maps, of_family, &key)?).or_default() += count;
    }
    Ok(())
}

/// By the address that the clients asked for.
fn by_frontend<A: MapFamily + Ord>(
    maps: &FamilyMaps<A>,
) -> Result<BTreeMap<FrontendKey<A>, i64>, MapError> {
    let mut counts = BTreeMap::new();
    let mut count = |addr: A, port_be: u16, protocol: u8| {
        let key = FrontendKey {
            addr,
            port_be,
            protocol,
            pad: 0,
        };
        *counts.entry(key).or_default() += 1;
    };
    for conn in maps.conns.entries() {
        if conn.flags & conn_flag::SERVICE != 0 {
            let asked = conn.original;
            count(asked.dst, asked.dst_port_be, asked.protocol);
        }
    }
    maps.socket
        .for_each(|_, origin| count(origin.frontend_addr, origin.frontend_port_be, TCP))?;
    Ok(counts)
}

/// Of the Service behind a frontend.
fn name<A: MapFamily>(
    maps: &Maps,
    of_family: &FamilyMaps<A>,
    key: &FrontendKey<A>,
) -> Result<Name, MapError> {
    let frontend = of_family.frontend.get(key)?;
    // A service whose clients outside have no backend may have a name only for those inside.
    for id in frontend
        .into_iter()
        .flat_map(|frontend| [frontend.service_id, frontend.inside_id])
    {
        if let Some(name) = maps.service_name.get(&id)? {
            return Ok((name.namespace().to_owned(), name.name().to_owned()));
        }
    }
    Ok((String::new(), OTHERS.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hundred_with_the_most_connections_are_named_and_the_rest_is_one_number() {
        let name = |number: i64| ("shop".to_owned(), format!("s{number:03}"));
        let mut counts: BTreeMap<Name, i64> =
            (0..150).map(|number| (name(number), number)).collect();
        counts.insert((String::new(), OTHERS.to_owned()), 7);
        let shown = shown(counts);
        assert_eq!(shown.len(), SHOWN + 1);
        assert_eq!(shown[0], (name(149), 149));
        assert_eq!(shown[SHOWN - 1], (name(50), 50));
        let rest: i64 = (0..50).sum();
        assert_eq!(shown[SHOWN].1, rest + 7);
    }

    #[test]
    fn few_services_leave_no_others() {
        let counts = BTreeMap::from([(("a".to_owned(), "b".to_owned()), 1)]);
        assert_eq!(shown(counts).len(), 1);
        assert!(shown(BTreeMap::new()).is_empty());
    }
}
