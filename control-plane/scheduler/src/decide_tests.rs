//! The decision by example.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::decide::{Unschedulable, decide};
use crate::node::NodeFacts;
use crate::pod::PodFacts;

/// A ready Node with 4 CPUs, 8 GiB and room for 10 Pods, changed by `change`.
fn node(name: &str, change: Value) -> NodeFacts {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    for (pointer, value) in change.as_object().unwrap() {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        node.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    NodeFacts::of(&serde_json::from_value(node).unwrap())
}

fn pod(name: &str, spec: Value) -> PodFacts {
    let mut whole = json!({"containers": [{"name": "c"}]});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let meta = json!({"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}});
    let pod = json!({"metadata": meta, "spec": whole});
    PodFacts::of(&serde_json::from_value(pod).unwrap())
}

fn requests(cpu: &str, memory: &str) -> Value {
    let requests = json!({"cpu": cpu, "memory": memory});
    json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
}

fn cluster(nodes: Vec<NodeFacts>) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(node);
    }
    cluster
}

/// Decides, places, and returns the Node's name.
fn schedule(cluster: &mut Cluster, pod: PodFacts) -> String {
    let node = decide(&pod, cluster).unwrap().to_owned();
    cluster.place(pod, &node);
    node
}

fn refusal(cluster: &Cluster, pod: &PodFacts) -> String {
    match decide(pod, cluster) {
        Ok(node) => panic!("{} went to {node}", pod.name),
        Err(Unschedulable(reason)) => reason,
    }
}

#[test]
fn six_pods_of_one_app_go_two_to_each_of_three_nodes() {
    let mut cluster = cluster(["a", "b", "c"].map(|name| node(name, json!({}))).into());
    let mut nodes: Vec<_> = (1..=6)
        .map(|number| schedule(&mut cluster, pod(&format!("web-{number}"), json!({}))))
        .collect();
    assert_eq!(nodes[..3], ["a", "b", "c"]);
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b", "b", "c", "c"]);
}

#[test]
fn pods_behind_one_service_spread_even_if_their_labels_differ() {
    let mut cluster = cluster(vec![node("a", json!({})), node("b", json!({}))]);
    cluster.set_service("default", "web", [("app".into(), "web".into())].into());
    let mut canary = pod("canary", requests("100m", "1Mi"));
    canary.labels.insert("track".into(), "canary".into());
    assert_eq!(schedule(&mut cluster, canary), "a");
    // Without the Service the emptier Node would be `b` too: make it the fuller one.
    let mut heavy = pod("heavy", requests("3", "1Mi"));
    heavy.labels = [("app".into(), "other".into())].into();
    cluster.place(heavy, "b");
    assert_eq!(schedule(&mut cluster, pod("stable", json!({}))), "b");
}

#[test]
fn pods_of_different_apps_go_where_most_is_free() {
    let mut cluster = cluster(vec![node("a", json!({})), node("b", json!({}))]);
    cluster.place(pod("big", requests("3", "1Gi")), "a");
    let mut other = pod("other", requests("500m", "6Gi"));
    other.labels = [("app".into(), "other".into())].into();
    assert_eq!(schedule(&mut cluster, other), "b");
    let mut third = pod("third", requests("500m", "512Mi"));
    third.labels = [("app".into(), "third".into())].into();
    assert_eq!(
        schedule(&mut cluster, third),
        "b",
        "a is fuller in CPU than b in memory"
    );
}

/// Each case: a change of the only Node, a Pod's spec, and why it is refused (`None`: it is not).
fn check(cases: impl IntoIterator<Item = (Value, Value, Option<&'static str>)>) {
    for (node_change, spec, expected) in cases {
        let cluster = cluster(vec![node("n", node_change.clone())]);
        let expected = expected.map_or(Ok("n"), |reason| {
            Err(Unschedulable(format!(
                "0/1 nodes are available: 1 {reason}."
            )))
        });
        assert_eq!(
            decide(&pod("p", spec.clone()), &cluster),
            expected,
            "{node_change} {spec}"
        );
    }
}

#[test]
fn taints_and_readiness_refuse_unless_tolerated() {
    let none = json!({});
    let taint =
        |effect: &str| json!({"/spec/taints": [{"key": "k", "value": "v", "effect": effect}]});
    let tolerates = |toleration: Value| json!({"tolerations": [toleration]});
    let cordoned = json!({"/spec/unschedulable": true});
    let silent = json!({"/status/conditions": []});
    let text = "node(s) had untolerated taint {k: v}";
    check([
        (none.clone(), none.clone(), None),
        (
            cordoned.clone(),
            none.clone(),
            Some("node(s) were unschedulable"),
        ),
        (
            cordoned,
            tolerates(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
            None,
        ),
        (silent.clone(), none.clone(), Some("node(s) were not ready")),
        (silent, tolerates(json!({"operator": "Exists"})), None),
        (taint("NoSchedule"), none.clone(), Some(text)),
        (taint("NoExecute"), none.clone(), Some(text)),
        (taint("PreferNoSchedule"), none, None),
        (
            taint("NoSchedule"),
            tolerates(json!({"key": "k", "value": "v"})),
            None,
        ),
        (
            taint("NoSchedule"),
            tolerates(json!({"key": "k", "value": "w", "operator": "Equal"})),
            Some(text),
        ),
        (
            taint("NoSchedule"),
            tolerates(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})),
            Some(text),
        ),
    ]);
}

#[test]
fn selectors_and_affinity_refuse_what_they_do_not_match() {
    let text = Some("node(s) didn't match Pod's node affinity/selector");
    let affinity = |operator: &str, values: Value| {
        let terms = json!([{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]);
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    };
    let by_name = |name: &str| {
        let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    };
    let size = json!({"/metadata/labels": {"size": "5"}});
    let ssd = json!({"nodeSelector": {"disk": "ssd"}});
    check([
        (json!({}), ssd.clone(), text),
        (json!({"/metadata/labels": {"disk": "ssd"}}), ssd, None),
        (size.clone(), affinity("In", json!(["4", "5"])), None),
        (size.clone(), affinity("NotIn", json!(["5"])), text),
        (size.clone(), affinity("Gt", json!(["4"])), None),
        (size.clone(), affinity("Lt", json!(["5"])), text),
        (size.clone(), affinity("Exists", json!(null)), None),
        (size, affinity("DoesNotExist", json!(null)), text),
        (json!({}), affinity("DoesNotExist", json!(null)), None),
        (json!({}), by_name("n"), None),
        (json!({}), by_name("m"), text),
    ]);
}

#[test]
fn a_node_gives_no_more_than_it_has_and_nothing_that_it_does_not_name() {
    let gpu =
        json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
    let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}});
    check([
        (json!({}), requests("4", "8Gi"), None),
        (
            json!({}),
            requests("4001m", "1Mi"),
            Some("Insufficient cpu"),
        ),
        (
            json!({"/status/allocatable": {"cpu": "4"}}),
            json!({}),
            Some("Too many pods"),
        ),
        (json!({}), gpu, Some("Insufficient example.com/gpu")),
        (
            json!({}),
            anti,
            Some("scheduler(s) do not support a required spec.affinity.podAntiAffinity"),
        ),
    ]);
}

