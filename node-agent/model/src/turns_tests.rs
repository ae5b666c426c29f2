//! Shares, Maglev tables, and what stays in its place.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    let member = |(index, weight): (u32, &u32)| Member {
        addr: IpPort {
            ip: [10, 244, (index / 200) as u8, (index % 200) as u8].into(),
            port: 8080,
        },
        id: 7 + index,
        weight: *weight,
    };
    (0..).zip(weights).map(member).collect()
}

fn fresh(algorithm: Algorithm, members: &[Member], sticky: bool) -> Turns {
    turns(algorithm, members, sticky, &Turns::default())
}

fn slots(algorithm: Algorithm, members: &[Member]) -> Vec<u32> {
    fresh(algorithm, members, false).slots().collect()
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
    let turns = slots(Algorithm::RoundRobin, &members(&[1, 19]));
    assert_eq!(shares(&turns), BTreeMap::from([(7, 1), (8, 19)]));
    let turns = slots(Algorithm::RoundRobin, &members(&[2, 3]));
    assert!(turns.windows(2).all(|pair| pair != [7, 7]), "{turns:?}");
}

#[test]
fn a_maglev_table_is_the_same_whatever_ids_a_node_gave() {
    let here = members(&[1; 5]);
    let mut there = here.clone();
    there
        .iter_mut()
        .for_each(|member| member.id = 90 - member.id);
    let [here, there] = [here, there].map(|m| slots(Algorithm::Maglev, &m));
    let other: Vec<u32> = there.iter().map(|id| 90 - id).collect();
    assert_eq!(here, other);
}

#[test]
fn a_maglev_table_is_even_and_keeps_most_clients_when_a_backend_goes() {
    let before = members(&[1; 10]);
    let mut after = before.clone();
    after.remove(3);
    let [before, after] = [before, after].map(|m| slots(Algorithm::Maglev, &m));
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
        let turns = fresh(algorithm, &members, sticky);
        let slots: Vec<u32> = turns.slots().collect();
        prop_assert_eq!(slots.len(), turns.len() as usize);
        prop_assert_eq!(&Turns::read(&slots, turns.listed()), &turns);
        let (listed, order) = slots.split_at(turns.listed() as usize);
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

/// A set of ids as members whose turns are themselves.
fn set(ids: &BTreeSet<u32>) -> Vec<Member> {
    let mut members = members(&vec![1; ids.len()]);
    let ids = members.iter_mut().zip(ids);
    ids.for_each(|(member, id)| member.id = *id);
    members
}

#[test]
fn a_backend_that_takes_anothers_place_is_written_into_its_slot_alone() {
    let before = fresh(Algorithm::RoundRobin, &set(&(1..=6).collect()), false);
    let replaced = set(&BTreeSet::from([1, 2, 9, 4, 5, 6]));
    let after = turns(Algorithm::RoundRobin, &replaced, false, &before);
    assert_eq!(*after.ids, [1, 2, 9, 4, 5, 6]);
    let fewer = set(&BTreeSet::from([1, 9, 4, 5, 6]));
    let fewer = turns(Algorithm::RoundRobin, &fewer, false, &after);
    assert_eq!(*fewer.ids, [1, 6, 9, 4, 5], "the last fills the gap");
    let more = set(&BTreeSet::from([1, 3, 9, 4, 5, 6]));
    let more = turns(Algorithm::Random, &more, false, &fewer);
    assert_eq!(*more.ids, [1, 6, 9, 4, 5, 3], "the new one comes last");
}

proptest! {
    #[test]
    fn a_changed_set_differs_in_no_more_slots_than_backends_changed(
        before in prop::collection::btree_set(1_u32..60, 0..40),
        after in prop::collection::btree_set(1_u32..60, 0..40),
        seed in prop::collection::btree_set(1_u32..60, 0..40),
    ) {
        // Not in rising order any more.
        let earlier = fresh(Algorithm::RoundRobin, &set(&seed), false);
        let earlier = turns(Algorithm::RoundRobin, &set(&before), false, &earlier);
        let later = turns(Algorithm::RoundRobin, &set(&after), false, &earlier);
        let ids: BTreeSet<u32> = later.slots().collect();
        prop_assert_eq!(&ids, &after);
        prop_assert_eq!(later.len() as usize, after.len());
        let changes = later.changes(&earlier);
        prop_assert!(changes.slots <= changes.gone.len(), "{earlier:?} {later:?}");
        prop_assert!(changes.gone.iter().eq(before.difference(&after)));
        prop_assert!(changes.new.iter().eq(after.difference(&before)));
    }
}
