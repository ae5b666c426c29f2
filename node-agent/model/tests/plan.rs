//! Any history of changes: every single operation keeps the maps consistent, and the end is what the world says.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ebpf_abi::{Addr4, Addr6, Endpoint, Peer, backend_state, peer_mode};
use node_agent_model::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const NODE: &str = "here";

/// What a client of a frontend may meet.
type View = BTreeMap<(SocketAddr, u8), BTreeSet<SocketAddr>>;

#[derive(Debug)]
struct Agent {
    desired: Desired,
    applied: Applied,
    maps: Snapshot,
    now: Duration,
    /// Looks at the maps after each operation.
    careful: bool,
}

impl Agent {
    fn new(capacity: Capacity) -> Self {
        let desired = Desired::new(NODE);
        let applied = Applied::restore(Snapshot::default(), capacity);
        Self {
            desired,
            applied,
            maps: Snapshot::default(),
            now: Duration::ZERO,
            careful: true,
        }
    }

    fn change(&mut self, change: Change) {
        self.desired.change(change);
    }

    /// Plans and applies one operation after the other.
    fn sync(&mut self) -> Plan {
        self.now += Duration::from_millis(300);
        let plan = plan(&mut self.desired, &mut self.applied, self.now);
        let (old, new) = match self.careful {
            true => (sets(&self.maps), sets(self.applied.held())),
            false => Default::default(),
        };
        for op in &plan.ops {
            if self.careful {
                let before = self.maps.clone();
                self.maps.apply_one(op);
                check_step(&before, &self.maps, op);
                check_sets(&self.maps, [&old, &new], op);
            } else {
                self.maps.apply_one(op);
            }
        }
        assert_eq!(*self.applied.held(), self.maps);
        plan
    }

    fn restart(&mut self, world: &[Change]) -> Plan {
        self.desired = Desired::new(NODE);
        self.applied = Applied::restore(self.maps.clone(), Capacity::default());
        world.iter().for_each(|change| self.change(change.clone()));
        self.sync()
    }
}

fn check_step(before: &Snapshot, after: &Snapshot, op: &MapOp) {
    check_family::<Addr4>(before, after);
    check_family::<Addr6>(before, after);
    let ranges: BTreeMap<u32, u32> = after
        .services
        .values()
        .filter(|s| s.slot_count > 0)
        .map(|s| {
            let listed = s.slot_base - first_slot(s);
            (first_slot(s), s.slot_count + listed)
        })
        .collect();
    let mut end = 0;
    for (base, count) in &ranges {
        assert!(*base >= end, "two services share slots after {op:?}");
        end = base + count;
    }
}

/// Small as the sets here are, a client of a service meets the one before or the one after, at every step.
fn check_sets(maps: &Snapshot, known: [&Sets; 2], op: &MapOp) {
    for (id, set) in sets(maps) {
        let [old, new] = known.map(|sets| sets.get(&id));
        let whole = Some(&set) == old || Some(&set) == new;
        assert!(
            whole,
            "service {id} after {op:?}: {set:?}, not {old:?} or {new:?}"
        );
    }
}

/// By service id the ids of the backends.
type Sets = BTreeMap<u32, BTreeSet<u32>>;

fn sets(maps: &Snapshot) -> Sets {
    let ids = |service: &ebpf_abi::Service| {
        let slots = service.slot_base..service.slot_base + service.slot_count;
        slots.map(|slot| maps.slots[&slot]).collect()
    };
    let services = maps.services.iter();
    services.map(|(id, service)| (*id, ids(service))).collect()
}

/// Members that are listed for themselves lie before the turns.
fn first_slot(service: &ebpf_abi::Service) -> u32 {
    match service.member_count {
        0 => service.slot_base,
        _ => service.member_base,
    }
}

