//! What the maps hold, who holds which id, and what a plan touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_abi::{Addr4, Addr6, Family, Peer, Service, peer_mode};
use ipnetwork::IpNetwork;
use smallvec::SmallVec;

use crate::address::PerFamily;
use crate::backends::BackendTable;
use crate::ids::IdPool;
use crate::ranges::{RangePool, SlotRange};
use crate::turns::Turns;
use crate::wanted::{FrontendAddr, SetKey};
use crate::{Capacity, ObjectName, Snapshot};

/// The user space side of the maps. Made from what they hold, so that a restarted agent goes on with the same ids.
#[derive(Debug)]
pub struct Applied {
    pub(crate) capacity: Capacity,
    /// What the maps hold, as far as we know.
    pub(crate) held: Snapshot,
    /// The next plan compares everything.
    pub(crate) full: bool,
    pub(crate) service_ids: IdPool,
    pub(crate) slot_ranges: RangePool,
    pub(crate) peer_ids: IdPool,
    pub(crate) backends: PerFamily<BackendTable>,
    pub(crate) sets: BTreeMap<ObjectName, Box<[PlacedSet]>>,
    pub(crate) service_of_id: BTreeMap<u32, ObjectName>,
    /// Who wants a frontend, nearly always one; the first by its Service's name has it.
    pub(crate) frontends: BTreeMap<FrontendAddr, SmallVec<[Claim; 1]>>,
    pub(crate) peers: BTreeMap<String, PlacedPeer>,
    pub(crate) peer_of_id: BTreeMap<u32, String>,
    /// Which nodes want a prefix; the first has it.
    pub(crate) routes: BTreeMap<IpNetwork, BTreeSet<String>>,
    pub(crate) keep_source: BTreeSet<IpNetwork>,
    pub(crate) restored: Restored,
    pub(crate) incoming: PerFamily<Incoming>,
    pub(crate) touched: Touched,
}

/// A service of the maps that has its ids. There are many: lists have no room for more.
#[derive(Clone, Debug)]
pub(crate) struct PlacedSet {
    pub(crate) id: u32,
    pub(crate) key: SetKey,
    /// At least as long as there are slots.
    pub(crate) range: SlotRange,
    pub(crate) turns: Turns,
    pub(crate) draining: Box<[u32]>,
    pub(crate) frontends: Box<[FrontendAddr]>,
    pub(crate) ranges: Box<[IpNetwork]>,
    /// See [`ebpf_abi::service_flag`].
    pub(crate) flags: u32,
    pub(crate) affinity_seconds: u32,
}

/// A service of the maps wants a frontend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Claim {
    pub(crate) id: u32,
    /// See [`ebpf_abi::frontend_flag`].
    pub(crate) flags: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct PlacedPeer {
    pub(crate) id: u32,
    pub(crate) peer: Peer,
    pub(crate) prefixes: BTreeSet<IpNetwork>,
}

/// Ids that the maps used at the start and that nobody has come for yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restored {
    /// With the ranges that were theirs alone.
    pub(crate) services: BTreeMap<u32, SlotRange>,
    pub(crate) peers: BTreeSet<u32>,
}

/// How many entries this plan adds: writes come before deletions, so what will go still takes its place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Incoming {
    pub(crate) frontends: usize,
    pub(crate) ranges: usize,
    pub(crate) routes: usize,
}

/// Map entries whose wanted value may differ from the held one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) frontends: BTreeSet<FrontendAddr>,
    pub(crate) services: BTreeSet<u32>,
    /// By service id.
    pub(crate) ranges: BTreeSet<(u32, IpNetwork)>,
    pub(crate) endpoints: BTreeSet<IpAddr>,
    pub(crate) routes: BTreeSet<IpNetwork>,
    pub(crate) peers: BTreeSet<u32>,
    pub(crate) config: bool,
}

