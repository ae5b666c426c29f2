//! Names of peers, and destinations to which pods keep their address.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::time::Duration;

use ebpf_abi::{KEEPS_SOURCE, Peer, maps, peer_mode};
use ipnetwork::IpNetwork;
use node_agent_model::{
    Applied, Capacity, Change, Desired, FamilyOp, MapOp, PeerRoutes, Snapshot, plan,
};

fn node(prefix: &str) -> Option<PeerRoutes> {
    Some(PeerRoutes {
        peer: Peer {
            mode: peer_mode::DIRECT,
            ..Peer::default()
        },
        prefixes: vec![prefix.parse().unwrap()],
    })
}

fn prefixes(texts: &[&str]) -> BTreeSet<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn planned(desired: &mut Desired, applied: &mut Applied) -> Vec<MapOp> {
    let plan = plan(desired, applied, Duration::ZERO);
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
    plan.ops
}

#[test]
fn a_peer_has_its_name_before_it_is_counted_and_until_it_is_gone() {
    let mut desired = Desired::new("n1");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    desired.change(Change::Peer("n2".into(), node("10.244.2.0/24")));
    let ops = planned(&mut desired, &mut applied);
    assert!(
        matches!(ops[0], MapOp::PeerName { name: Some(_), .. }),
        "{ops:?}"
    );
    let (id, name) = applied.held().peer_names.first_key_value().unwrap();
    assert_eq!(name.name(), "n2");
    assert!(applied.held().peers.contains_key(id));
    // Another way to the same node changes no name: it goes on counting.
    desired.change(Change::Peer("n2".into(), node("10.244.3.0/24")));
    let ops = planned(&mut desired, &mut applied);
    assert!(
        !ops.iter().any(|op| matches!(op, MapOp::PeerName { .. })),
        "{ops:?}"
    );
    // An agent that starts again finds it.
    let mut restarted = Applied::restore(applied.held().clone(), Capacity::default());
    assert_eq!(planned(&mut desired.clone(), &mut restarted), []);
    desired.change(Change::Peer("n2".into(), None));
    let ops = planned(&mut desired, &mut applied);
    assert!(
        matches!(ops.last(), Some(MapOp::PeerName { name: None, .. })),
        "{ops:?}"
    );
    assert!(applied.held().is_idle());
}

#[test]
fn destinations_that_keep_the_source_follow_what_is_said_and_a_restart_changes_none() {
    let mut desired = Desired::new("n1");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    let say = |texts: &[&str]| Change::KeepSource(prefixes(texts));
    assert!(desired.change(say(&["10.0.0.0/8", "192.168.1.7/16", "fd00::/8"])));
    assert!(!desired.change(say(&["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"])));
    assert_eq!(planned(&mut desired, &mut applied).len(), 3);
    let held = applied.held();
    assert_eq!((held.v4.ranges.len(), held.v6.ranges.len()), (2, 1));
    assert!(
        held.v4
            .ranges
            .iter()
            .all(|key| key.service_id_be == KEEPS_SOURCE)
    );
    let mut restarted = Applied::restore(held.clone(), Capacity::default());
    assert_eq!(planned(&mut desired.clone(), &mut restarted), []);
    desired.change(say(&["10.0.0.0/8"]));
    let ops = planned(&mut desired, &mut applied);
    assert_eq!(ops.len(), 2);
    assert!(
        ops.iter().all(|op| matches!(
            op,
            MapOp::V4(FamilyOp::Range {
                admitted: false,
                ..
            }) | MapOp::V6(FamilyOp::Range {
                admitted: false,
                ..
            })
        )),
        "{ops:?}"
    );
    // An agent that is started with other words takes back what an earlier one wrote.
    let mut other = Applied::restore(applied.held().clone(), Capacity::default());
    let mut silent = Desired::new("n1");
    assert_eq!(planned(&mut silent, &mut other).len(), 1);
    assert!(other.held().v4.ranges.is_empty());
}

#[test]
fn what_does_not_fit_is_refused_and_comes_when_there_is_room() {
    let mut desired = Desired::new("n1");
    let capacity = Capacity {
        ranges4: 1,
        ..Capacity::default()
    };
    let mut applied = Applied::restore(Snapshot::default(), capacity);
    desired.change(Change::KeepSource(prefixes(&[
        "10.0.0.0/8",
        "172.16.0.0/12",
    ])));
    let refused = plan(&mut desired, &mut applied, Duration::ZERO).refused;
    assert_eq!((refused.len(), refused[0].map), (1, maps::RANGE4));
    assert_eq!(applied.held().v4.ranges.len(), 1);
    desired.change(Change::KeepSource(prefixes(&["172.16.0.0/12"])));
    // What goes still takes its place while this is planned.
    plan(&mut desired, &mut applied, Duration::ZERO);
    planned(&mut desired, &mut applied);
    let held: Vec<_> = applied
        .held()
        .v4
        .ranges
        .iter()
        .map(|key| key.addr.bytes)
        .collect();
    assert_eq!(held, [[172, 16, 0, 0]]);
}
