//! What a changed endpoint costs in slots: as many as changed, however many the service has.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use node_agent_model::{
    Algorithm, Applied, Capacity, Change, Desired, EndpointSlice, FamilyOp, MapOp, ObjectName,
    PodShare, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, Snapshot, plan,
};

const ENDPOINTS: u32 = 10_000;
const A_SLICE: u32 = 100;

/// A Service, its endpoints in EndpointSlices of a hundred.
struct World {
    desired: Desired,
    applied: Applied,
    now: Duration,
    endpoints: Vec<u32>,
}

/// What a plan wrote.
#[derive(Debug, Default, PartialEq)]
struct Cost {
    slots: usize,
    backends: usize,
    services: usize,
    others: usize,
}

impl World {
    fn new(service: Service) -> Self {
        let mut world = Self {
            desired: Desired::new("here"),
            applied: Applied::restore(Snapshot::default(), Capacity::default()),
            now: Duration::ZERO,
            endpoints: (0..ENDPOINTS).collect(),
        };
        let change = Change::Service(name("web"), Some(service));
        world.desired.change(change);
        for slice in 0..ENDPOINTS / A_SLICE {
            world.tell(slice);
        }
        world.plan();
        world
    }

    fn tell(&mut self, slice: u32) {
        let at = |index: u32| self.endpoints.len().min(index as usize);
        let (from, until) = (slice * A_SLICE, (slice + 1) * A_SLICE);
        let endpoints = &self.endpoints[at(from)..at(until)];
        let at = |number: &u32| {
            let first = Ipv4Addr::new(10, 128, 0, 1).to_bits();
            let addr = IpAddr::V4(Ipv4Addr::from_bits(first + number));
            let pod = Some(format!("web{number}-x"));
            SliceEndpoint {
                pod,
                ..SliceEndpoint::at(addr)
            }
        };
        let object = EndpointSlice {
            service: name("web"),
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints: endpoints.iter().map(at).collect(),
        };
        let change = Change::EndpointSlice(name(&format!("web-{slice}")), Some(object));
        self.desired.change(change);
    }

    fn push(&mut self, number: u32) {
        let slice = u32::try_from(self.endpoints.len()).unwrap() / A_SLICE;
        self.endpoints.push(number);
        self.tell(slice);
    }

    fn plan(&mut self) -> Cost {
        self.now += Duration::from_secs(2);
        let plan = plan(&mut self.desired, &mut self.applied, self.now);
        assert_eq!(plan.refused, []);
        let mut cost = Cost::default();
        for op in &plan.ops {
            match op {
                MapOp::Slots { backend_ids, .. } => cost.slots += backend_ids.len(),
                MapOp::Service { .. } => cost.services += 1,
                MapOp::V4(FamilyOp::Backend { .. }) => cost.backends += 1,
                _ => cost.others += 1,
            }
        }
        cost
    }

    fn slots(&self) -> usize {
        let service = self.applied.held().services.values().next().unwrap();
        service.slot_count as usize
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn web() -> Service {
    Service {
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    }
}

#[test]
fn a_replaced_endpoint_among_ten_thousand_costs_one_slot_and_two_backends() {
    let mut world = World::new(web());
    for round in 0..20 {
        let slice = round * 7919 % (ENDPOINTS / A_SLICE);
        world.endpoints[(slice * A_SLICE) as usize] = ENDPOINTS + round;
        world.tell(slice);
        let cost = Cost {
            slots: 1,
            backends: 2,
            ..Cost::default()
        };
        assert_eq!(world.plan(), cost, "round {round}");
    }
    assert_eq!(world.slots(), 10_000);
}

#[test]
fn an_endpoint_that_comes_or_goes_costs_one_slot_and_the_services_entry() {
    let mut world = World::new(web());
    let one = Cost {
        slots: 1,
        backends: 1,
        services: 1,
        others: 0,
    };
    world.endpoints.swap_remove(9_900);
    world.tell(99);
    assert_eq!(world.plan(), one);
    assert_eq!(world.slots(), 9_999);
    for new in 0..50 {
        world.push(ENDPOINTS + new);
        assert_eq!(world.plan(), one, "endpoint {new} more");
    }
}

#[test]
fn a_set_that_grows_one_by_one_is_written_anew_so_seldom_that_each_costs_a_few_slots() {
    let mut world = World::new(web());
    world.endpoints.truncate(1);
    for slice in 0..ENDPOINTS / A_SLICE {
        world.tell(slice);
    }
    world.plan();
    let mut slots = 0;
    for number in 1..2_000 {
        world.push(number);
        slots += world.plan().slots;
    }
    assert!(slots < 2_000 * 8, "{slots} slots for 2,000 endpoints");
}

#[test]
fn a_maglev_table_keeps_what_need_not_move() {
    let mut world = World::new(Service {
        algorithm: Some(Algorithm::Maglev),
        ..web()
    });
    world.endpoints[0] = ENDPOINTS;
    world.tell(0);
    let cost = world.plan();
    assert!(cost.slots < 65_521 / 8, "{cost:?}");
}

#[test]
fn most_of_a_set_is_switched_at_once_in_other_slots() {
    let mut world = World::new(web());
    let before = *world.applied.held().services.values().next().unwrap();
    for slice in 0..20 {
        for index in 0..A_SLICE {
            world.endpoints[(slice * A_SLICE + index) as usize] += 2 * ENDPOINTS;
        }
        world.tell(slice);
    }
    let cost = world.plan();
    assert_eq!((cost.slots, cost.services), (10_000, 1));
    let after = *world.applied.held().services.values().next().unwrap();
    let apart = after.slot_base >= before.slot_base + before.slot_count
        || after.slot_base + after.slot_count <= before.slot_base;
    assert!(apart, "{before:?} {after:?}");
}

/// Two backends of unequal weight have a hundred slots: few of them change, but all that a client sees.
#[test]
fn a_backend_that_two_of_unequal_weight_replace_is_switched_at_once_in_other_slots() {
    let mut world = World::new(Service {
        shares: vec![PodShare {
            pods: "web1".to_owned(),
            percent: 1,
        }],
        ..web()
    });
    let mut with = |endpoints: &[u32]| {
        world.endpoints = endpoints.to_vec();
        for slice in 0..ENDPOINTS / A_SLICE {
            world.tell(slice);
        }
        world.plan();
        *world.applied.held().services.values().next().unwrap()
    };
    let alone = with(&[0]);
    assert_eq!(alone.slot_count, 1);
    let both = with(&[1, 2]);
    assert_eq!(both.slot_count, 100);
    assert_ne!(both.slot_base, alone.slot_base, "clients still look there");
}
