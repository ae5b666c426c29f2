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

/// What hints of one sort say of this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hints {
    None,
    Elsewhere,
    Here,
}

/// All that the selection asks of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Standing {
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    /// On this node.
    pub(crate) local: bool,
    pub(crate) for_nodes: Hints,
    pub(crate) for_zones: Hints,
}

/// The ready endpoints; if there is none, those that terminate but still serve. With the policy `Local` only those of
/// this node count at all; else the hints narrow the ready ones, if every ready endpoint has some.
pub fn select<E: Borrow<SliceEndpoint>>(
    endpoints: &[E],
    policy: TrafficPolicy,
    here: Here<'_>,
) -> Selection {
    let standings = endpoints.iter().map(|e| Standing::of(e.borrow(), here));
    choose(&standings.collect::<Vec<_>>(), policy)
}

/// As [`select`].
pub(crate) fn choose(endpoints: &[Standing], policy: TrafficPolicy) -> Selection {
    let local = |e: &Standing| policy == TrafficPolicy::Cluster || e.local;
    let indices = |wanted: &dyn Fn(&Standing) -> bool| -> Vec<usize> {
        let numbered = endpoints.iter().enumerate();
        numbered
            .filter(|(_, e)| wanted(e))
            .map(|(index, _)| index)
            .collect()
    };
    let topology = match policy {
        TrafficPolicy::Cluster => topology(endpoints),
        TrafficPolicy::Local => Topology::Any,
    };
    let ready = indices(&|e| e.ready && local(e) && topology.admits(e));
    let terminating = indices(&|e| e.is_last_resort() && local(e));
    let (chosen, draining) = if ready.is_empty() {
        (terminating, Vec::new())
    } else {
        (ready, terminating)
    };
    Selection {
        elsewhere: chosen.is_empty() && endpoints.iter().any(|e| e.ready || e.is_last_resort()),
        chosen,
        draining,
    }
}

/// Hints count only where every ready endpoint has some and one of them is for here; those for nodes before those for
/// zones.
fn topology(endpoints: &[Standing]) -> Topology {
    let hinted = |hints: fn(&Standing) -> Hints| {
        let mut ready = endpoints.iter().filter(|e| e.ready);
        let mut for_here = false;
        let every_one_has_some = ready.all(|e| {
            for_here |= hints(e) == Hints::Here;
            hints(e) != Hints::None
        });
        every_one_has_some && for_here
    };
    if hinted(|e| e.for_nodes) {
        Topology::SameNode
    } else if hinted(|e| e.for_zones) {
        Topology::SameZone
    } else {
        Topology::Any
    }
}

impl Topology {
    fn admits(self, endpoint: &Standing) -> bool {
        match self {
            Self::Any => true,
            Self::SameNode => endpoint.for_nodes == Hints::Here,
            Self::SameZone => endpoint.for_zones == Hints::Here,
        }
    }
}

impl Hints {
    pub(crate) fn of(names: &[String], here: Option<&str>) -> Self {
        if names.is_empty() {
            Self::None
        } else if here.is_some_and(|here| names.iter().any(|name| name == here)) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

impl Standing {
    pub(crate) fn of(endpoint: &SliceEndpoint, here: Here<'_>) -> Self {
        Self {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(here.node),
            for_nodes: Hints::of(&endpoint.node_hints, Some(here.node)),
            for_zones: Hints::of(&endpoint.zone_hints, here.zone),
        }
    }

    fn is_last_resort(&self) -> bool {
        !self.ready && self.serving && self.terminating
    }
}
