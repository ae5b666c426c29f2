//! ResourceQuotas and LimitRanges, held against what is written.

mod common;

use std::sync::Arc;

use common::{Cluster, config_map, kind, pod, service};
use control_plane_registry::{ApiError, Registry, Subresource, WriteOptions};
use futures::future::join_all;
use serde_json::{Value, json};

/// Makes a quota and says that nothing of it is used, as its controller would.
async fn quota(cluster: &Cluster, name: &str, hard: Value) -> Value {
    let made = json!({"metadata": {"name": name}, "spec": {"hard": hard}});
    let mut made = cluster
        .create("resourcequotas", made)
        .await
        .expect("a quota");
    let names = hard.as_object().expect("amounts").keys();
    let used: Value = names
        .map(|name| (name.clone(), json!("0")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    made["status"] = json!({"hard": hard, "used": used});
    let status = Some(Subresource::Status);
    cluster
        .update("resourcequotas", status, made)
        .await
        .expect("a status")
}

async fn used(cluster: &Cluster, name: &str) -> Value {
    let quota = cluster
        .get("resourcequotas", name)
        .await
        .expect("the quota");
    quota["status"]["used"].clone()
}

fn refusal(result: Result<Value, ApiError>) -> String {
    let error = result.expect_err("it is refused");
    assert_eq!(error.code, 403, "{error}");
    error.message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_who_write_at_once_as_many_get_through_as_the_quota_has_room_for() {
    let cluster = Cluster::new().await;
    let hard = json!({"configmaps": "10", "count/configmaps": "12"});
    quota(&cluster, "q", hard).await;
    let creates = (0..64).map(|n| {
        let name = format!("m{n}");
        let cluster = &cluster;
        async move { cluster.create("configmaps", config_map(&name, "x")).await }
    });
    let outcomes = join_all(creates).await;
    let made = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(made, 10);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, 403, "{error}");
        let over = "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=10, limited: configmaps=10";
        assert!(error.message.ends_with(over), "{error}");
    }
    let stored = cluster.registry.count(kind("configmaps"), "default");
    assert_eq!(stored, 10, "as many are there as were answered");
    let all = json!({"configmaps": "10", "count/configmaps": "10"});
    assert_eq!(used(&cluster, "q").await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_over_one_store_cannot_both_have_the_last_piece() {
    let cluster = Cluster::new().await;
    quota(&cluster, "q", json!({"configmaps": "5"})).await;
    let options = control_plane_registry::Options::default();
    let other = Registry::open(cluster.store.clone(), options)
        .await
        .expect("another server");
    let other = Arc::new(other);
    let creates = (0..16).map(|n| {
        let map = config_map(&format!("m{n}"), "x");
        let (cluster, other) = (&cluster, other.clone());
        async move {
            if n % 2 == 0 {
                return cluster.create("configmaps", map).await.map(drop);
            }
            let options = WriteOptions::default();
            let made = other.create(kind("configmaps"), "default", common::body(map), &options);
            made.await.map(drop)
        }
    });
    let made = join_all(creates)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(made, 5);
    assert_eq!(used(&cluster, "q").await, json!({"configmaps": "5"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_charged_by_what_changes_and_not_by_a_rehearsal() {
    let cluster = Cluster::new().await;
    let hard = json!({"services.nodeports": "2", "services": "2"});
    quota(&cluster, "q", hard).await;
    let options = WriteOptions {
        dry_run: true,
        ..WriteOptions::default()
    };
    let body = common::body(service("dry", "NodePort"));
    cluster
        .registry
        .create(kind("services"), "default", body, &options)
        .await
        .expect("room");
    assert_eq!(used(&cluster, "q").await["services"], "0");
    let made = cluster
        .create("services", service("s", "ClusterIP"))
        .await
        .expect("room");
    assert_eq!(
        used(&cluster, "q").await,
        json!({"services": "1", "services.nodeports": "0"})
    );
    let mut three = made.clone();
    three["spec"]["type"] = json!("NodePort");
    three["spec"]["ports"] =
        json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "c", "port": 3}]);
    let why = refusal(cluster.update("services", None, three).await);
    assert_eq!(
        why,
        "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=3, used: services.nodeports=0, limited: services.nodeports=2"
    );
    cluster
        .patch("services", "s", json!({"spec": {"type": "NodePort"}}))
        .await
        .expect("room for one");
    assert_eq!(
        used(&cluster, "q").await,
        json!({"services": "1", "services.nodeports": "1"})
    );
    // What is over its time already is no reason to refuse another change.
    cluster
        .patch("services", "s", json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect("no charge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_nobody_counted_yet_lets_nothing_in_once_its_limits_hold() {
    let cluster = Cluster::new().await;
    let hard = json!({"pods": "1", "cpu": "1"});
    let made = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let mut made = cluster
        .create("resourcequotas", made)
        .await
        .expect("a quota");
    // Whoever makes a quota and at once what it limits, as an installer does, is not refused.
    cluster
        .create("pods", pod("early"))
        .await
        .expect("no limit yet");
    made["status"] = json!({"hard": hard});
    let status = Some(Subresource::Status);
    cluster
        .update("resourcequotas", status, made)
        .await
        .expect("the limits");
    let mut asks = pod("p");
    let why = refusal(cluster.create("pods", asks.clone()).await);
    assert_eq!(
        why,
        "pods \"p\" is forbidden: failed quota: q: must specify cpu for: c"
    );
    asks["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    let why = refusal(cluster.create("pods", asks).await);
    assert_eq!(
        why,
        "pods \"p\" is forbidden: status unknown for quota: q, resources: cpu,pods"
    );
    // Others are not concerned.
    cluster
        .create("configmaps", config_map("m", "x"))
        .await
        .expect("no quota for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_the_limits_of_their_namespace_and_are_held_to_them() {
    let cluster = Cluster::new().await;
    let limits = json!([
        {"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}},
        {"type": "Pod", "max": {"cpu": "1500m"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}},
    ]);
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": limits}});
    let range = cluster.create("limitranges", range).await.expect("a range");
    assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "1"}));
    assert_eq!(
        range["spec"]["limits"][0]["defaultRequest"],
        json!({"cpu": "1"})
    );
    let made = cluster.create("pods", pod("p")).await.expect("within");
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(
        *resources,
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})
    );
    let note = &made["metadata"]["annotations"]["kubernetes.io/limit-ranger"];
    assert_eq!(
        note,
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let mut two = pod("two");
    let container = two["spec"]["containers"][0].clone();
    two["spec"]["containers"] = json!([container.clone(), container]);
    two["spec"]["containers"][1]["name"] = json!("d");
    let why = refusal(cluster.create("pods", two).await);
    assert_eq!(
        why,
        "pods \"two\" is forbidden: maximum cpu usage per Pod is 1500m, but limit is 2"
    );
    let mut small = pod("small");
    small["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "50m"}});
    let why = refusal(cluster.create("pods", small).await);
    assert_eq!(
        why,
        "pods \"small\" is forbidden: minimum cpu usage per Container is 100m, but request is 50m"
    );
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let why = refusal(cluster.create("persistentvolumeclaims", claim).await);
    assert_eq!(
        why,
        "persistentvolumeclaims \"c\" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"
    );
}
