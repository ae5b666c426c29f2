//! Services: gives ids and slots to what a Service needs, takes back what it no longer needs, and marks what changed.

use std::collections::BTreeMap;
use std::time::Duration;

use ebpf_abi::{Family, Frontend, maps};
use ipnetwork::IpNetwork;

use crate::applied::{Claim, PlacedSet};
use crate::backends::Usage;
use crate::turns::{Member, Turns, turns};
use crate::wanted::{FrontendAddr, SetKey, WantedSet};
use crate::{Applied, MapFamily, ObjectName, emit};

impl Applied {
    /// Places the services of the maps that a Service needs. What does not fit stays as it was; the error names the map
    /// that is full.
    pub(crate) fn place_service(
        &mut self,
        name: &ObjectName,
        wanted: BTreeMap<SetKey, WantedSet>,
        now: Duration,
    ) -> Result<(), &'static str> {
        let mut before = self.sets.remove(name).unwrap_or_default().into_vec();
        for set in before.extract_if(.., |set| !wanted.contains_key(&set.key)) {
            self.remove_set(set, now);
        }
        let mut placed = Vec::with_capacity(wanted.len());
        let mut result = Ok(());
        for (key, want) in wanted {
            let known = before.iter().position(|set| set.key == key);
            let set = match known {
                Some(at) => Some(before.swap_remove(at)),
                None => self.adopt_or_allocate(name, key, &want, now),
            };
            let Some(mut set) = set else {
                result = Err(maps::SERVICE);
                continue;
            };
            if let Err(map) = self.update_set(&mut set, &want, now) {
                result = Err(map);
            }
            placed.push(set);
        }
        if !placed.is_empty() {
            self.sets.insert(name.clone(), placed.into());
        }
        result
    }

    /// After a restart a service is found again by its frontends: id, range and backends go on as they are.
    fn adopt_or_allocate(
        &mut self,
        name: &ObjectName,
        key: SetKey,
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
        let mut set = match found {
            Some((id, range)) => PlacedSet {
                range,
                ..PlacedSet::new(id, key)
            },
            None => PlacedSet::new(self.service_ids.allocate(now)?, key),
        };
        if found.is_some() {
            set.turns = self.held_turns(&set);
            let table = self.backends.get_mut(set.key.family);
            let mut ids = std::mem::take(&mut set.turns.ids).into_vec();
            // An id that nobody has makes the slots differ from any wanted ones: they are written anew.
            ids.retain(|id| table.acquire(*id, Usage::Chosen));
            set.turns.ids = ids.into();
        }
        self.service_of_id.insert(set.id, name.clone());
        self.touched.services.insert(set.id);
        Some(set)
    }

    fn held_turns(&self, set: &PlacedSet) -> Turns {
        let in_range = set.range.base..set.range.base + set.range.len;
        let held = |slot| self.held.slots.get(&slot).copied().unwrap_or(0);
        let slots: Vec<u32> = in_range.map(held).collect();
        let service = self.held.services.get(&set.id).copied();
        let base = service.unwrap_or_default().slot_base;
        Turns::read(&slots, base.saturating_sub(set.range.base))
    }

    fn update_set(
        &mut self,
        set: &mut PlacedSet,
        want: &WantedSet,
        now: Duration,
    ) -> Result<(), &'static str> {
        let new_ranges = self.check_room(set, want, now)?;
        self.place_backends(set, want, now)?;
        self.incoming.get_mut(set.key.family).ranges += new_ranges;
        let flags = want.service_flags();
        if (set.flags, set.affinity_seconds) != (flags, want.affinity_seconds) {
            (set.flags, set.affinity_seconds) = (flags, want.affinity_seconds);
            self.touched.services.insert(set.id);
        }
        let wanted = want.ranges.iter().copied().collect();
        let before = std::mem::replace(&mut set.ranges, wanted);
        let gone = before.iter().filter(|range| !want.ranges.contains(range));
        let new = set.ranges.iter().filter(|range| !before.contains(range));
        let changed = gone.chain(new).map(|range| (set.id, *range));
        self.touched.ranges.extend(changed);
        self.claim_frontends(set.key.family, set, &want.frontends);
        Ok(())
    }

    /// Refuses before anything is changed; the number of source ranges that come in.
    fn check_room(
        &mut self,
        set: &PlacedSet,
        want: &WantedSet,
        now: Duration,
    ) -> Result<usize, &'static str> {
        let family = set.key.family;
        let by_family = |v4, v6| if family == Family::V4 { v4 } else { v6 };
        let chosen = want.chosen.iter().map(|(addr, _)| *addr);
        if !self.table(family).fits(chosen, now) {
            return Err(by_family(maps::BACKEND4, maps::BACKEND6));
        }
        let new = want.frontends.keys();
        let new = new.filter(|addr| self.is_new_frontend(addr)).count();
        let incoming = self.incoming.get(family);
        let taken = self.held.frontend_count(family) + incoming.frontends;
        if new > 0 && taken + new > self.capacity.frontends(family) {
            return Err(by_family(maps::FRONTEND4, maps::FRONTEND6));
        }
        let new = want
            .ranges
            .iter()
            .filter(|range| !set.ranges.contains(range) && !self.holds_range(set.id, **range));
        let new = new.count();
        let taken = self.held.range_count(family) + incoming.ranges;
        if new > 0 && taken + new > self.capacity.ranges(family) {
            return Err(by_family(maps::RANGE4, maps::RANGE6));
        }
        Ok(new)
    }

    /// Gives the set its backends and slots, or leaves it as it was.
    fn place_backends(
        &mut self,
        set: &mut PlacedSet,
        want: &WantedSet,
        now: Duration,
    ) -> Result<(), &'static str> {
        let table = self.backends.get_mut(set.key.family);
        let mut admitted = Vec::new();
        let members: Option<Vec<Member>> = want.members(|addr| {
            table.id_of(addr).or_else(|| {
                let id = table.admit(addr, now)?;
                admitted.push(id);
                Some(id)
            })
        });
        let sticky = want.affinity_seconds > 0;
        let members = members.unwrap_or_default();
        let next = turns(want.algorithm, &members, sticky, &set.turns);
        let kept = !sticky && set.affinity_seconds == 0 && set.flags == want.service_flags();
        let changes = next.changes(&set.turns);
        if !self.place_turns(set, next, &changes, kept, now) {
            let table = self.backends.get_mut(set.key.family);
            admitted.into_iter().for_each(|id| table.dismiss(id));
            return Err(maps::SLOT);
        }
        let table = self.backends.get_mut(set.key.family);
        for id in changes.new {
            table.acquire(id, Usage::Chosen);
        }
        // A backend that never was used has nothing to drain: it gets no id for that.
        let draining = want.draining.iter().filter_map(|addr| table.id_of(*addr));
        let draining: Box<[u32]> = draining.collect();
        for id in &draining {
            table.acquire(*id, Usage::Draining);
        }
        let drained = std::mem::replace(&mut set.draining, draining);
        for id in drained {
            table.release(id, Usage::Draining, now);
        }
        for id in changes.gone {
            table.release(id, Usage::Chosen, now);
        }
        Ok(())
    }

    fn remove_set(&mut self, set: PlacedSet, now: Duration) {
        for frontend in set.frontends {
            self.unclaim(set.id, frontend);
        }
        let table = self.backends.get_mut(set.key.family);
        let chosen = set.turns.ids.iter();
        chosen.for_each(|id| table.release(*id, Usage::Chosen, now));
        let draining = set.draining.iter();
        draining.for_each(|id| table.release(*id, Usage::Draining, now));
        let ranges = set.ranges.iter().map(|range| (set.id, *range));
        self.touched.ranges.extend(ranges);
        self.slot_ranges.release(set.range, now);
        self.service_ids.release(set.id, now);
        self.service_of_id.remove(&set.id);
        self.touched.services.insert(set.id);
    }

    fn claim_frontends(
        &mut self,
        family: Family,
        set: &mut PlacedSet,
        want: &BTreeMap<FrontendAddr, u32>,
    ) {
        let wanted = want.keys().copied().collect();
        let before = std::mem::replace(&mut set.frontends, wanted);
        let gone = before.iter().filter(|addr| !want.contains_key(addr));
        gone.for_each(|frontend| self.unclaim(set.id, *frontend));
        for (frontend, flags) in want {
            if self.is_new_frontend(frontend) {
                self.incoming.get_mut(family).frontends += 1;
            }
            let claim = Claim {
                id: set.id,
                flags: *flags,
            };
            let claims = self.frontends.entry(*frontend).or_default();
            let own = claims.iter_mut().find(|other| other.id == set.id);
            match own {
                Some(own) if *own == claim => continue,
                Some(own) => *own = claim,
                None => claims.push(claim),
            }
            self.touched.frontends.insert(*frontend);
        }
    }

    fn is_new_frontend(&self, frontend: &FrontendAddr) -> bool {
        !self.frontends.contains_key(frontend) && self.held_frontend(frontend).is_none()
    }

    fn unclaim(&mut self, id: u32, frontend: FrontendAddr) {
        if let Some(claims) = self.frontends.get_mut(&frontend) {
            claims.retain(|claim| claim.id != id);
            if claims.is_empty() {
                self.frontends.remove(&frontend);
            }
        }
        self.touched.frontends.insert(frontend);
    }

    pub(crate) fn holds_range(&self, id: u32, range: IpNetwork) -> bool {
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
}
