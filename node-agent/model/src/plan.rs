//! From what changed to what the maps need: gives and takes back ids, and marks what [`crate::emit`] must compare.

use std::time::Duration;

use ebpf_abi::Family;

use crate::address::PerFamily;
use crate::{Applied, Desired, MapOp, emit};

/// How long a withdrawn id or range rests before it is given again. A program that read it holds it for microseconds.
pub const QUARANTINE: Duration = Duration::from_secs(1);

/// What to do, in order.
#[derive(Debug, Default)]
pub struct Plan {
    pub ops: Vec<MapOp>,
    /// Did not fit; they stay as they were and are planned again next time.
    pub refused: Vec<Refusal>,
}

/// Something that does not fit into a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// `namespace/name` of the Service, name of the node, or the address.
    pub object: String,
    /// Name of the map that is full.
    pub map: &'static str,
}

/// Plans what changed since the last plan; everything after [`Applied::restore`] and [`Applied::resync`].
///
/// `now` comes from any monotonic clock. The plan is taken as done: if an operation fails, call [`Applied::resync`]
/// with what the maps then hold, and plan again.
pub fn plan(desired: &mut Desired, applied: &mut Applied, now: Duration) -> Plan {
    let mut plan = Plan::default();
    applied.incoming = PerFamily::default();
    let full = std::mem::take(&mut applied.full);
    if full {
        desired.all_dirty();
        let known: Vec<_> = applied.sets.keys().cloned().collect();
        desired.dirty_mut().services.extend(known);
        let known: Vec<_> = applied.peers.keys().cloned().collect();
        desired.dirty_mut().peers.extend(known);
    }
    let dirty = desired.take_dirty();
    for name in dirty.services {
        if let Err(map) = applied.place_service(&name, desired.sets(&name), now) {
            plan.refused.push(Refusal {
                object: name.to_string(),
                map,
            });
            desired.dirty_mut().services.insert(name);
        }
    }
    for node in dirty.peers {
        if let Err(map) = applied.place_peer(&node, desired.peers.get(&node), now) {
            plan.refused.push(Refusal {
                object: node.clone(),
                map,
            });
            desired.dirty_mut().peers.insert(node);
        }
    }
    if dirty.keep_source
        && let Err(map) = applied.place_keep_source(&desired.keep_source)
    {
        plan.refused.push(Refusal {
            object: "destinations to which pods keep their address".to_owned(),
            map,
        });
        desired.dirty_mut().keep_source = true;
    }
    applied.touched.endpoints.extend(dirty.endpoints);
    applied.touched.config |= dirty.config;
    if full {
        applied.drop_leftovers(now);
        applied.touch_all();
    }
    emit::emit(desired, applied, &mut plan);
    plan
}

impl Applied {
    /// What was in the maps at the start and is wanted by nobody goes, once everybody has been asked.
    fn drop_leftovers(&mut self, now: Duration) {
        for (id, range) in std::mem::take(&mut self.restored.services) {
            self.slot_ranges.release(range, now);
            self.service_ids.release(id, now);
        }
        for id in std::mem::take(&mut self.restored.peers) {
            self.peer_ids.release(id, now);
        }
        self.table(Family::V4).sweep(now);
        self.table(Family::V6).sweep(now);
    }
}