fn check_family<A: MapFamily>(before: &Snapshot, after: &Snapshot) {
    for frontend in A::half(after).frontends.values() {
        assert!(
            after.services.contains_key(&frontend.inside_id),
            "a frontend points at a service for clients inside"
        );
        let service = after
            .services
            .get(&frontend.service_id)
            .expect("a frontend points at a service");
        for slot in service.slot_base..service.slot_base + service.slot_count {
            let backend = A::half(after).backends[&after.slots[&slot]];
            assert_eq!(
                backend.state,
                backend_state::ACTIVE,
                "a visible slot holds an active backend"
            );
        }
    }
    for route in A::half(after).routes.values() {
        assert_ne!(
            after.peers[&route.peer_id].mode,
            peer_mode::NONE,
            "a route points at a peer"
        );
    }
    for (id, now) in &A::half(after).backends {
        let was = A::half(before)
            .backends
            .get(id)
            .copied()
            .unwrap_or_default();
        let changed_hands = (was.addr, was.port_be) != (now.addr, now.port_be)
            || (was.state == backend_state::FREE) != (now.state == backend_state::FREE);
        assert_eq!(
            now.epoch,
            was.epoch + u32::from(changed_hands),
            "epoch of backend {id}"
        );
    }
}

fn view(maps: &Snapshot) -> View {
    fn collect<A: MapFamily>(maps: &Snapshot, view: &mut View) {
        for (key, frontend) in &A::half(maps).frontends {
            let service = maps.services[&frontend.service_id];
            let slots = service.slot_base..service.slot_base + service.slot_count;
            let backends = slots.map(|slot| {
                let backend = A::half(maps).backends[&maps.slots[&slot]];
                SocketAddr::new(backend.addr.to_ip(), u16::from_be(backend.port_be))
            });
            let addr = SocketAddr::new(key.addr.to_ip(), u16::from_be(key.port_be));
            view.insert((addr, key.protocol), backends.collect());
        }
    }
    let mut view = View::new();
    collect::<Addr4>(maps, &mut view);
    collect::<Addr6>(maps, &mut view);
    view
}

/// Everything that the maps say of services, without ids. Backends that drain are left out: one that never took a
/// connection has none to drain, and no entry.
fn meaning(maps: &Snapshot) -> Vec<String> {
    fn set<A: MapFamily>(maps: &Snapshot, id: u32) -> String {
        let service = maps.services[&id];
        let slots = service.slot_base..service.slot_base + service.slot_count;
        let mut backends: Vec<_> = slots
            .map(|slot| {
                let backend = A::half(maps).backends[&maps.slots[&slot]];
                (backend.addr, backend.port_be, backend.state)
            })
            .collect();
        backends.sort();
        let members = service.member_base..service.member_base + service.member_count;
        let members: Vec<u32> = members.map(|slot| maps.slots[&slot]).collect();
        assert!(members.is_sorted(), "a program searches the members");
        let addr = |id: &u32| A::half(maps).backends[id].addr;
        let members: BTreeSet<A> = members.iter().map(addr).collect();
        let (flags, affinity) = (service.flags, service.affinity_seconds);
        format!("flags {flags} affinity {affinity} {members:?} {backends:?}")
    }
    fn collect<A: MapFamily>(maps: &Snapshot, out: &mut Vec<String>) {
        let half = A::half(maps);
        for (key, frontend) in &half.frontends {
            let (outside, inside) = (frontend.service_id, frontend.inside_id);
            let ranges = half.ranges.iter();
            let ranges = ranges.filter(|range| range.service_id_be == outside.to_be());
            let ranges: Vec<_> = ranges.map(|range| (range.prefix_len, range.addr)).collect();
            let sets = [outside, inside].map(|id| set::<A>(maps, id));
            out.push(format!(
                "{key:?} flags {} {sets:?} {ranges:?}",
                frontend.flags
            ));
        }
        let ids: BTreeSet<u32> = half
            .ranges
            .iter()
            .map(|range| range.service_id_be)
            .collect();
        let known = |id: &u32| maps.services.contains_key(&u32::from_be(*id));
        assert!(ids.iter().all(known), "a range belongs to a service");
    }
    let mut out = Vec::new();
    collect::<Addr4>(maps, &mut out);
    collect::<Addr6>(maps, &mut out);
    out
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn service(ips: &[&str], node_port: Option<u16>) -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        node_port,
    };
    Service {
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: vec![
            port("http", Protocol::Tcp, 80, node_port),
            port("dns", Protocol::Udp, 53, None),
        ],
        ..Service::default()
    }
}

