//! Plans into real maps and back, and the collection of connections that are over.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ebpf_abi::{
    Addr4, Addr6, Address, Backend, Config, ConnKey, Endpoint, Frontend, FrontendKey, Peer, Route,
    RouteKey, Service, conn_flag, maps as names,
};
use ebpf_packet::{ConnState, Inserted};
use node_agent_maps::{Dataplane, MapFamily, Options, Timeouts};
use node_agent_model::{FamilyOp, MapOp, MapSink, Snapshot};
use tests_testkit::{Bpffs, is_root, skip};

const SECOND: u64 = 1_000_000_000;

fn open(bpffs: &Bpffs) -> Dataplane {
    let sizes = [
        (names::SLOT, 1024),
        (names::CONN4, 4096),
        (names::CONN6, 4096),
        (names::ENDPOINT4, 16),
        (names::ROUTE4, 16),
    ];
    let options = Options {
        max_entries: BTreeMap::from(sizes),
        log: false,
    };
    Dataplane::open(&bpffs.pin_dir(), &options).expect("the object loads")
}

fn v4(last: u8) -> Addr4 {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn v6(last: u16) -> Addr6 {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()
}

fn endpoint<A>(addr: A, ifindex: u32) -> FamilyOp<A> {
    FamilyOp::Endpoint {
        addr,
        endpoint: Some(Endpoint {
            ifindex,
            ..Endpoint::default()
        }),
    }
}

/// Every kind of operation, of one family.
fn family_ops<A: Address>(addr: A, bits: u32) -> Vec<FamilyOp<A>> {
    let key = FrontendKey {
        addr,
        port_be: 80_u16.to_be(),
        protocol: 6,
        pad: 0,
    };
    let backend = Backend {
        addr,
        port_be: 8080_u16.to_be(),
        state: 1,
        epoch: 7,
    };
    vec![
        FamilyOp::Backend { id: 3, backend },
        FamilyOp::Frontend {
            key,
            frontend: Some(Frontend {
                service_id: 9,
                inside_id: 8,
                flags: 0,
            }),
        },
        endpoint(addr, 4),
        FamilyOp::Route {
            key: RouteKey {
                prefix_len: bits,
                addr,
            },
            route: Some(Route { peer_id: 2 }),
        },
    ]
}

fn plan() -> Vec<MapOp> {
    let peer = Peer {
        mtu: 1450,
        mode: 1,
        ..Peer::default()
    };
    let service = Service {
        slot_base: 10,
        slot_count: 3,
        ..Service::default()
    };
    let mut ops = vec![
        MapOp::Config(Box::new(Config {
            uplink_ifindex: 2,
            vni: 1,
            ..Config::default()
        })),
        MapOp::Slots {
            base: 10,
            backend_ids: vec![3, 4, 5],
        },
        MapOp::Service {
            id: 9,
            service: Some(service),
        },
        MapOp::Peer {
            id: 2,
            peer: Box::new(peer),
        },
    ];
    ops.extend(family_ops(v4(1), 32).into_iter().map(MapOp::V4));
    ops.extend(family_ops(v6(1), 128).into_iter().map(MapOp::V6));
    ops
}

fn removal() -> Vec<MapOp> {
    fn of_family<A: Address>(addr: A, bits: u32) -> Vec<FamilyOp<A>> {
        let key = FrontendKey {
            addr,
            port_be: 80_u16.to_be(),
            protocol: 6,
            pad: 0,
        };
        vec![
            FamilyOp::Frontend {
                key,
                frontend: None,
            },
            FamilyOp::Backend {
                id: 3,
                backend: Backend::default(),
            },
            FamilyOp::Endpoint {
                addr,
                endpoint: None,
            },
            FamilyOp::Route {
                key: RouteKey {
                    prefix_len: bits,
                    addr,
                },
                route: None,
            },
        ]
    }
    let mut ops = vec![
        MapOp::Config(Box::default()),
        MapOp::Service {
            id: 9,
            service: None,
        },
        MapOp::Slots {
            base: 10,
            backend_ids: vec![0, 0, 0],
        },
        MapOp::Peer {
            id: 2,
            peer: Box::default(),
        },
    ];
    ops.extend(of_family(v4(1), 32).into_iter().map(MapOp::V4));
    ops.extend(of_family(v6(1), 128).into_iter().map(MapOp::V6));
    ops
}

#[test]
fn a_plan_is_read_back_as_it_was_written() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let mut maps = open(&bpffs).maps().clone();
    assert_eq!(
        maps.snapshot().unwrap(),
        Snapshot::default(),
        "fresh maps are empty"
    );

    maps.apply(&plan()).unwrap();
    let snapshot = maps.snapshot().unwrap();
    assert_eq!(snapshot.config.uplink_ifindex, 2);
    assert_eq!(snapshot.slots, BTreeMap::from([(10, 3), (11, 4), (12, 5)]));
    assert_eq!(snapshot.services[&9].slot_count, 3);
    assert_eq!(snapshot.peers[&2].mtu, 1450);
    assert_eq!(snapshot.v4.backends[&3].epoch, 7);
    assert_eq!(snapshot.v4.endpoints[&v4(1)].ifindex, 4);
    assert_eq!(snapshot.v6.endpoints[&v6(1)].ifindex, 4);
    let route = RouteKey {
        prefix_len: 128,
        addr: v6(1),
    };
    assert_eq!(snapshot.v6.routes[&route].peer_id, 2);
    assert_eq!(snapshot.v4.frontends.len() + snapshot.v6.frontends.len(), 2);

    maps.apply(&removal()).unwrap();
    assert_eq!(
        maps.snapshot().unwrap(),
        Snapshot::default(),
        "nothing is left"
    );
    maps.apply(&removal())
        .expect("what is gone can be removed again");
}

