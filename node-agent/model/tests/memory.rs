//! What the model takes at the size of a large cluster.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use node_agent_model::{
    Applied, Capacity, Change, Desired, EndpointSlice, ObjectName, Protocol, Service, ServicePort,
    SliceEndpoint, SlicePort, Snapshot, plan,
};

const SERVICES: u32 = 30_000;
const MIB: f64 = 1024.0;

/// Resident memory that belongs to no file, in MiB (proc(5), `RssAnon`).
fn anonymous() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<f64>().unwrap() / MIB
}

fn at(first: Ipv4Addr, number: u32) -> IpAddr {
    Ipv4Addr::from_bits(first.to_bits() + number).into()
}

/// As an event of the watch says them: lists with room for more, and the names of nodes and Pods.
fn changes(number: u32) -> [Change; 2] {
    let name = ObjectName::new("bench", format!("service-{number}"));
    let mut cluster_ips = Vec::with_capacity(4);
    cluster_ips.push(at(Ipv4Addr::new(10, 96, 0, 1), number));
    let mut ports = Vec::with_capacity(4);
    ports.push(ServicePort {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    });
    let service = Service {
        cluster_ips,
        ports,
        ..Service::default()
    };
    let endpoint = |index: u32| SliceEndpoint {
        node: Some(format!("node-{index}")),
        pod: Some(format!("service-{number}-{index}")),
        ..SliceEndpoint::at(at(Ipv4Addr::new(10, 128, 0, 1), number * 3 + index))
    };
    let slice = EndpointSlice {
        service: ObjectName::new("bench", format!("service-{number}")),
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: (0..3).map(endpoint).collect(),
    };
    let slice_name = ObjectName::new("bench", format!("slice-{number}"));
    [
        Change::Service(name, Some(service)),
        Change::EndpointSlice(slice_name, Some(slice)),
    ]
}

#[test]
fn thirty_thousand_services_of_three_endpoints_take_less_than_seventy_mebibytes() {
    let before = anonymous();
    let mut desired = Desired::new("here");
    let mut applied = Applied::restore(Snapshot::default(), Capacity::default());
    for change in (0..SERVICES).flat_map(changes) {
        desired.change(change);
    }
    let wanted = anonymous() - before;
    let first = plan(&mut desired, &mut applied, Duration::ZERO);
    assert_eq!(first.refused, []);
    let planned = anonymous() - before;
    drop(first);
    drop(desired.take_health_checks());
    let after = anonymous() - before;
    println!("MiB: {wanted:.1} of objects, {planned:.1} with the first plan, {after:.1} after it");
    assert!(after < 70.0, "{after} MiB");
}