#[test]
fn the_reasons_are_counted_over_the_nodes() {
    let cluster = cluster(vec![
        node("a", json!({"/spec/unschedulable": true})),
        node(
            "b",
            json!({"/status/allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}),
        ),
        node(
            "c",
            json!({"/status/allocatable": {"cpu": "1", "memory": "9Gi", "pods": "10"}}),
        ),
    ]);
    assert_eq!(
        refusal(&cluster, &pod("p", requests("2", "4Gi"))),
        "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    let empty = Cluster::default();
    assert_eq!(
        refusal(&empty, &pod("p", json!({}))),
        "no nodes available to schedule pods"
    );
}

#[test]
fn host_ports_clash_only_where_the_same_socket_would() {
    let ports = |address: &str, protocol: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": address, "protocol": protocol}]}]});
    for (first, second, fits) in [
        (ports("", "TCP"), ports("", "TCP"), false),
        (ports("", "TCP"), ports("", "UDP"), true),
        (ports("127.0.0.1", "TCP"), ports("127.0.0.2", "TCP"), true),
        (ports("127.0.0.1", "TCP"), ports("0.0.0.0", "TCP"), false),
    ] {
        let mut cluster = cluster(vec![node("n", json!({}))]);
        schedule(&mut cluster, pod("first", first.clone()));
        let second = pod("second", second);
        assert_eq!(decide(&second, &cluster).is_ok(), fits, "{first}");
        cluster.remove_pod(&("default".into(), "first".into()));
        assert!(
            decide(&second, &cluster).is_ok(),
            "what a Pod held is free when it goes"
        );
    }
}

#[test]
fn preferences_decide_before_the_spread() {
    let mut cluster = cluster(vec![
        node("plain", json!({})),
        node("fast", json!({"/metadata/labels": {"disk": "ssd"}})),
        node(
            "shunned",
            json!({"/spec/taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
        ),
    ]);
    let term = json!({"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}});
    let picky = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}});
    for number in 0..3 {
        let name = format!("picky-{number}");
        assert_eq!(schedule(&mut cluster, pod(&name, picky.clone())), "fast");
    }
    for number in 0..2 {
        let name = format!("any-{number}");
        assert_eq!(schedule(&mut cluster, pod(&name, json!({}))), "plain");
    }
}

#[test]
fn a_node_that_comes_back_still_counts_its_pods() {
    let mut cluster = cluster(vec![node("n", json!({}))]);
    schedule(&mut cluster, pod("big", requests("3", "1Mi")));
    cluster.remove_node("n");
    cluster.set_node(node("n", json!({})));
    let second = pod("second", requests("2", "1Mi"));
    assert_eq!(
        refusal(&cluster, &second),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    assert!(
        !cluster.set_node(node("n", json!({}))),
        "a heartbeat is no change"
    );
}
