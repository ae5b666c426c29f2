//! Which slots a service has: whose turn is when.
//!
//! Round robin goes over the slots one after the other, random takes any, and a Maglev table is looked up by the
//! client's hash. A backend's share is the number of its slots.

use std::net::SocketAddr;

use crate::Algorithm;

/// A backend that takes new connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Member {
    pub(crate) addr: SocketAddr,
    pub(crate) id: u32,
    /// Its share, in relation to the others'. Greater than zero.
    pub(crate) weight: u32,
}

/// What stands in the slots of a service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Turns {
    /// Backend ids: the members, if there are any, then the turns.
    pub(crate) slots: Vec<u32>,
    /// Number of members at the start that are no turns.
    pub(crate) members: u32,
}

/// Prime sizes of Maglev tables, each with the number of backends from which on the next one is taken: a hundred slots
/// a backend keep the shares within one percent (Maglev, section 5.3).
const TABLES: [(u32, usize); 3] = [(1021, 10), (16381, 163), (65521, usize::MAX)];

/// The members in the order of their addresses, the same on every node. `sticky`: the members are listed, so that a
/// program can tell whether a backend is one.
pub(crate) fn turns(algorithm: Algorithm, members: &[Member], sticky: bool) -> Turns {
    let mut ids: Vec<u32> = members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    let even = members.iter().all(|member| member.weight == 1);
    let order = match algorithm {
        Algorithm::RoundRobin | Algorithm::Random if even => {
            // Every member once, in rising order: the members are the turns.
            return Turns {
                slots: ids,
                members: 0,
            };
        }
        Algorithm::RoundRobin | Algorithm::Random => spread(members),
        Algorithm::Maglev => maglev(members),
    };
    let mut slots = if sticky { ids } else { Vec::new() };
    let listed = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    slots.extend(order);
    Turns {
        slots,
        members: listed,
    }
}

/// The number of slots that [`turns`] gives.
pub(crate) fn count(algorithm: Algorithm, weights: &[u32], sticky: bool) -> usize {
    let even = weights.iter().all(|weight| *weight == 1);
    let listed = if sticky { weights.len() } else { 0 };
    match algorithm {
        Algorithm::RoundRobin | Algorithm::Random if even => weights.len(),
        Algorithm::RoundRobin | Algorithm::Random => {
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            listed + usize::try_from(sum).unwrap_or(usize::MAX)
        }
        Algorithm::Maglev if weights.is_empty() => 0,
        Algorithm::Maglev => listed + table_size(weights.len()) as usize,
    }
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
fn hash(seed: u8, addr: &SocketAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(&[seed]);
    match addr {
        SocketAddr::V4(addr) => add(&addr.ip().octets()),
        SocketAddr::V6(addr) => add(&addr.ip().octets()),
    }
    add(&addr.port().to_be_bytes());
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(index, weight): (u32, &u32)| Member {
            addr: SocketAddr::new(
                [10, 244, (index / 200) as u8, (index % 200) as u8].into(),
                8080,
            ),
            id: 7 + index,
            weight: *weight,
        };
        (0..).zip(weights).map(member).collect()
    }

    fn shares(slots: &[u32]) -> BTreeMap<u32, usize> {
        let mut shares = BTreeMap::new();
        for id in slots {
            *shares.entry(*id).or_default() += 1;
        }
        shares
    }

    #[test]
    fn a_canary_gets_one_connection_in_twenty_and_never_two_in_a_row() {
        let turns = turns(Algorithm::RoundRobin, &members(&[1, 19]), false);
        assert_eq!(shares(&turns.slots), BTreeMap::from([(7, 1), (8, 19)]));
        let turns = super::turns(Algorithm::RoundRobin, &members(&[2, 3]), false).slots;
        assert!(turns.windows(2).all(|pair| pair != [7, 7]), "{turns:?}");
    }

    #[test]
    fn a_maglev_table_is_the_same_whatever_ids_a_node_gave() {
        let here = members(&[1; 5]);
        let mut there = here.clone();
        there
            .iter_mut()
            .for_each(|member| member.id = 90 - member.id);
        let [here, there] = [here, there].map(|m| turns(Algorithm::Maglev, &m, false).slots);
        let other: Vec<u32> = there.iter().map(|id| 90 - id).collect();
        assert_eq!(here, other);
    }

    #[test]
    fn a_maglev_table_is_even_and_keeps_most_clients_when_a_backend_goes() {
        let before = members(&[1; 10]);
        let mut after = before.clone();
        after.remove(3);
        let [before, after] = [before, after].map(|m| turns(Algorithm::Maglev, &m, false).slots);
        assert_eq!(before.len(), 1021);
        for (id, share) in shares(&before) {
            assert!((101..=103).contains(&share), "backend {id} has {share}");
        }
        let moved = before.iter().zip(&after);
        let moved = moved.filter(|(before, after)| **before != 10 && before != after);
        // A tenth must move; of the rest the paper finds a few percent.
        assert!(moved.clone().count() < 1021 / 10, "{} moved", moved.count());
    }

    proptest! {
        #[test]
        fn every_backend_gets_its_share_by_every_algorithm(
            weights in prop::collection::vec(1_u32..9, 0..40), sticky: bool, maglev: bool,
        ) {
            let algorithm = if maglev { Algorithm::Maglev } else { Algorithm::Random };
            let members = members(&weights);
            let turns = turns(algorithm, &members, sticky);
            prop_assert_eq!(turns.slots.len(), count(algorithm, &weights, sticky));
            let (listed, order) = turns.slots.split_at(turns.members as usize);
            prop_assert!(listed.is_sorted());
            let sum: u32 = weights.iter().sum();
            let shares = shares(order);
            for member in &members {
                let exact = order.len() as f64 * f64::from(member.weight) / f64::from(sum);
                let share = shares.get(&member.id).copied().unwrap_or_default() as f64;
                let off = (share - exact).abs();
                prop_assert!(off < 0.01 || (maglev && off <= f64::from(member.weight)), "{} for {}", share, exact);
            }
        }
    }
}
