//! What load balancers are told about this node's endpoints.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use node_agent_model::{
    Applied, Capacity, Change, Desired, EndpointSlice, HealthCheck, ObjectName, Service,
    SliceEndpoint, Snapshot, plan,
};

fn name() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn service(port: Option<u16>) -> Change {
    let service = Service {
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        health_check_node_port: port,
        ..Service::default()
    };
    Change::Service(name(), Some(service))
}

/// Endpoints as `(address, node, ready)`.
fn slice(slice: &str, endpoints: &[(&str, &str, bool)]) -> Change {
    let endpoint = |&(addr, node, ready): &(&str, &str, bool)| SliceEndpoint {
        ready,
        serving: true,
        terminating: !ready,
        node: Some(node.to_owned()),
        ..SliceEndpoint::at(addr.parse().unwrap())
    };
    let slice_name = ObjectName::new("shop", slice);
    let slice = EndpointSlice {
        service: name(),
        ports: Vec::new(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    Change::EndpointSlice(slice_name, Some(slice))
}

#[test]
fn ready_endpoints_of_this_node_are_counted_once_an_address() {
    let mut desired = Desired::new("here");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    let mut after = |change: Change| {
        desired.change(change);
        plan(&mut desired, &mut applied, Duration::ZERO);
        desired.take_health_checks()
    };
    let check = |port, local_endpoints| {
        let check = HealthCheck {
            port,
            local_endpoints,
        };
        vec![(name(), Some(check))]
    };
    assert_eq!(after(service(Some(32000))), check(32000, 0));
    let endpoints = [
        ("10.244.1.2", "here", true),
        ("10.244.1.3", "here", false),
        ("10.244.2.2", "there", true),
    ];
    assert_eq!(after(slice("web-a", &endpoints)), check(32000, 1));
    let again = [("10.244.1.2", "here", true), ("10.244.1.4", "here", true)];
    assert_eq!(after(slice("web-b", &again)), check(32000, 2));
    // Nothing changed: nothing is asked again.
    assert_eq!(after(slice("web-b", &again)), []);
    assert_eq!(after(service(None)), [(name(), None)]);
    assert_eq!(after(Change::Service(name(), None)), [(name(), None)]);
}

#[test]
fn a_change_is_not_told_before_it_is_planned() {
    let mut desired = Desired::new("here");
    desired.change(service(Some(32000)));
    assert_eq!(desired.take_health_checks(), []);
}