#[test]
fn neighbouring_operations_take_one_system_call() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let mut maps = open(&bpffs).maps().clone();
    let service = Some(Service::default());
    let ops: Vec<_> = (1..=1000)
        .map(|id| MapOp::Service { id, service })
        .collect();
    maps.apply(&ops).unwrap();
    let count = |name| {
        maps.operations()
            .into_iter()
            .find(|(map, _)| *map == name)
            .unwrap()
            .1
    };
    assert_eq!(
        (count(names::SERVICE).updates, count(names::SERVICE).calls),
        (1000, 1)
    );
    assert_eq!(maps.service.entries().unwrap().len(), 1000);
    let usage = maps
        .usage()
        .unwrap()
        .into_iter()
        .find(|usage| usage.map == names::SERVICE)
        .unwrap();
    assert_eq!(
        (usage.entries, usage.capacity),
        (1000, names::SERVICE_SIZE as u32)
    );

    // Every second one is missing already.
    let half = (1..=1000)
        .step_by(2)
        .map(|id| MapOp::Service { id, service: None });
    maps.clone().apply(&half.collect::<Vec<_>>()).unwrap();
    let all: Vec<_> = (1..=1000)
        .map(|id| MapOp::Service { id, service: None })
        .collect();
    maps.clone().apply(&all).unwrap();
    assert_eq!(count(names::SERVICE).deletes, 1000);
    assert!(maps.service.entries().unwrap().is_empty());
    assert!(
        maps.operations()
            .iter()
            .all(|(map, done)| *map == names::SERVICE || done.total() == 0)
    );
}