fn slice(of: &str, endpoints: &[(&str, bool)]) -> EndpointSlice {
    let endpoint = |(addr, ready): &(&str, bool)| SliceEndpoint {
        ready: *ready,
        terminating: !ready,
        node: Some(NODE.to_owned()),
        ..SliceEndpoint::at(addr.parse().unwrap())
    };
    let port = |name: &str, protocol, port| SlicePort {
        name: name.to_owned(),
        protocol,
        port,
    };
    EndpointSlice {
        service: name(of),
        ports: vec![
            port("http", Protocol::Tcp, 8080),
            port("dns", Protocol::Udp, 5353),
        ],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn addrs(list: &[&str]) -> BTreeSet<SocketAddr> {
    list.iter().map(|addr| addr.parse().unwrap()).collect()
}

#[test]
fn a_change_of_one_service_touches_only_that_service() {
    let mut agent = Agent::new(Capacity::default());
    for index in 0..200_u8 {
        agent.change(Change::Service(
            name(&format!("s{index}")),
            Some(service(&[&format!("10.96.0.{index}")], None)),
        ));
        let addr = format!("10.244.1.{index}");
        agent.change(Change::EndpointSlice(
            name(&format!("s{index}-x")),
            Some(slice(&format!("s{index}"), &[(&addr, true)])),
        ));
    }
    agent.sync();
    agent.change(Change::EndpointSlice(
        name("s7-x"),
        Some(slice("s7", &[("10.244.1.7", true), ("10.244.2.7", true)])),
    ));
    let plan = agent.sync();
    // Two ports: a backend, its slots, the service's value.
    assert_eq!(plan.ops.len(), 6, "{:?}", plan.ops);
    let http = ("10.96.0.7:80".parse().unwrap(), 6);
    assert_eq!(
        view(&agent.maps)[&http],
        addrs(&["10.244.1.7:8080", "10.244.2.7:8080"])
    );
}

#[test]
fn an_object_that_comes_again_unchanged_plans_nothing() {
    let mut agent = Agent::new(Capacity::default());
    let changes = [
        Change::Service(name("a"), Some(service(&["10.96.0.1"], None))),
        Change::EndpointSlice(name("a-1"), Some(slice("a", &[("10.244.1.2", true)]))),
    ];
    changes
        .iter()
        .for_each(|change| agent.change(change.clone()));
    assert!(!agent.sync().ops.is_empty());
    assert!(
        !changes
            .into_iter()
            .any(|change| agent.desired.change(change))
    );
    assert_eq!(agent.sync().ops, []);
}

#[test]
fn a_terminating_backend_keeps_its_epoch_until_it_is_gone() {
    let mut agent = Agent::new(Capacity::default());
    agent.change(Change::Service(
        name("a"),
        Some(service(&["10.96.0.1"], None)),
    ));
    agent.change(Change::EndpointSlice(
        name("a-1"),
        Some(slice("a", &[("10.244.1.2", true), ("10.244.1.3", true)])),
    ));
    agent.sync();
    let find = |maps: &Snapshot| {
        let found = maps
            .v4
            .backends
            .values()
            .find(|b| b.addr.bytes == [10, 244, 1, 3] && b.port_be == 8080_u16.to_be());
        found.copied()
    };
    let before = find(&agent.maps).unwrap();
    agent.change(Change::EndpointSlice(
        name("a-1"),
        Some(slice("a", &[("10.244.1.2", true), ("10.244.1.3", false)])),
    ));
    agent.sync();
    let draining = find(&agent.maps).unwrap();
    assert_eq!(
        (draining.state, draining.epoch),
        (backend_state::TERMINATING, before.epoch)
    );
    agent.change(Change::EndpointSlice(
        name("a-1"),
        Some(slice("a", &[("10.244.1.2", true)])),
    ));
    agent.sync();
    assert_eq!(find(&agent.maps), None);
}

#[test]
fn a_pod_that_got_the_address_of_one_that_terminates_counts_in_its_place() {
    let http = ("10.96.0.1:80".parse().unwrap(), 6);
    // In one EndpointSlice or in two, in both orders.
    let (old, new) = (("10.244.1.2", false), ("10.244.1.2", true));
    for slices in [
        vec![vec![old, new]],
        vec![vec![old], vec![new]],
        vec![vec![new], vec![old]],
    ] {
        for new_is_ready in [true, false] {
            let mut agent = Agent::new(Capacity::default());
            agent.change(Change::Service(
                name("a"),
                Some(service(&["10.96.0.1"], None)),
            ));
            for (number, endpoints) in slices.iter().enumerate() {
                let mut slice = slice("a", endpoints);
                for endpoint in slice.endpoints.iter_mut().filter(|e| e.ready) {
                    endpoint.ready = new_is_ready;
                    endpoint.serving = new_is_ready;
                }
                agent.change(Change::EndpointSlice(
                    name(&format!("a-{number}")),
                    Some(slice),
                ));
            }
            agent.sync();
            // The old one is no last resort: what answers there now is not ready.
            let wanted = if new_is_ready {
                addrs(&["10.244.1.2:8080"])
            } else {
                addrs(&[])
            };
            assert_eq!(
                view(&agent.maps)[&http],
                wanted,
                "{slices:?}, ready: {new_is_ready}"
            );
            let states: Vec<_> = agent.maps.v4.backends.values().map(|b| b.state).collect();
            assert!(!states.contains(&backend_state::TERMINATING), "{slices:?}");
        }
    }
}

#[test]
fn a_full_map_refuses_the_new_and_keeps_the_old_until_there_is_room() {
    let capacity = Capacity {
        frontends4: 4,
        ..Capacity::default()
    };
    let mut agent = Agent::new(capacity);
    for (service_name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        agent.change(Change::Service(
            name(service_name),
            Some(service(&[ip], None)),
        ));
    }
    let plan = agent.sync();
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(
        (plan.refused[0].object.as_str(), plan.refused[0].map),
        ("default/c", ebpf_abi::maps::FRONTEND4)
    );
    assert_eq!(agent.maps.v4.frontends.len(), 4);
    agent.change(Change::Service(name("a"), None));
    agent.sync();
    assert!(agent.sync().refused.is_empty());
    assert!(view(&agent.maps).contains_key(&("10.96.0.3:80".parse().unwrap(), 6)));
}

#[test]
fn too_few_backend_ids_or_slots_leave_the_old_set_in_force() {
    for capacity in [
        Capacity {
            backends4: 4,
            ..Capacity::default()
        },
        Capacity {
            slots: 5,
            ..Capacity::default()
        },
    ] {
        let mut agent = Agent::new(capacity);
        agent.change(Change::Service(
            name("a"),
            Some(service(&["10.96.0.1"], None)),
        ));
        agent.change(Change::EndpointSlice(
            name("a-1"),
            Some(slice("a", &[("10.244.1.2", true)])),
        ));
        assert!(agent.sync().refused.is_empty());
        let more: Vec<String> = (2..8).map(|last| format!("10.244.1.{last}")).collect();
        let more: Vec<(&str, bool)> = more.iter().map(|addr| (addr.as_str(), true)).collect();
        agent.change(Change::EndpointSlice(name("a-1"), Some(slice("a", &more))));
        assert_eq!(agent.sync().refused.len(), 1);
        let http = ("10.96.0.1:80".parse().unwrap(), 6);
        assert_eq!(view(&agent.maps)[&http], addrs(&["10.244.1.2:8080"]));
    }
}

#[test]
fn a_peer_that_takes_over_a_prefix_is_routed_to_without_a_gap() {
    let mut agent = Agent::new(Capacity::default());
    let peer = |last: u8| {
        let mut underlay_addr = [0; 16];
        underlay_addr[..4].copy_from_slice(&[192, 0, 2, last]);
        let peer = Peer {
            mode: peer_mode::DIRECT,
            underlay_addr,
            underlay_family: 2,
            ..Peer::default()
        };
        Some(PeerRoutes {
            peer,
            prefixes: vec![
                "10.244.2.0/24".parse().unwrap(),
                "fd00:10:244:2::/64".parse().unwrap(),
            ],
        })
    };
    agent.change(Change::Peer("b".to_owned(), peer(2)));
    // Its name, itself, and two routes.
    assert_eq!(agent.sync().ops.len(), 4);
    agent.change(Change::Peer("b".to_owned(), None));
    agent.change(Change::Peer("c".to_owned(), peer(3)));
    agent.sync();
    let route = agent.maps.v4.routes.values().next().unwrap();
    assert_eq!(agent.maps.peers[&route.peer_id].underlay_addr[3], 3);
    agent.change(Change::Peer("c".to_owned(), None));
    agent.sync();
    assert!(agent.maps.is_idle());
}

#[test]
fn maps_that_disagree_with_us_are_repaired() {
    let mut agent = Agent::new(Capacity::default());
    agent.change(Change::Service(
        name("a"),
        Some(service(&["10.96.0.1", "fd00::1"], None)),
    ));
    agent.change(Change::EndpointSlice(
        name("a-1"),
        Some(slice("a", &[("10.244.1.2", true)])),
    ));
    agent.change(Change::Endpoint(
        "10.244.1.2".parse().unwrap(),
        Some(Endpoint {
            ifindex: 7,
            ..Endpoint::default()
        }),
    ));
    agent.sync();
    let good = view(&agent.maps);
    agent.maps.v4.frontends.pop_first();
    agent.maps.services.remove(&2);
    agent.maps.v4.endpoints.clear();
    agent
        .maps
        .services
        .insert(900, ebpf_abi::Service::default());
    agent.applied.resync(agent.maps.clone());
    let plan = plan(&mut agent.desired, &mut agent.applied, agent.now);
    plan.ops.iter().for_each(|op| agent.maps.apply_one(op));
    assert_eq!(plan.ops.len(), 5, "{:?}", plan.ops);
    assert_eq!(view(&agent.maps), good);
    assert_eq!(
        agent.maps.v4.endpoints.len(),
        2,
        "the pod's and the ClusterIP"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Shape>),
    Slice(u8, u8, Option<Vec<(u8, bool, bool)>>),
    NodeAddress(bool),
    Zone(u8),
    Sync,
    Restart,
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

/// What differs from Service to Service.
#[derive(Clone, Debug)]
struct Shape {
    dual: bool,
    node_port: bool,
    vip: bool,
    ranges: u8,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    affinity: bool,
    algorithm: Option<Algorithm>,
    share: Option<u8>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let algorithm = prop_oneof![
        16 => Just(None),
        8 => Just(Some(Algorithm::RoundRobin)),
        8 => Just(Some(Algorithm::Random)),
        1 => Just(Some(Algorithm::Maglev)),
    ];
    let balance = (any::<bool>(), algorithm, prop::option::of(0_u8..=100));
    (flags, 0_u8..3, policy(), policy(), balance).prop_map(
        |((dual, node_port, vip), ranges, internal, external, balance)| Shape {
            dual,
            node_port,
            vip,
            ranges,
            internal,
            external,
            affinity: balance.0,
            algorithm: balance.1,
            share: balance.2,
        },
    )
}

fn hints(names: &[&str], pick: u8) -> Vec<String> {
    let name = names.get(usize::from(pick));
    name.map(|name| (*name).to_owned()).into_iter().collect()
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = prop::collection::vec((0_u8..6, any::<bool>(), any::<bool>()), 0..6);
    prop_oneof![
        3 => (0_u8..4, prop::option::weighted(0.8, shape()))
            .prop_map(|(index, service)| Step::Service(index, service)),
        6 => (0_u8..4, 0_u8..2, prop::option::weighted(0.8, endpoints))
            .prop_map(|(of, index, endpoints)| Step::Slice(of, index, endpoints)),
        1 => any::<bool>().prop_map(Step::NodeAddress),
        1 => (0_u8..3).prop_map(Step::Zone),
        4 => Just(Step::Sync),
        1 => Just(Step::Restart),
    ]
}

fn shaped(index: u8, shape: &Shape) -> Service {
    let (v4, v6) = (format!("10.96.0.{index}"), format!("fd00:96::{index}"));
    let ips: &[&str] = if shape.dual { &[&v4, &v6] } else { &[&v4] };
    let node_port = shape.node_port.then_some(30000 + u16::from(index));
    let (vip4, vip6) = (format!("203.0.113.{index}"), format!("2001:db8:1::{index}"));
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let vips: &[&str] = if shape.vip { &[&vip4, &vip6] } else { &[] };
    let ranges = ["192.0.2.9/24", "2001:db8::/32"];
    Service {
        load_balancer_ips: parse(vips),
        source_ranges: ranges[..usize::from(shape.ranges)]
            .iter()
            .map(|range| range.parse().unwrap())
            .collect(),
        internal_policy: shape.internal,
        external_policy: shape.external,
        affinity_seconds: if shape.affinity { 10 } else { 0 },
        algorithm: shape.algorithm,
        shares: shape
            .share
            .map(|percent| PodShare {
                pods: "canary".to_owned(),
                percent,
            })
            .into_iter()
            .collect(),
        ..service(ips, node_port)
    }
}

/// The changes that make this step, and the key under which the world remembers them.
fn changes(step: &Step) -> Vec<(String, Change)> {
    let change = match step {
        Step::Service(index, wanted) => Change::Service(
            name(&format!("s{index}")),
            wanted.as_ref().map(|shape| shaped(*index, shape)),
        ),
        Step::Slice(of, index, endpoints) => Change::EndpointSlice(
            name(&format!("s{of}-{index}")),
            endpoints.as_ref().map(|endpoints| {
                let mut slice = slice(&format!("s{of}"), &[]);
                slice.endpoints = endpoints
                    .iter()
                    .map(|(last, ready, v6)| SliceEndpoint {
                        ready: *ready,
                        serving: *ready || last % 2 == 0,
                        terminating: !ready && last % 3 != 0,
                        node: Some(if last % 2 == 0 { NODE } else { "there" }.to_owned()),
                        pod: Some(if last % 3 == 0 { "canary-1" } else { "web-1" }.to_owned()),
                        zone_hints: hints(&["east", "west"], last / 2 % 2),
                        ..SliceEndpoint::at(
                            if *v6 {
                                format!("fd00:244::{last}")
                            } else {
                                format!("10.244.0.{last}")
                            }
                            .parse()
                            .unwrap(),
                        )
                    })
                    .collect();
                slice
            }),
        ),
        Step::NodeAddress(v6) => {
            let ips: &[&str] = if *v6 {
                &["192.0.2.1", "2001:db8::1"]
            } else {
                &["192.0.2.1"]
            };
            Change::NodeAddresses(ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect())
        }
        Step::Zone(zone) => Change::Zone(hints(&["east", "west"], *zone).pop()),
        Step::Sync | Step::Restart => return Vec::new(),
    };
    let key = match &change {
        Change::Service(name, _) => format!("service {name}"),
        Change::EndpointSlice(name, _) => format!("slice {name}"),
        Change::Zone(_) => "zone".to_owned(),
        _ => "other".to_owned(),
    };
    vec![(key, change)]
}

/// Applies the steps one after the other, as an agent does that runs; the changes that are in force in the end.
fn live(agent: &mut Agent, steps: &[Step]) -> Vec<Change> {
    let mut world: BTreeMap<String, Change> = BTreeMap::new();
    for step in steps {
        for (key, change) in changes(step) {
            agent.change(change.clone());
            world.insert(key, change);
        }
        match step {
            Step::Sync => {
                agent.sync();
            }
            Step::Restart => {
                agent.sync();
                let world: Vec<_> = world.values().cloned().collect();
                let plan = agent.restart(&world);
                assert_eq!(
                    plan.ops,
                    vec![],
                    "a restart in an unchanged world plans nothing"
                );
            }
            _ => {}
        }
    }
    agent.sync();
    world.into_values().collect()
}

/// The maps of an agent that starts in this world, whose objects come in the reverse order.
fn started(world: &[Change]) -> Agent {
    let mut fresh = Agent::new(Capacity::default());
    fresh.careful = false;
    world
        .iter()
        .rev()
        .for_each(|change| fresh.change(change.clone()));
    fresh.sync();
    fresh
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn every_history_leads_to_the_same_maps_by_consistent_steps(steps in prop::collection::vec(step(), 1..100)) {
        let mut agent = Agent::new(Capacity::default());
        let world = live(&mut agent, &steps);
        prop_assert_eq!(meaning(&agent.maps), meaning(&started(&world).maps));

        // Everything changes while the agent is away.
        let plan = agent.restart(&[]);
        prop_assert_eq!(plan.refused, vec![]);
        prop_assert!(agent.maps.is_idle(), "{:?}", agent.maps);
    }
}

#[test]
fn a_hundred_thousand_events_lead_to_exactly_the_maps_of_a_fresh_start() {
    let mut runner = TestRunner::deterministic();
    let history = prop::collection::vec(step(), 200);
    let mut events = 0;
    while events < 100_000 {
        let steps = history.new_tree(&mut runner).unwrap().current();
        events += steps.iter().map(|step| changes(step).len()).sum::<usize>();
        let mut agent = Agent::new(Capacity::default());
        agent.careful = false;
        let world = live(&mut agent, &steps);
        let (lived, fresh) = (meaning(&agent.maps), meaning(&started(&world).maps));
        assert!(
            lived == fresh,
            "after {steps:#?}:\n{lived:#?}\nfresh: {fresh:#?}"
        );
    }
}
