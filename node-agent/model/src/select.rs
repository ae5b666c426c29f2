//! Which endpoints of a Service get its connections: kube-proxy's algorithm (pkg/proxy/topology.go).

use crate::{SliceEndpoint, TrafficPolicy};

/// Outcome of [`select`], as indices into the endpoints given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// Take new connections.
    pub chosen: Vec<usize>,
    /// Terminating but serving, and not chosen: established connections go on, new ones do not come.
    pub draining: Vec<usize>,
}

/// The ready endpoints; if there is none, those that terminate but still serve. With the policy `Local` only those of
/// `node` count at all.
pub fn select(endpoints: &[SliceEndpoint], policy: TrafficPolicy, node: &str) -> Selection {
    let eligible = |endpoint: &SliceEndpoint| match policy {
        TrafficPolicy::Cluster => true,
        TrafficPolicy::Local => endpoint.node.as_deref() == Some(node),
    };
    let indices = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<usize> {
        endpoints
            .iter()
            .enumerate()
            .filter(|(_, e)| eligible(e) && wanted(e))
            .map(|(index, _)| index)
            .collect()
    };
    let ready = indices(&|e| e.ready);
    let terminating = indices(&|e| !e.ready && e.serving && e.terminating);
    if ready.is_empty() {
        Selection {
            chosen: terminating,
            draining: Vec::new(),
        }
    } else {
        Selection {
            chosen: ready,
            draining: terminating,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(node: &str, ready: bool, serving: bool, terminating: bool) -> SliceEndpoint {
        SliceEndpoint {
            addr: "10.244.1.2".parse().unwrap(),
            ready,
            serving,
            terminating,
            node: Some(node.to_owned()),
        }
    }

    #[test]
    fn a_ready_endpoint_is_preferred_to_one_that_terminates() {
        let endpoints = [
            endpoint("a", true, true, false),
            endpoint("a", false, true, true),
        ];
        let selection = select(&endpoints, TrafficPolicy::Cluster, "a");
        assert_eq!(
            selection,
            Selection {
                chosen: vec![0],
                draining: vec![1]
            }
        );
    }

    #[test]
    fn without_a_ready_endpoint_those_that_terminate_but_serve_are_used() {
        let endpoints = [
            endpoint("a", false, true, true),
            endpoint("a", false, false, true),
            endpoint("a", false, false, false),
        ];
        let selection = select(&endpoints, TrafficPolicy::Cluster, "a");
        assert_eq!(
            selection,
            Selection {
                chosen: vec![0],
                draining: vec![]
            }
        );
    }

    #[test]
    fn an_endpoint_that_serves_but_is_neither_ready_nor_terminating_gets_nothing() {
        let endpoints = [endpoint("a", false, true, false)];
        assert_eq!(
            select(&endpoints, TrafficPolicy::Cluster, "a"),
            Selection::default()
        );
    }

    #[test]
    fn the_local_policy_sees_only_this_node_and_falls_back_only_there() {
        let endpoints = [
            endpoint("b", true, true, false),
            endpoint("a", false, true, true),
        ];
        let selection = select(&endpoints, TrafficPolicy::Local, "a");
        assert_eq!(
            selection,
            Selection {
                chosen: vec![1],
                draining: vec![]
            }
        );
        assert_eq!(
            select(&endpoints, TrafficPolicy::Local, "c"),
            Selection::default()
        );
    }
}
