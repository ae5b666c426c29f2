//! The scheduler against the real API server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tests_control_plane::{ControlPlane, create, eventually, merge, quick};

/// Node -> how many Pods are bound to it; "" for those that wait.
async fn placement(cluster: &ControlPlane) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in cluster
        .here::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
    {
        let node = pod.spec.unwrap().node_name.unwrap_or_default();
        *counts.entry(node).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected
        .map(|(node, count)| (node.to_owned(), count))
        .into()
}

/// The PodScheduled condition: status, reason, message.
async fn scheduled(cluster: &ControlPlane, name: &str) -> (String, String, String) {
    let pod = cluster.here::<Pod>().get(name).await.unwrap();
    let conditions = pod.status.and_then(|status| status.conditions);
    let condition = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled");
    condition
        .map(|found| {
            (
                found.status,
                found.reason.unwrap_or_default(),
                found.message.unwrap_or_default(),
            )
        })
        .unwrap_or_default()
}

async fn events(cluster: &ControlPlane, pod: &str, reason: &str) -> Vec<String> {
    let all = cluster.here::<Event>().list(&ListParams::default()).await;
    all.unwrap()
        .into_iter()
        .filter(|event| event.involved_object.name.as_deref() == Some(pod))
        .filter(|event| event.reason.as_deref() == Some(reason))
        .map(|event| event.message.unwrap_or_default())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_pods_go_two_to_each_of_three_nodes_and_say_so() {
    let cluster = ControlPlane::start(quick()).await;
    for node in ["a", "b", "c"] {
        cluster.add_node(node).await;
    }
    // All are ready to take Pods only when no taint of their first moments is left.
    eventually("taints", vec![0, 0, 0], || async {
        let nodes = cluster
            .all::<Node>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
        nodes
            .iter()
            .map(|node| taints(node).map_or(0, |all| all.len()))
            .collect()
    })
    .await;
    for number in 1..=6 {
        cluster
            .add_pod(&format!("web-{number}"), "web", "100m", json!({}))
            .await;
    }
    eventually("placement", counts([("a", 2), ("b", 2), ("c", 2)]), || {
        placement(&cluster)
    })
    .await;
    eventually("condition", "True".to_owned(), || async {
        scheduled(&cluster, "web-1").await.0
    })
    .await;
    let node = cluster
        .here::<Pod>()
        .get("web-1")
        .await
        .unwrap()
        .spec
        .unwrap()
        .node_name
        .unwrap();
    let message = format!("Successfully assigned default/web-1 to {node}");
    eventually("event", vec![message], || {
        events(&cluster, "web-1", "Scheduled")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_once_it_fits() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_pod("big", "big", "3", json!({})).await;
    let none = "no nodes available to schedule pods".to_owned();
    let refused = |why: &str| {
        (
            "False".to_owned(),
            "Unschedulable".to_owned(),
            why.to_owned(),
        )
    };
    eventually("no node", refused(&none), || scheduled(&cluster, "big")).await;

    cluster.add_node("a").await;
    eventually("placement", counts([("a", 1)]), || placement(&cluster)).await;
    cluster.add_pod("second", "big", "2", json!({})).await;
    let full = "0/1 nodes are available: 1 Insufficient cpu.";
    eventually("full", refused(full), || scheduled(&cluster, "second")).await;
    assert_eq!(events(&cluster, "second", "FailedScheduling").await, [full]);

    // A Pod that goes makes room. Nobody runs it, so it goes at once.
    let now = DeleteParams::default().grace_period(0);
    cluster.here::<Pod>().delete("big", &now).await.unwrap();
    eventually("room", counts([("a", 1)]), || placement(&cluster)).await;
    eventually("bound", "True".to_owned(), || async {
        scheduled(&cluster, "second").await.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_node_gets_nothing_until_it_is_uncordoned() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("a").await;
    merge(
        &cluster.all::<Node>(),
        "a",
        json!({"spec": {"unschedulable": true}}),
    )
    .await;
    cluster.add_pod("p", "p", "1", json!({})).await;
    eventually("reason", "Unschedulable".to_owned(), || async {
        scheduled(&cluster, "p").await.1
    })
    .await;
    assert_eq!(placement(&cluster).await, counts([("", 1)]));
    merge(
        &cluster.all::<Node>(),
        "a",
        json!({"spec": {"unschedulable": false}}),
    )
    .await;
    eventually("placement", counts([("a", 1)]), || placement(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_pods_fill_three_nodes_evenly_over_a_restart() {
    let cluster = ControlPlane::start(quick()).await;
    for node in ["a", "b", "c"] {
        cluster.add_node(node).await;
    }
    let add = async |cluster: &ControlPlane, from: u32| {
        for number in from..from + 150 {
            cluster
                .add_pod(&format!("p-{number}"), "p", "10m", json!({}))
                .await;
        }
    };
    add(&cluster, 0).await;
    let cluster = cluster.restart().await;
    add(&cluster, 150).await;
    eventually(
        "placement",
        counts([("a", 100), ("b", 100), ("c", 100)]),
        || placement(&cluster),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_another_scheduler_are_left_alone() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("a").await;
    let other = json!({"metadata": {"name": "other"}, "spec": {"schedulerName": "other", "containers": [{"name": "c", "image": "none"}]}});
    create(&cluster.here::<Pod>(), other).await;
    cluster.add_pod("ours", "ours", "1", json!({})).await;
    eventually("placement", counts([("", 1), ("a", 1)]), || {
        placement(&cluster)
    })
    .await;
    assert_eq!(scheduled(&cluster, "other").await.0, "");
}
