//! Which endpoints of a Service get its connections: kube-proxy's algorithm (pkg/proxy/topology.go).
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies>

use std::borrow::Borrow;

use crate::{SliceEndpoint, TrafficPolicy};

/// The node for which is selected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here<'a> {
    pub node: &'a str,
    /// From the Node's label `topology.kubernetes.io/zone`.
    pub zone: Option<&'a str>,
}

/// Outcome of [`select`], as indices into the endpoints given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// Take new connections.
    pub chosen: Vec<usize>,
    /// Terminating but serving, and not chosen: established connections go on, new ones do not come.
    pub draining: Vec<usize>,
    /// Nothing is chosen, but without the policy `Local` something would be.
    pub elsewhere: bool,
}

/// Which endpoints the hints leave to this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Topology {
    /// Hints are ignored.
    Any,
    SameNode,
    SameZone,
}

/// The ready endpoints; if there is none, those that terminate but still serve. With the policy `Local` only those of
/// this node count at all; else the hints narrow the ready ones, if every ready endpoint has some.
pub fn select<E: Borrow<SliceEndpoint>>(
    endpoints: &[E],
    policy: TrafficPolicy,
    here: Here<'_>,
) -> Selection {
    let local = |e: &SliceEndpoint| policy == TrafficPolicy::Cluster || is_local(e, here);
    let indices = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<usize> {
        let numbered = endpoints.iter().map(Borrow::borrow).enumerate();
        numbered
            .filter(|(_, e)| wanted(e))
            .map(|(index, _)| index)
            .collect()
    };
    let topology = match policy {
        TrafficPolicy::Cluster => topology(endpoints, here),
        TrafficPolicy::Local => Topology::Any,
    };
    let ready = indices(&|e| e.ready && local(e) && topology.admits(e, here));
    let terminating = indices(&|e| is_last_resort(e) && local(e));
    let (chosen, draining) = if ready.is_empty() {
        (terminating, Vec::new())
    } else {
        (ready, terminating)
    };
    let usable = |e: &SliceEndpoint| e.ready || is_last_resort(e);
    Selection {
        elsewhere: chosen.is_empty() && endpoints.iter().any(|e| usable(e.borrow())),
        chosen,
        draining,
    }
}

fn is_local(endpoint: &SliceEndpoint, here: Here<'_>) -> bool {
    endpoint.node.as_deref() == Some(here.node)
}

fn is_last_resort(endpoint: &SliceEndpoint) -> bool {
    !endpoint.ready && endpoint.serving && endpoint.terminating
}

/// Hints count only where every ready endpoint has some and one of them is for here; those for nodes before those for
/// zones.
fn topology<E: Borrow<SliceEndpoint>>(endpoints: &[E], here: Here<'_>) -> Topology {
    let hinted = |hints: fn(&SliceEndpoint) -> &[String], name: &str| {
        let mut ready = endpoints.iter().map(Borrow::borrow).filter(|e| e.ready);
        let mut for_here = false;
        let every_one_has_some = ready.all(|e| {
            for_here |= hints(e).iter().any(|hint| hint == name);
            !hints(e).is_empty()
        });
        every_one_has_some && for_here
    };
    if hinted(|e| &e.node_hints, here.node) {
        Topology::SameNode
    } else if here
        .zone
        .is_some_and(|zone| hinted(|e| &e.zone_hints, zone))
    {
        Topology::SameZone
    } else {
        Topology::Any
    }
}

impl Topology {
    fn admits(self, endpoint: &SliceEndpoint, here: Here<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::SameNode => endpoint.node_hints.iter().any(|hint| hint == here.node),
            Self::SameZone => {
                let zone = here.zone.unwrap_or_default();
                endpoint.zone_hints.iter().any(|hint| hint == zone)
            }
        }
    }
}
