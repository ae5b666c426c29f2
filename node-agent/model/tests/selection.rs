//! The selection of endpoints against the rule as kube-proxy publishes it.
//!
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies> and
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#topology-aware-routing>

use std::net::Ipv4Addr;

use node_agent_model::{Here, SliceEndpoint, TrafficPolicy, select};
use proptest::prelude::*;

const HERE: Here<'_> = Here {
    node: "a",
    zone: Some("east"),
};

/// The sentences of the rule, one after the other.
mod rule {
    use super::{SliceEndpoint, TrafficPolicy};

    type Names<'a> = Vec<&'a SliceEndpoint>;

    pub(super) fn chosen<'a>(
        all: &'a [SliceEndpoint],
        policy: TrafficPolicy,
        node: &str,
        zone: Option<&str>,
    ) -> Names<'a> {
        let ready: Names<'_> = all.iter().filter(|e| e.ready).collect();
        let going: Names<'_> = all
            .iter()
            .filter(|e| !e.ready)
            .filter(|e| e.serving && e.terminating)
            .collect();
        match policy {
            // Local endpoints that are ready; else local ones that serve while they terminate.
            TrafficPolicy::Local => {
                let here = |list: Names<'a>| -> Names<'a> {
                    list.into_iter()
                        .filter(|e| e.node.as_deref() == Some(node))
                        .collect()
                };
                match here(ready) {
                    none if none.is_empty() => here(going),
                    some => some,
                }
            }
            // Ready endpoints as far as hints leave them; without any ready one, those that serve while terminating.
            TrafficPolicy::Cluster if ready.is_empty() => going,
            TrafficPolicy::Cluster => hinted(ready, node, zone),
        }
    }

    fn hinted<'a>(ready: Names<'a>, node: &str, zone: Option<&str>) -> Names<'a> {
        let without_node_hint = ready.iter().filter(|e| e.node_hints.is_empty()).count();
        let for_node: Names<'_> = ready
            .iter()
            .copied()
            .filter(|e| e.node_hints.iter().any(|n| n == node))
            .collect();
        if without_node_hint == 0 && !for_node.is_empty() {
            return for_node;
        }
        let without_zone_hint = ready.iter().filter(|e| e.zone_hints.is_empty()).count();
        let mut for_zone: Names<'_> = Vec::new();
        if let Some(zone) = zone {
            for_zone.extend(
                ready
                    .iter()
                    .copied()
                    .filter(|e| e.zone_hints.iter().any(|z| z == zone)),
            );
        }
        if without_zone_hint == 0 && !for_zone.is_empty() {
            return for_zone;
        }
        ready
    }
}

fn endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let hints = |names: [&'static str; 3]| {
        let some = prop::sample::subsequence(names.to_vec(), 0..=2);
        prop_oneof![1 => Just(Vec::new()), 3 => some]
    };
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    let node = prop::option::weighted(0.9, prop::sample::select(vec!["a", "b", "c"]));
    (
        conditions,
        node,
        hints(["a", "b", "c"]),
        hints(["east", "west", "north"]),
    )
        .prop_map(
            |((ready, serving, terminating), node, node_hints, zone_hints)| SliceEndpoint {
                ready,
                serving,
                terminating,
                node: node.map(str::to_owned),
                node_hints: node_hints.into_iter().map(str::to_owned).collect(),
                zone_hints: zone_hints.into_iter().map(str::to_owned).collect(),
                ..SliceEndpoint::at(Ipv4Addr::LOCALHOST.into())
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]
    #[test]
    fn every_client_gets_the_endpoints_that_kube_proxy_would_choose(
        endpoints in prop::collection::vec(endpoint(), 0..6),
        local in any::<bool>(),
        zone in prop::option::weighted(0.8, prop::sample::select(vec!["east", "west"])),
    ) {
        let policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let selection = select(&endpoints, policy, Here { node: "a", zone });
        let chosen: Vec<_> = selection.chosen.iter().map(|index| &endpoints[*index]).collect();
        prop_assert_eq!(&chosen, &rule::chosen(&endpoints, policy, "a", zone));
        let anywhere = !rule::chosen(&endpoints, TrafficPolicy::Cluster, "a", zone).is_empty();
        prop_assert_eq!(selection.elsewhere, chosen.is_empty() && anywhere);
        for index in selection.draining {
            prop_assert!(!selection.chosen.contains(&index));
            let endpoint = &endpoints[index];
            prop_assert!(!endpoint.ready && endpoint.serving && endpoint.terminating);
        }
    }
}

fn on(node: &str, [ready, serving, terminating]: [bool; 3]) -> SliceEndpoint {
    SliceEndpoint {
        ready,
        serving,
        terminating,
        node: Some(node.to_owned()),
        ..SliceEndpoint::at(Ipv4Addr::LOCALHOST.into())
    }
}

const READY: [bool; 3] = [true, true, false];
const GOING: [bool; 3] = [false, true, true];

#[test]
fn a_ready_endpoint_is_preferred_to_one_that_terminates() {
    let selection = select(
        &[on("a", READY), on("a", GOING)],
        TrafficPolicy::Cluster,
        HERE,
    );
    assert_eq!((selection.chosen, selection.draining), (vec![0], vec![1]));
}

#[test]
fn without_a_ready_endpoint_those_that_terminate_but_serve_are_used() {
    let endpoints = [
        on("a", GOING),
        on("a", [false, false, true]),
        on("a", [false; 3]),
    ];
    let selection = select(&endpoints, TrafficPolicy::Cluster, HERE);
    assert_eq!((selection.chosen, selection.draining), (vec![0], vec![]));
}

#[test]
fn an_endpoint_that_serves_but_is_neither_ready_nor_terminating_gets_nothing() {
    let selection = select(
        &[on("a", [false, true, false])],
        TrafficPolicy::Cluster,
        HERE,
    );
    assert_eq!((selection.chosen, selection.elsewhere), (vec![], false));
}

#[test]
fn the_local_policy_sees_only_this_node_and_falls_back_only_there() {
    let endpoints = [on("b", READY), on("a", GOING)];
    assert_eq!(select(&endpoints, TrafficPolicy::Local, HERE).chosen, [1]);
    let elsewhere = Here { node: "c", ..HERE };
    let selection = select(&endpoints, TrafficPolicy::Local, elsewhere);
    assert_eq!((selection.chosen, selection.elsewhere), (vec![], true));
}