#[test]
fn a_full_map_tells_which_operation_did_not_fit() {
    if !is_root() {
        return skip("needs root");
    }
    let bpffs = Bpffs::new().unwrap();
    let mut maps = open(&bpffs).maps().clone();
    let mut ops = vec![MapOp::Config(Box::default())];
    ops.extend((0..20).map(|n| MapOp::V4(endpoint(v4(n), 1))));
    let error = maps.apply(&ops).unwrap_err();
    assert_eq!(
        (error.map, error.index, error.full),
        (names::ENDPOINT4, Some(17), true)
    );
    assert_eq!(
        maps.v4.endpoint.entries().unwrap().len(),
        16,
        "what fitted is in force"
    );

    let route = |n| FamilyOp::Route {
        key: RouteKey {
            prefix_len: 32,
            addr: v4(n),
        },
        route: Some(Route { peer_id: 1 }),
    };
    let ops: Vec<_> = (0..20).map(|n| MapOp::V4(route(n))).collect();
    let error = maps.apply(&ops).unwrap_err();
    assert_eq!(
        (error.map, error.index, error.full),
        ("route4_v1", Some(16), true)
    );
}

/// A connection that was last seen at `last_seen_s`.
fn insert<A: MapFamily>(
    dataplane: &Dataplane,
    client: A,
    server: A,
    port: u16,
    protocol: u8,
    last_seen_s: u64,
) -> ConnKey<A> {
    let key = ConnKey {
        src: client,
        dst: server,
        src_port_be: port,
        dst_port_be: 80,
        protocol,
        pad: [0; 3],
    };
    let target = ConnKey {
        dst_port_be: 8080,
        ..key
    };
    let state = ConnState {
        last_seen_ns: last_seen_s * SECOND,
        flags: conn_flag::SERVICE | conn_flag::OPEN | conn_flag::ANSWERED | conn_flag::CONFIRMED,
        protocol: protocol.into(),
        ..ConnState::default()
    };
    let conns = &A::of(dataplane.maps()).conns;
    let inserted = conns.insert(&key, &target, &state).unwrap();
    assert_eq!(inserted, Inserted::Done, "room for the connection");
    key
}

fn collection_keeps_what_is_in_use<A: MapFamily>(client: A, server: A) {
    let bpffs = Bpffs::new().unwrap();
    let dataplane = open(&bpffs);
    let maps = A::of(dataplane.maps());
    for port in 1..=1000 {
        insert(&dataplane, client, server, port, 17, 100);
    }
    for port in 1001..=1100 {
        insert(&dataplane, client, server, port, 17, 150);
    }
    let tcp = insert(&dataplane, client, server, 1, 6, 100);

    let report = maps.collect(161 * SECOND, &Timeouts::default()).unwrap();
    assert_eq!(
        (report.entries, report.deleted, report.capacity),
        (1101, 1000, 4096)
    );
    let again = maps.collect(161 * SECOND, &Timeouts::default()).unwrap();
    assert_eq!((again.entries, again.deleted), (101, 0));
    let (kept, is_reply) = maps.conns.get(&tcp).unwrap();
    assert_eq!((kept.original, is_reply), (tcp, false));
    let (kept, is_reply) = maps.conns.get(&kept.reply).unwrap();
    assert_eq!((kept.original, is_reply), (tcp, true));

    // What was taken out may come again, in a slot that is used again.
    for port in 1..=1000 {
        insert(&dataplane, client, server, port, 17, 161);
    }
    assert_eq!(maps.conns.count(), 1101);
    assert!(maps.conns.remove(&tcp).unwrap());
    assert!(!maps.conns.remove(&tcp).unwrap());
    let report = maps.collect(10_000 * SECOND, &Timeouts::default()).unwrap();
    assert_eq!((report.entries, report.deleted), (1100, 1100));
    assert_eq!(maps.conns.count(), 0);
}

#[test]
fn collection_keeps_what_is_in_use_v4() {
    if !is_root() {
        return skip("needs root");
    }
    collection_keeps_what_is_in_use(v4(1), v4(2));
}

#[test]
fn collection_keeps_what_is_in_use_v6() {
    if !is_root() {
        return skip("needs root");
    }
    collection_keeps_what_is_in_use(v6(1), v6(2));
}
