//! A full map refuses the new by its own name, keeps the old, and takes the new when there is room: each map.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use ebpf_abi::{Endpoint, Peer, maps, peer_mode};
use node_agent_model::{
    Applied, Capacity, Change, Desired, EndpointSlice, ObjectName, PeerRoutes, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, Snapshot, plan,
};

/// A map with room for what one object needs, and two objects that need it.
struct Case {
    map: &'static str,
    capacity: Capacity,
    /// The changes that make an object, and the one that removes it.
    object: fn(u8, bool) -> Vec<Change>,
}

fn capacity(set: fn(&mut Capacity)) -> Capacity {
    let mut capacity = Capacity::default();
    set(&mut capacity);
    capacity
}

fn address(number: u8, v6: bool) -> String {
    match v6 {
        true => format!("fd00:96::{number}"),
        false => format!("10.96.0.{number}"),
    }
}

/// A Service with one endpoint and one source range.
fn service_of(number: u8, there: bool, v6: bool) -> Vec<Change> {
    let name = ObjectName::new("default", format!("s{number}"));
    let [ip, vip, endpoint] = [number, 100 + number, 200 + number].map(|n| address(n, v6));
    let range = if v6 { "2001:db8::/32" } else { "192.0.2.0/24" };
    let service = Service {
        cluster_ips: vec![ip.parse().unwrap()],
        load_balancer_ips: vec![vip.parse().unwrap()],
        source_ranges: vec![range.parse().unwrap()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    };
    let slice = EndpointSlice {
        service: name.clone(),
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: vec![SliceEndpoint::at(endpoint.parse().unwrap())],
    };
    vec![
        Change::Service(name.clone(), there.then_some(service)),
        Change::EndpointSlice(name, there.then_some(slice)),
    ]
}

fn service4(number: u8, there: bool) -> Vec<Change> {
    service_of(number, there, false)
}

fn service6(number: u8, there: bool) -> Vec<Change> {
    service_of(number, there, true)
}

fn pod_of(number: u8, there: bool, v6: bool) -> Vec<Change> {
    let endpoint = Endpoint {
        ifindex: number.into(),
        ..Endpoint::default()
    };
    let ip = address(number, v6).parse().unwrap();
    vec![Change::Endpoint(ip, there.then_some(endpoint))]
}

fn pod4(number: u8, there: bool) -> Vec<Change> {
    pod_of(number, there, false)
}

fn pod6(number: u8, there: bool) -> Vec<Change> {
    pod_of(number, there, true)
}

fn node_of(number: u8, there: bool, prefix: &str) -> Vec<Change> {
    let peer = Peer {
        mode: peer_mode::DIRECT,
        underlay_addr: [number; 16],
        ..Peer::default()
    };
    let routes = PeerRoutes {
        peer,
        prefixes: vec![prefix.parse().unwrap()],
    };
    let name = format!("n{number}");
    vec![Change::Peer(name, there.then_some(routes))]
}

fn node4(number: u8, there: bool) -> Vec<Change> {
    node_of(number, there, &format!("10.244.{number}.0/24"))
}

fn node6(number: u8, there: bool) -> Vec<Change> {
    node_of(number, there, &format!("fd00:244:{number}::/64"))
}

fn cases() -> Vec<Case> {
    let case = |map, set: fn(&mut Capacity), object| Case {
        map,
        capacity: capacity(set),
        object,
    };
    vec![
        case(maps::FRONTEND4, |c| c.frontends4 = 2, service4),
        case(maps::FRONTEND6, |c| c.frontends6 = 2, service6),
        case(maps::RANGE4, |c| c.ranges4 = 1, service4),
        case(maps::RANGE6, |c| c.ranges6 = 1, service6),
        // Id 0 is never given.
        case(maps::SERVICE, |c| c.services = 2, service4),
        case(maps::SLOT, |c| c.slots = 1, service4),
        case(maps::BACKEND4, |c| c.backends4 = 2, service4),
        case(maps::BACKEND6, |c| c.backends6 = 2, service6),
        case(maps::ENDPOINT4, |c| c.endpoints4 = 1, pod4),
        case(maps::ENDPOINT6, |c| c.endpoints6 = 1, pod6),
        case(maps::ROUTE4, |c| c.routes4 = 1, node4),
        case(maps::ROUTE6, |c| c.routes6 = 1, node6),
        case(maps::PEER, |c| c.peers = 2, node4),
    ]
}

#[test]
fn each_full_map_refuses_the_new_keeps_the_old_and_takes_the_new_when_there_is_room() {
    for Case {
        map,
        capacity,
        object,
    } in cases()
    {
        let mut desired = Desired::new("here");
        let mut applied = Applied::restore(Snapshot::default(), capacity);
        let mut now = Duration::ZERO;
        let mut sync = |changes: Vec<Change>| {
            now += Duration::from_secs(2);
            for change in changes {
                desired.change(change);
            }
            let plan = plan(&mut desired, &mut applied, now);
            (plan, applied.held().clone())
        };
        let (first, held) = sync(object(1, true));
        assert_eq!(first.refused, [], "{map}");
        let (second, with_old) = sync(object(2, true));
        let refused: Vec<_> = second.refused.iter().map(|refusal| refusal.map).collect();
        assert_eq!(refused, [map]);
        let (third, still) = sync(Vec::new());
        assert_eq!(
            (third.refused.len(), third.ops),
            (1, vec![]),
            "{map}: again"
        );
        assert_eq!(still, with_old);
        assert!(!held.is_idle() && keeps(&still, &held), "{map}: {still:?}");
        sync(object(1, false));
        let (fourth, _) = sync(Vec::new());
        assert_eq!(fourth.refused, [], "{map}: there is room again");
        let (_, empty) = sync(object(2, false));
        assert!(empty.is_idle(), "{map}: {empty:?}");
    }
}

/// Whether everything that was in force still is.
fn keeps(now: &Snapshot, before: &Snapshot) -> bool {
    let services = before.services.iter();
    let mut services = services.map(|(id, service)| now.services.get(id) == Some(service));
    let slots = before.slots.iter();
    let mut slots = slots.map(|(slot, id)| now.slots.get(slot) == Some(id));
    let v4 = before.v4.frontends.iter();
    let mut v4 = v4.map(|(key, frontend)| now.v4.frontends.get(key) == Some(frontend));
    let v6 = before.v6.frontends.iter();
    let mut v6 = v6.map(|(key, frontend)| now.v6.frontends.get(key) == Some(frontend));
    services.all(|kept| kept)
        && slots.all(|kept| kept)
        && v4.all(|kept| kept)
        && v6.all(|kept| kept)
}
