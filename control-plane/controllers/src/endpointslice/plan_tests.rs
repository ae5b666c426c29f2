//! The planner by example: each case is a Service, its Pods, its slices, and the writes that must follow.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plan::{Action, MAX_ENDPOINTS, plan};

fn service(spec: Value) -> Service {
    let mut whole = json!({
        "selector": {"app": "web"},
        "clusterIP": "10.96.0.10",
        "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let meta = json!({"name": "web", "namespace": "shop", "uid": "svc", "labels": {"app": "web", "service.kubernetes.io/headless": "x"}});
    serde_json::from_value(json!({"metadata": meta, "spec": whole})).unwrap()
}

/// A ready pod on node `node-N`, in zone `zone-N`.
fn pod(number: u8) -> Value {
    json!({
        "metadata": {"name": format!("web-{number}"), "namespace": "shop", "uid": format!("{number:03}")},
        "spec": {"nodeName": format!("node-{number}"), "containers": [{"name": "c", "ports": [{"name": "api", "containerPort": 9000, "protocol": "TCP"}]}]},
        "status": {
            "phase": "Running",
            "podIP": format!("10.244.0.{number}"),
            "podIPs": [{"ip": format!("10.244.0.{number}")}, {"ip": format!("fd00::{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pods(values: impl IntoIterator<Item = Value>) -> Vec<Arc<Pod>> {
    let parse = |value| Arc::new(serde_json::from_value(value).unwrap());
    values.into_iter().map(parse).collect()
}

fn run(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    plan(service, pods, slices, &|node| {
        Some(node.replace("node", "zone"))
    })
}

/// What the API server holds after the writes. The writes must not touch a slice twice.
fn done(slices: &[Arc<EndpointSlice>], actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
    let mut left: Vec<_> = slices.to_vec();
    for action in actions {
        match action {
            Action::Create(slice) => {
                assert!(left.iter().all(|old| old.name_any() != slice.name_any()));
                left.push(Arc::new(slice));
            }
            Action::Update(slice) => {
                let old = left
                    .iter_mut()
                    .find(|old| old.name_any() == slice.name_any());
                *old.unwrap() = Arc::new(slice);
            }
            Action::Delete(slice) => left.retain(|old| old.name_any() != slice.name_any()),
        }
    }
    left
}

/// One line for each slice: name, ports, addresses.
fn shown(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let line = |slice: &Arc<EndpointSlice>| {
        let ports: Vec<String> = slice
            .ports
            .iter()
            .flatten()
            .map(|port| port.port.unwrap().to_string())
            .collect();
        let addresses: Vec<&str> = slice
            .endpoints
            .iter()
            .flatten()
            .map(|endpoint| &*endpoint.addresses[0])
            .collect();
        format!(
            "{} {} {}",
            slice.name_any(),
            ports.join(","),
            addresses.join(",")
        )
    };
    slices.iter().map(line).collect()
}

#[test]
fn a_slice_says_all_that_its_readers_need() {
    let actions = run(&service(json!({})), &pods([pod(1)]), &[]);
    let slices = done(&[], actions);
    let expected = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-ipv4-0",
            "namespace": "shop",
            "labels": {
                "app": "web",
                "kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "svc", "controller": true, "blockOwnerDeletion": true}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": ["10.244.0.1"],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node-1",
            "zone": "zone-1",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "001"},
        }],
    });
    assert_eq!(serde_json::to_value(&*slices[0]).unwrap(), expected);
    assert_eq!(
        run(&service(json!({})), &pods([pod(1)]), &slices),
        [],
        "and then there is rest"
    );
}

#[test]
fn conditions_follow_readiness_and_termination() {
    let with = |change: fn(&mut Value)| {
        let mut pod = pod(1);
        change(&mut pod);
        pod
    };
    let deleted =
        |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let unready = |pod: &mut Value| pod["status"]["conditions"][0]["status"] = json!("False");
    for (spec, change, expected) in [
        (json!({}), with(|_| {}), Some((true, true, false))),
        (json!({}), with(unready), Some((false, false, false))),
        (json!({}), with(deleted), Some((false, true, true))),
        (
            json!({"publishNotReadyAddresses": true}),
            with(unready),
            Some((true, false, false)),
        ),
        (
            json!({"publishNotReadyAddresses": true}),
            with(deleted),
            Some((true, true, true)),
        ),
        (
            json!({}),
            with(|pod| pod["status"]["phase"] = json!("Failed")),
            None,
        ),
        (
            json!({}),
            with(|pod| pod["status"]["phase"] = json!("Succeeded")),
            None,
        ),
        (
            json!({}),
            with(|pod| pod["status"] = json!({"phase": "Pending"})),
            None,
        ),
    ] {
        let slices = done(
            &[],
            run(&service(spec.clone()), &pods([change.clone()]), &[]),
        );
        let conditions = slices[0]
            .endpoints
            .as_ref()
            .unwrap()
            .first()
            .map(|endpoint| {
                let conditions = endpoint.conditions.clone().unwrap();
                (
                    conditions.ready.unwrap(),
                    conditions.serving.unwrap(),
                    conditions.terminating.unwrap(),
                )
            });
        assert_eq!(conditions, expected, "{spec} {change}");
    }
}

#[test]
fn dual_stack_has_slices_of_each_family_and_drops_those_of_a_family_that_went() {
    let dual = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let slices = done(&[], run(&dual, &pods([pod(1)]), &[]));
    assert_eq!(
        shown(&slices),
        ["web-ipv4-0 8080 10.244.0.1", "web-ipv6-0 8080 fd00::1"]
    );
    let single = service(json!({"ipFamilies": ["IPv6"]}));
    let slices = done(&slices, run(&single, &pods([pod(1)]), &slices));
    assert_eq!(shown(&slices), ["web-ipv6-0 8080 fd00::1"]);
}

#[test]
fn named_target_ports_are_looked_up_in_each_pod() {
    let named =
        service(json!({"ports": [{"port": 80, "targetPort": "api"}, {"name": "x", "port": 81}]}));
    let mut other = pod(2);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9001);
    let mut udp = pod(3);
    udp["spec"]["containers"][0]["ports"][0]["protocol"] = json!("UDP");
    let slices = done(&[], run(&named, &pods([pod(1), other, udp]), &[]));
    let mut lines = shown(&slices);
    lines.sort();
    assert_eq!(
        lines,
        [
            "web-ipv4-0 9000,81 10.244.0.1",
            "web-ipv4-1 9001,81 10.244.0.2",
            "web-ipv4-2 81 10.244.0.3",
        ]
    );
}

#[test]
fn a_headless_service_is_labelled_and_may_have_no_ports() {
    let headless = service(json!({"clusterIP": "None", "ports": null}));
    let mut named = pod(1);
    named["spec"]["hostname"] = json!("first");
    named["spec"]["subdomain"] = json!("web");
    let slices = done(&[], run(&headless, &pods([named]), &[]));
    assert_eq!(shown(&slices), ["web-ipv4-0  10.244.0.1"]);
    assert_eq!(
        slices[0].labels().get("service.kubernetes.io/headless"),
        Some(&String::new())
    );
    let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
    assert_eq!(endpoint.hostname.as_deref(), Some("first"));
}

#[test]
fn traffic_distribution_becomes_hints_of_ready_endpoints() {
    for (distribution, zones, nodes) in [
        ("PreferClose", Some("zone-1"), None),
        ("PreferSameZone", Some("zone-1"), None),
        ("PreferSameNode", Some("zone-1"), Some("node-1")),
        ("Other", None, None),
    ] {
        let service = service(json!({"trafficDistribution": distribution}));
        let slices = done(&[], run(&service, &pods([pod(1)]), &[]));
        let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
        let hints = endpoint.hints.clone().unwrap_or_default();
        assert_eq!(
            hints
                .for_zones
                .map(|zones| zones[0].name.clone())
                .as_deref(),
            zones
        );
        assert_eq!(
            hints
                .for_nodes
                .map(|nodes| nodes[0].name.clone())
                .as_deref(),
            nodes
        );
    }
}

#[test]
fn without_pods_there_is_one_empty_slice_and_it_is_used_again() {
    let web = service(json!({}));
    let empty = done(&[], run(&web, &[], &[]));
    assert_eq!(shown(&empty), ["web-ipv4-0 8080 "]);
    assert_eq!(run(&web, &[], &empty), []);
    let filled = done(&empty, run(&web, &pods([pod(1)]), &empty));
    assert_eq!(shown(&filled), ["web-ipv4-0 8080 10.244.0.1"]);
    let drained = done(&filled, run(&web, &[], &filled));
    assert_eq!(shown(&drained), ["web-ipv4-0 8080 "]);
}

#[test]
fn a_changed_target_port_rewrites_the_slice_instead_of_replacing_it() {
    let before = done(&[], run(&service(json!({})), &pods([pod(1)]), &[]));
    let changed = service(json!({"ports": [{"name": "http", "port": 80, "targetPort": 8081}]}));
    let actions = run(&changed, &pods([pod(1)]), &before);
    assert!(matches!(&*actions, [Action::Update(_)]), "{actions:?}");
    assert_eq!(
        shown(&done(&before, actions)),
        ["web-ipv4-0 8081 10.244.0.1"]
    );
}

#[test]
fn slices_hold_at_most_a_hundred_and_one_change_writes_one_of_them() {
    let web = service(json!({}));
    let many: Vec<Value> = (0..250).map(|number| pod(number as u8)).collect();
    let slices = done(&[], run(&web, &pods(many.clone()), &[]));
    let sizes = |slices: &[Arc<EndpointSlice>]| -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap().len())
            .collect()
    };
    assert_eq!(sizes(&slices), [MAX_ENDPOINTS, MAX_ENDPOINTS, 50]);

    let mut fewer = many.clone();
    fewer.remove(30);
    let actions = run(&web, &pods(fewer.clone()), &slices);
    assert!(matches!(&*actions, [Action::Update(slice)] if slice.name_any() == "web-ipv4-0"));
    let slices = done(&slices, actions);
    assert_eq!(sizes(&slices), [99, MAX_ENDPOINTS, 50]);

    fewer.push(many[30].clone());
    let actions = run(&web, &pods(fewer), &slices);
    assert!(matches!(&*actions, [Action::Update(slice)] if slice.name_any() == "web-ipv4-0"));
    let order = shown(&done(&slices, actions))[0].clone();
    assert!(
        order.ends_with(",10.244.0.30"),
        "what was there keeps its place: {order}"
    );

    let last: Vec<Value> = many[200..].to_vec();
    let slices = done(&slices, run(&web, &pods(last), &slices));
    assert_eq!(sizes(&slices), [50], "emptied slices go");
}

#[test]
fn an_external_name_has_no_slices_left() {
    let slices = done(&[], run(&service(json!({})), &pods([pod(1)]), &[]));
    let external = service(json!({"type": "ExternalName", "externalName": "example.com"}));
    assert_eq!(done(&slices, run(&external, &pods([pod(1)]), &slices)), []);
}
