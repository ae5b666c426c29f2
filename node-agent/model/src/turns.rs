//! Which slots a service has: whose turn is when.
//!
//! Round robin goes over the slots one after the other, random takes any, and a Maglev table is looked up by the
//! client's hash. A backend's share is the number of its slots.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::Algorithm;
use crate::address::IpPort;

/// A backend that takes new connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Member {
    pub(crate) addr: IpPort,
    pub(crate) id: u32,
    /// Its share, in relation to the others'. Greater than zero.
    pub(crate) weight: u32,
}

/// What stands in the slots of a service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Turns {
    /// The backends' ids, each once.
    pub(crate) ids: Box<[u32]>,
    /// Whose turn is when; empty where every backend has one turn, in the order of `ids`.
    order: Box<[u32]>,
    /// The ids lie in the slots too, before the turns, and rise.
    listed: bool,
}

impl Turns {
    /// What was read from slots, the first `listed` of which are members.
    pub(crate) fn read(slots: &[u32], listed: u32) -> Self {
        let (ids, order) = slots.split_at(slots.len().min(listed as usize));
        if !ids.is_empty() {
            return Self {
                ids: ids.into(),
                order: order.into(),
                listed: true,
            };
        }
        let distinct: BTreeSet<u32> = order.iter().copied().collect();
        if distinct.len() == order.len() {
            return Self {
                ids: order.into(),
                ..Self::default()
            };
        }
        Self {
            ids: distinct.into_iter().collect(),
            order: order.into(),
            listed: false,
        }
    }

    /// All slots: members that are listed, then the turns.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        let in_slots = self.listed || self.order.is_empty();
        let ids: &[u32] = if in_slots { &self.ids } else { &[] };
        ids.iter().chain(&self.order).copied()
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> u32 {
        let in_slots = self.listed || self.order.is_empty();
        let ids = if in_slots { self.ids.len() } else { 0 };
        u32::try_from(ids + self.order.len()).unwrap_or(u32::MAX)
    }

    /// Whether every backend has one turn, so that their number may change by one.
    pub(crate) fn is_plain(&self) -> bool {
        self.order.is_empty()
    }

    /// Number of members at the start that are no turns.
    pub(crate) fn listed(&self) -> u32 {
        let ids = if self.listed { self.ids.len() } else { 0 };
        u32::try_from(ids).unwrap_or(u32::MAX)
    }

    /// What becomes different if these turns take the place of `before`.
    pub(crate) fn changes(&self, before: &Self) -> Changes {
        let sorted = |turns: &Self| {
            let mut ids = turns.ids.clone();
            ids.sort_unstable();
            ids
        };
        let [old, new] = [before, self].map(sorted);
        let without = |ids: &[u32], others: &[u32]| {
            let ids = ids.iter().copied();
            ids.filter(|id| others.binary_search(id).is_err()).collect()
        };
        let pairs = self.slots().zip(before.slots());
        Changes {
            new: without(&new, &old),
            gone: without(&old, &new),
            slots: pairs.filter(|(now, before)| now != before).count(),
        }
    }
}

/// The difference of two [`Turns`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Changes {
    /// Backends' ids.
    pub(crate) new: Vec<u32>,
    pub(crate) gone: Vec<u32>,
    /// How many of the slots that programs see now get another backend.
    pub(crate) slots: usize,
}

impl Changes {
    /// How much there is to it.
    pub(crate) fn count(&self) -> usize {
        self.slots.max(self.new.len()).max(self.gone.len())
    }
}

/// Prime sizes of Maglev tables, each with the number of backends from which on the next one is taken: a hundred slots
/// a backend keep the shares within one percent (Maglev, section 5.3).
const TABLES: [(u32, usize); 3] = [(1021, 10), (16381, 163), (65521, usize::MAX)];

