//! From what changed to what the maps need: gives and takes back ids, and marks what [`crate::emit`] must compare.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebpf_abi::{Family, Frontend};
use ipnetwork::IpNetwork;

use crate::address::{PerFamily, family_of, network_of};
use crate::applied::{PlacedPeer, PlacedSet};
use crate::backends::Usage;
use crate::turns::{self, Member, Turns, turns};
use crate::wanted::{FrontendAddr, SetKey, WantedSet};
use crate::{Applied, Desired, MapFamily, MapOp, ObjectName, PeerRoutes, emit};

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
    fn place_service(
        &mut self,
        name: &ObjectName,
        wanted: BTreeMap<SetKey, WantedSet>,
        now: Duration,
    ) -> Result<(), &'static str> {
        let mut placed = self.sets.remove(name).unwrap_or_default();
        let gone: Vec<SetKey> = placed
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            if let Some(set) = placed.remove(&key) {
                self.remove_set(&key, set, now);
            }
        }
        let mut result = Ok(());
        for (key, want) in wanted {
            let Some(mut set) = placed
                .remove(&key)
                .or_else(|| self.adopt_or_allocate(&key, &want, now))
            else {
                result = Err(ebpf_abi::maps::SERVICE);
                continue;
            };
            if let Err(map) = self.update_set(&key, &mut set, &want, now) {
                result = Err(map);
            }
            placed.insert(key, set);
        }
        if !placed.is_empty() {
            self.sets.insert(name.clone(), placed);
        }
        result
    }

    /// After a restart a service is found again by its frontends: id, range and backends go on as they are.
    fn adopt_or_allocate(
        &mut self,
        key: &SetKey,
        want: &WantedSet,
        now: Duration,
    ) -> Option<PlacedSet> {
        let own = want.frontends.keys();
        let own = own.filter_map(|frontend| Some(self.held_frontend(frontend)?.service_id));
        let inside = want.inside_of.iter();
        let inside = inside.filter_map(|frontend| Some(self.held_frontend(frontend)?.inside_id));
        let restored = &self.restored.services;
        let id = own.chain(inside).find(|id| restored.contains_key(id));
        let found = id.and_then(|id| self.restored.services.remove_entry(&id));
        self.touched.frontends.extend(&want.inside_of);
        let set = match found {
            None => PlacedSet {
                id: self.service_ids.allocate(now)?,
                ..PlacedSet::default()
            },
            Some((id, range)) => {
                let in_range = range.base..range.base + range.len;
                let slots: Vec<u32> = in_range
                    .map(|slot| self.held.slots.get(&slot).copied().unwrap_or(0))
                    .collect();
                let table = self.backends.get_mut(key.family);
                // An unknown id makes the slots differ from any wanted ones: they are written anew.
                let distinct: BTreeSet<u32> = slots.iter().copied().collect();
                let backend_ids = distinct
                    .into_iter()
                    .filter(|id| table.acquire_id(*id, Usage::Chosen))
                    .collect();
                let held = self.held.services.get(&id).copied().unwrap_or_default();
                let members = held.slot_base.saturating_sub(range.base).min(range.len);
                PlacedSet {
                    id,
                    range,
                    turns: Turns { slots, members },
                    backend_ids,
                    ..PlacedSet::default()
                }
            }
        };
        self.set_of_id.insert(set.id, key.clone());
        self.touched.services.insert(set.id);
        Some(set)
    }

    fn update_set(
        &mut self,
        key: &SetKey,
        set: &mut PlacedSet,
        want: &WantedSet,
        now: Duration,
    ) -> Result<(), &'static str> {
        self.check_room(key, set, want, now)?;
        let table = self.backends.get_mut(key.family);
        let members: Vec<Member> = want
            .members(|addr| table.acquire(*addr, now))
            .unwrap_or_default();
        // A backend that never was used has nothing to drain: it gets no id for that.
        let draining: BTreeSet<u32> = want
            .draining
            .iter()
            .filter_map(|addr| table.id_of(addr))
            .collect();
        for id in &draining {
            table.acquire_id(*id, Usage::Draining);
        }
        let old_draining = std::mem::replace(&mut set.draining, draining);
        old_draining
            .into_iter()
            .for_each(|id| table.release(id, Usage::Draining, now));
        set.backend_ids
            .iter()
            .for_each(|id| table.release(*id, Usage::Chosen, now));
        let flags = want.service_flags();
        if (set.flags, set.affinity_seconds) != (flags, want.affinity_seconds) {
            (set.flags, set.affinity_seconds) = (flags, want.affinity_seconds);
            self.touched.services.insert(set.id);
        }
        let ranges = std::mem::replace(&mut set.ranges, want.ranges.clone());
        let changed = ranges.symmetric_difference(&set.ranges);
        self.touched
            .ranges
            .extend(changed.map(|range| (set.id, *range)));
        let turns = turns(want.algorithm, &members, want.affinity_seconds > 0);
        if turns != set.turns || set.range.len as usize != turns.slots.len() {
            self.slot_ranges.release(set.range, now);
            set.range = self
                .slot_ranges
                .allocate(length(&turns.slots), now)
                .unwrap_or_default();
            set.turns = turns;
            self.touched.services.insert(set.id);
        }
        set.backend_ids = members.iter().map(|member| member.id).collect();
        set.backend_ids.sort_unstable();
        self.claim_frontends(key, set, &want.frontends);
        Ok(())
    }

    /// Refuses before anything is changed.
    fn check_room(
        &mut self,
        key: &SetKey,
        set: &PlacedSet,
        want: &WantedSet,
        now: Duration,
    ) -> Result<(), &'static str> {
        use ebpf_abi::maps;
        let by_family = |v4, v6| if key.family == Family::V4 { v4 } else { v6 };
        if !self.table(key.family).fits(want.chosen.keys(), now) {
            return Err(by_family(maps::BACKEND4, maps::BACKEND6));
        }
        let table = self.backends.get(key.family);
        let weights: Vec<u32> = want.chosen.values().copied().collect();
        let sticky = want.affinity_seconds > 0;
        let len = turns::count(want.algorithm, &weights, sticky);
        let known = want.members(|addr| table.id_of(addr));
        let same = set.range.len as usize == len
            && known.is_some_and(|known| turns(want.algorithm, &known, sticky) == set.turns);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if !same && !self.slot_ranges.fits(len, now) {
            return Err(maps::SLOT);
        }
        let new = want
            .frontends
            .keys()
            .filter(|frontend| self.is_new_frontend(frontend))
            .count();
        let taken = self.held.frontend_count(key.family) + self.incoming.get(key.family).frontends;
        if new > 0 && taken + new > self.capacity.frontends(key.family) {
            return Err(by_family(maps::FRONTEND4, maps::FRONTEND6));
        }
        let new = want.ranges.difference(&set.ranges);
        let new = new
            .filter(|range| !self.holds_range(set.id, **range))
            .count();
        let incoming = &mut self.incoming.get_mut(key.family).ranges;
        let taken = self.held.range_count(key.family) + *incoming;
        if new > 0 && taken + new > self.capacity.ranges(key.family) {
            return Err(by_family(maps::RANGE4, maps::RANGE6));
        }
        *incoming += new;
        Ok(())
    }

    fn claim_frontends(
        &mut self,
        key: &SetKey,
        set: &mut PlacedSet,
        want: &BTreeMap<FrontendAddr, u32>,
    ) {
        let gone: Vec<_> = set
            .frontends
            .iter()
            .filter(|frontend| !want.contains_key(frontend))
            .copied()
            .collect();
        gone.into_iter().for_each(|frontend| {
            set.frontends.remove(&frontend);
            self.unclaim(key, frontend);
        });
        for (frontend, flags) in want {
            if self.is_new_frontend(frontend) {
                self.incoming.get_mut(key.family).frontends += 1;
            }
            let before = self
                .frontends
                .entry(*frontend)
                .or_default()
                .insert(key.clone(), *flags);
            if before != Some(*flags) {
                self.touched.frontends.insert(*frontend);
            }
            set.frontends.insert(*frontend);
        }
    }

    fn is_new_frontend(&self, frontend: &FrontendAddr) -> bool {
        !self.frontends.contains_key(frontend) && self.held_frontend(frontend).is_none()
    }

    fn unclaim(&mut self, key: &SetKey, frontend: FrontendAddr) {
        if let Some(claims) = self.frontends.get_mut(&frontend) {
            claims.remove(key);
            if claims.is_empty() {
                self.frontends.remove(&frontend);
            }
        }
        self.touched.frontends.insert(frontend);
    }

    fn remove_set(&mut self, key: &SetKey, set: PlacedSet, now: Duration) {
        for frontend in set.frontends {
            self.unclaim(key, frontend);
        }
        let table = self.backends.get_mut(key.family);
        set.backend_ids
            .iter()
            .for_each(|id| table.release(*id, Usage::Chosen, now));
        set.draining
            .iter()
            .for_each(|id| table.release(*id, Usage::Draining, now));
        self.touched
            .ranges
            .extend(set.ranges.iter().map(|range| (set.id, *range)));
        self.slot_ranges.release(set.range, now);
        self.service_ids.release(set.id, now);
        self.set_of_id.remove(&set.id);
        self.touched.services.insert(set.id);
    }

    fn place_peer(
        &mut self,
        node: &str,
        want: Option<&PeerRoutes>,
        now: Duration,
    ) -> Result<(), &'static str> {
        let placed = self.peers.remove(node);
        let Some(want) = want else {
            if let Some(peer) = placed {
                peer.prefixes
                    .into_iter()
                    .for_each(|prefix| self.unclaim_route(node, prefix));
                self.peer_of_id.remove(&peer.id);
                self.peer_ids.release(peer.id, now);
                self.touched.peers.insert(peer.id);
            }
            return Ok(());
        };
        let mut peer = match placed {
            Some(peer) => peer,
            None => {
                let restored = want
                    .prefixes
                    .iter()
                    .filter_map(|prefix| self.held_peer(*prefix));
                let id = restored
                    .into_iter()
                    .find(|id| self.restored.peers.contains(id));
                let id = match id {
                    Some(id) => id,
                    None => self.peer_ids.allocate(now).ok_or(ebpf_abi::maps::PEER)?,
                };
                self.restored.peers.remove(&id);
                PlacedPeer {
                    id,
                    peer: want.peer,
                    prefixes: BTreeSet::new(),
                }
            }
        };
        peer.peer = want.peer;
        self.peer_of_id.insert(peer.id, node.to_owned());
        self.touched.peers.insert(peer.id);
        let prefixes: BTreeSet<IpNetwork> = want.prefixes.iter().map(network_of).collect();
        let gone: Vec<_> = peer.prefixes.difference(&prefixes).copied().collect();
        gone.into_iter()
            .for_each(|prefix| self.unclaim_route(node, prefix));
        let mut result = Ok(());
        peer.prefixes.clear();
        for prefix in prefixes {
            let family = family_of(prefix.ip());
            if !self.routes.contains_key(&prefix) && self.held_peer(prefix).is_none() {
                let taken = self.held.route_count(family) + self.incoming.get(family).routes;
                if taken >= self.capacity.routes(family) {
                    result = Err(if family == Family::V4 {
                        ebpf_abi::maps::ROUTE4
                    } else {
                        ebpf_abi::maps::ROUTE6
                    });
                    continue;
                }
                self.incoming.get_mut(family).routes += 1;
            }
            self.routes
                .entry(prefix)
                .or_default()
                .insert(node.to_owned());
            self.touched.routes.insert(prefix);
            peer.prefixes.insert(prefix);
        }
        self.peers.insert(node.to_owned(), peer);
        result
    }

    fn unclaim_route(&mut self, node: &str, prefix: IpNetwork) {
        if let Some(nodes) = self.routes.get_mut(&prefix) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.routes.remove(&prefix);
            }
        }
        self.touched.routes.insert(prefix);
    }

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

    fn holds_range(&self, id: u32, range: IpNetwork) -> bool {
        fn find<A: MapFamily>(applied: &Applied, id: u32, range: IpNetwork) -> bool {
            emit::range_key::<A>(id, range)
                .is_some_and(|key| A::half(&applied.held).ranges.contains(&key))
        }
        find::<ebpf_abi::Addr4>(self, id, range) || find::<ebpf_abi::Addr6>(self, id, range)
    }

    fn held_frontend(&self, frontend: &FrontendAddr) -> Option<Frontend> {
        fn find<A: MapFamily>(applied: &Applied, frontend: &FrontendAddr) -> Option<Frontend> {
            let key = emit::frontend_key::<A>(frontend)?;
            A::half(&applied.held).frontends.get(&key).copied()
        }
        find::<ebpf_abi::Addr4>(self, frontend).or_else(|| find::<ebpf_abi::Addr6>(self, frontend))
    }

    fn held_peer(&self, prefix: IpNetwork) -> Option<u32> {
        fn find<A: MapFamily>(applied: &Applied, prefix: IpNetwork) -> Option<u32> {
            let key = emit::route_key::<A>(prefix)?;
            A::half(&applied.held)
                .routes
                .get(&key)
                .map(|held| held.peer_id)
        }
        find::<ebpf_abi::Addr4>(self, prefix).or_else(|| find::<ebpf_abi::Addr6>(self, prefix))
    }
}

fn length(ids: &[u32]) -> u32 {
    u32::try_from(ids.len()).unwrap_or(u32::MAX)
}