impl Applied {
    /// Starts from what the maps hold; the first plan adopts what is still wanted and removes the rest.
    pub fn restore(snapshot: Snapshot, capacity: Capacity) -> Self {
        let mut slot_ranges = RangePool::new(capacity.slots);
        let mut restored = Restored::default();
        for (id, service) in &snapshot.services {
            let range = range_of(service);
            // Two services on one slot, or slots beyond the map: neither is believed, both get a range of their own.
            restored.services.insert(
                *id,
                if slot_ranges.claim(range) {
                    range
                } else {
                    SlotRange::default()
                },
            );
        }
        restored.peers = snapshot
            .peers
            .iter()
            .filter(|(_, peer)| peer.mode != peer_mode::NONE)
            .map(|(id, _)| *id)
            .collect();
        Self {
            service_ids: IdPool::new(
                capacity.services,
                &restored.services.keys().copied().collect(),
            ),
            peer_ids: IdPool::new(capacity.peers, &restored.peers),
            backends: PerFamily::new(
                BackendTable::restore::<Addr4>(&snapshot, capacity.backends4),
                BackendTable::restore::<Addr6>(&snapshot, capacity.backends6),
            ),
            slot_ranges,
            capacity,
            held: snapshot,
            full: true,
            sets: BTreeMap::new(),
            service_of_id: BTreeMap::new(),
            frontends: BTreeMap::new(),
            peers: BTreeMap::new(),
            peer_of_id: BTreeMap::new(),
            routes: BTreeMap::new(),
            keep_source: BTreeSet::new(),
            restored,
            incoming: PerFamily::default(),
            touched: Touched::default(),
        }
    }

    /// Takes what the maps really hold, after a failure or from time to time; ids stay, the next plan compares everything.
    pub fn resync(&mut self, snapshot: Snapshot) {
        self.held = snapshot;
        self.full = true;
    }

    /// What the maps hold if every planned operation succeeded.
    pub fn held(&self) -> &Snapshot {
        &self.held
    }

    /// Whether the next plan compares everything.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The service of the maps that has this id, and the Service that needs it.
    pub(crate) fn set_of(&self, id: u32) -> Option<(&ObjectName, &PlacedSet)> {
        let (name, sets) = self.sets.get_key_value(self.service_of_id.get(&id)?)?;
        Some((name, sets.iter().find(|set| set.id == id)?))
    }

    pub(crate) fn table(&mut self, family: Family) -> &mut BackendTable {
        self.backends.get_mut(family)
    }
}

/// The slots of a service: members that are listed for themselves lie before the turns.
pub(crate) fn range_of(service: &Service) -> SlotRange {
    let listed = service.member_base.checked_add(service.member_count) == Some(service.slot_base);
    let (base, listed) = match listed {
        true if service.member_count > 0 => (service.member_base, service.member_count),
        _ => (service.slot_base, 0),
    };
    match service.slot_count.saturating_add(listed) {
        0 => SlotRange::default(),
        len => SlotRange { base, len },
    }
}

impl PlacedSet {
    pub(crate) fn new(id: u32, key: SetKey) -> Self {
        Self {
            id,
            key,
            range: SlotRange::default(),
            turns: Turns::default(),
            draining: Box::default(),
            frontends: Box::default(),
            ranges: Box::default(),
            flags: 0,
            affinity_seconds: 0,
        }
    }

    /// The value in the services' map.
    pub(crate) fn service(&self) -> Service {
        let (len, listed) = (self.turns.len(), self.turns.listed());
        let sticky = self.affinity_seconds > 0;
        Service {
            slot_base: self.range.base + listed,
            slot_count: len - listed,
            member_base: if sticky { self.range.base } else { 0 },
            member_count: match (sticky, listed) {
                (false, _) => 0,
                (true, 0) => len,
                (true, listed) => listed,
            },
            flags: self.flags,
            affinity_seconds: self.affinity_seconds,
        }
    }
}
