//! A [`Snapshot`] is itself a place where operations go: the mirror of the maps, and the maps of the tests.

use std::collections::BTreeMap;

use ebpf_abi::{Addr4, Addr6, Family, Peer, backend_state, peer_mode};

use crate::{FamilyOp, MapFamily, MapOp, MapSink, SinkError, Snapshot};

impl Snapshot {
    /// What the maps hold after this operation.
    pub fn apply_one(&mut self, op: &MapOp) {
        match op {
            MapOp::V4(op) => apply_family(self, op),
            MapOp::V6(op) => apply_family(self, op),
            MapOp::Config(config) => self.config = **config,
            MapOp::Slots { base, backend_ids } => {
                self.slots
                    .extend((*base..).zip(backend_ids.iter().copied()));
            }
            MapOp::Service { id, service } => put(&mut self.services, *id, *service),
            MapOp::ServiceName { id, name } => {
                put(&mut self.service_names, *id, name.clone());
            }
            MapOp::PeerName { id, name } => {
                put(&mut self.peer_names, *id, name.as_deref().copied());
            }
            MapOp::Peer { id, peer } => put(
                &mut self.peers,
                *id,
                (**peer != Peer::default()).then_some(**peer),
            ),
        }
    }

    pub(crate) fn frontend_count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.frontends.len(),
            Family::V6 => self.v6.frontends.len(),
        }
    }

    pub(crate) fn range_count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.ranges.len(),
            Family::V6 => self.v6.ranges.len(),
        }
    }

    pub(crate) fn route_count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.routes.len(),
            Family::V6 => self.v6.routes.len(),
        }
    }

    /// Whether nothing is in force: what is left are freed array entries and the node's configuration.
    pub fn is_idle(&self) -> bool {
        fn idle<A: MapFamily>(snapshot: &Snapshot) -> bool {
            let half = A::half(snapshot);
            let keeps_source = ebpf_abi::KEEPS_SOURCE.to_be();
            half.frontends.is_empty()
                && half
                    .ranges
                    .iter()
                    .all(|range| range.service_id_be == keeps_source)
                && half.endpoints.is_empty()
                && half.routes.is_empty()
                && half
                    .backends
                    .values()
                    .all(|backend| backend.state == backend_state::FREE)
        }
        idle::<Addr4>(self)
            && idle::<Addr6>(self)
            && self.services.is_empty()
            && self.service_names.is_empty()
            && self.peer_names.is_empty()
            && self.peers.values().all(|peer| peer.mode == peer_mode::NONE)
    }
}

impl MapSink for Snapshot {
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), SinkError> {
        ops.iter().for_each(|op| self.apply_one(op));
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, SinkError> {
        Ok(self.clone())
    }
}

fn apply_family<A: MapFamily>(snapshot: &mut Snapshot, op: &FamilyOp<A>) {
    let half = A::half_mut(snapshot);
    match op {
        FamilyOp::Frontend { key, frontend } => put(&mut half.frontends, *key, *frontend),
        FamilyOp::Range { key, admitted } => {
            if *admitted {
                half.ranges.insert(*key);
            } else {
                half.ranges.remove(key);
            }
        }
        FamilyOp::Backend { id, backend } => put(&mut half.backends, *id, Some(*backend)),
        FamilyOp::Endpoint { addr, endpoint } => put(&mut half.endpoints, *addr, *endpoint),
        FamilyOp::Route { key, route } => put(&mut half.routes, *key, *route),
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
