//! Who reads the maps finds each service by its name.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use ebpf_abi::name_policy;
use node_agent_model::{
    Applied, Capacity, Change, Desired, MapOp, ObjectName, Protocol, Service, ServicePort,
    Snapshot, TrafficPolicy, plan,
};

fn web(policy: TrafficPolicy) -> Service {
    Service {
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        ports: vec![ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: None,
        }],
        internal_policy: policy,
        ..Service::default()
    }
}

#[test]
fn a_service_has_its_name_before_it_is_visible_and_until_it_is_gone() {
    let mut desired = Desired::new("n1");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    let name = ObjectName::new("kube-system", "kube-dns");
    desired.change(Change::Service(
        name.clone(),
        Some(web(TrafficPolicy::Local)),
    ));
    let ops = plan(&mut desired, &mut applied, Duration::ZERO).ops;
    let named = ops
        .iter()
        .position(|op| matches!(op, MapOp::ServiceName { .. }));
    let visible = ops
        .iter()
        .position(|op| matches!(op, MapOp::Service { .. }));
    assert!(named.unwrap() < visible.unwrap(), "{ops:?}");
    let (id, text) = applied.held().service_names.first_key_value().unwrap();
    assert!(applied.held().services.contains_key(id));
    let text = text.full();
    assert_eq!(
        (text.namespace(), text.name(), text.port()),
        ("kube-system", "kube-dns", "dns")
    );
    assert_eq!((text.protocol, text.policy), (17, name_policy::LOCAL));

    desired.change(Change::Service(name, None));
    let ops = plan(&mut desired, &mut applied, Duration::ZERO).ops;
    let gone = ops
        .iter()
        .position(|op| matches!(op, MapOp::Service { service: None, .. }));
    let unnamed = ops
        .iter()
        .position(|op| matches!(op, MapOp::ServiceName { name: None, .. }));
    assert!(gone.unwrap() < unnamed.unwrap(), "{ops:?}");
    assert!(applied.held().is_idle());
}

#[test]
fn an_agent_that_starts_over_maps_without_names_writes_them_and_nothing_else() {
    let mut desired = Desired::new("n1");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    let name = ObjectName::new("default", "web");
    desired.change(Change::Service(name, Some(web(TrafficPolicy::Cluster))));
    plan(&mut desired, &mut applied, Duration::ZERO);
    let mut unnamed = applied.held().clone();
    let names = std::mem::take(&mut unnamed.service_names);

    let mut restarted = Applied::restore(unnamed, Capacity::default());
    let ops = plan(&mut desired.clone(), &mut restarted, Duration::ZERO).ops;
    assert!(
        ops.iter()
            .all(|op| matches!(op, MapOp::ServiceName { name: Some(_), .. })),
        "{ops:?}"
    );
    assert_eq!(restarted.held().service_names, names);
}