/// The turns of these members, which come in the order of their addresses, the same on every node. `sticky`: their ids
/// rise, so that a program can tell whether a backend is one; else, where every member has one turn, those keep their
/// place that have one in `before`.
pub(crate) fn turns(
    algorithm: Algorithm,
    members: &[Member],
    sticky: bool,
    before: &Turns,
) -> Turns {
    let mut ids: Box<[u32]> = members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    let even = members.iter().all(|member| member.weight == 1);
    let order = match algorithm {
        Algorithm::RoundRobin | Algorithm::Random if even => {
            let ids = if sticky {
                ids
            } else {
                arrange(&before.ids, &ids)
            };
            return Turns {
                ids,
                ..Turns::default()
            };
        }
        Algorithm::RoundRobin | Algorithm::Random => spread(members),
        Algorithm::Maglev => maglev(members),
    };
    Turns {
        ids,
        listed: sticky && !order.is_empty(),
        order: order.into(),
    }
}

/// The ids, which rise, in an order that differs from that `before` in as few places as can be: one that is new takes
/// the place of one that is gone, and where no new one is left the last takes it.
fn arrange(before: &[u32], ids: &[u32]) -> Box<[u32]> {
    let mut kept = vec![false; ids.len()];
    let mut slots: Vec<Option<u32>> = before
        .iter()
        .map(|id| {
            let at = ids.binary_search(id).ok()?;
            (!std::mem::replace(&mut kept[at], true)).then_some(*id)
        })
        .collect();
    let beyond = slots.split_off(slots.len().min(ids.len()));
    slots.resize(ids.len(), None);
    let new = ids.iter().zip(kept).filter(|(_, kept)| !kept);
    let last = beyond.into_iter().flatten().rev();
    let mut movers = new.map(|(id, _)| *id).chain(last);
    let place = |slot: Option<u32>| slot.or_else(|| movers.next());
    slots.into_iter().filter_map(place).collect()
}

/// As many turns as the weights add up to, those of one backend as far apart as they can be: the smooth weighted round
/// robin that load balancers have. At each turn every backend gains its weight, and the one that gained most pays for
/// all.
fn spread(members: &[Member]) -> Vec<u32> {
    let sum: i64 = members.iter().map(|member| i64::from(member.weight)).sum();
    let mut gained = vec![0_i64; members.len()];
    let mut order = Vec::new();
    for _ in 0..sum {
        for (gained, member) in gained.iter_mut().zip(members) {
            *gained += i64::from(member.weight);
        }
        // The first of equals.
        let best = (0..members.len()).rev().max_by_key(|index| gained[*index]);
        let Some(best) = best else { break };
        gained[best] -= sum;
        order.push(members[best].id);
    }
    order
}

/// The table of Maglev (Eisenbud et al., NSDI 2016, section 3.4): each backend in turn takes the next free slot of its
/// own permutation, as often in a round as its weight says. It depends on addresses and weights alone.
fn maglev(members: &[Member]) -> Vec<u32> {
    if members.is_empty() {
        return Vec::new();
    }
    let size = table_size(members.len());
    let mut table = vec![0_u32; size as usize];
    let mut next: Vec<(u64, u64)> = members
        .iter()
        .map(|member| {
            let [offset, skip] = [0x6d, 0x73].map(|seed| hash(seed, &member.addr));
            (offset % u64::from(size), skip % u64::from(size - 1) + 1)
        })
        .collect();
    let mut free = size;
    while free > 0 {
        for ((position, skip), member) in next.iter_mut().zip(members) {
            for _ in 0..member.weight.min(free) {
                // No backend has the id 0: it marks what is free. The size is prime, so every slot is met.
                while table[*position as usize] != 0 {
                    *position = (*position + *skip) % u64::from(size);
                }
                table[*position as usize] = member.id;
                free -= 1;
            }
        }
    }
    table
}

fn table_size(members: usize) -> u32 {
    let fits = TABLES.iter().find(|(_, most)| members <= *most);
    fits.map_or(TABLES[0].0, |(size, _)| *size)
}

/// FNV-1a over the address and the port, scattered as MurmurHash3 does it at its end; both are in the public domain.
/// Part of what nodes of different versions must agree on: it may never change.
fn hash(seed: u8, addr: &IpPort) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(&[seed]);
    match addr.ip {
        IpAddr::V4(ip) => add(&ip.octets()),
        IpAddr::V6(ip) => add(&ip.octets()),
    }
    add(&addr.port.to_be_bytes());
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
