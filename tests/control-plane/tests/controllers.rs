//! The controllers against the real API server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ResourceQuota, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tests_control_plane::{ControlPlane, create, eventually, merge, patch_status, quick};

/// The endpoints of Service `web`, one line each: address, port, then r(eady), s(erving), t(erminating).
async fn endpoints(cluster: &ControlPlane) -> Vec<String> {
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    let slices = cluster.here::<EndpointSlice>().list(&of_web).await.unwrap();
    let mut lines = Vec::new();
    for slice in slices {
        let port = slice
            .ports
            .unwrap_or_default()
            .first()
            .and_then(|port| port.port);
        for endpoint in slice.endpoints.unwrap_or_default() {
            let conditions = endpoint.conditions.unwrap();
            let flag =
                |set: Option<bool>, letter: char| if set == Some(true) { letter } else { '-' };
            lines.push(format!(
                "{}:{} {}{}{}",
                endpoint.addresses[0],
                port.unwrap_or_default(),
                flag(conditions.ready, 'r'),
                flag(conditions.serving, 's'),
                flag(conditions.terminating, 't'),
            ));
        }
    }
    lines.sort();
    lines
}

async fn add_service(cluster: &ControlPlane) {
    let service = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "api"}],
    }});
    create(&cluster.here::<Service>(), service).await;
}

fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(String::from).into()
}

async fn pod_cidrs(cluster: &ControlPlane, name: &str) -> Vec<String> {
    let node = cluster.all::<Node>().get(name).await.unwrap();
    node.spec
        .and_then(|spec| spec.pod_cidrs)
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_slices_follow_the_life_of_their_pods() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("a").await;
    add_service(&cluster).await;
    cluster
        .add_pod("web-1", "web", "1m", json!({"nodeName": "a"}))
        .await;
    cluster
        .add_pod("web-2", "web", "1m", json!({"nodeName": "a"}))
        .await;
    cluster
        .add_pod("other", "other", "1m", json!({"nodeName": "a"}))
        .await;
    cluster.set_pod("web-1", "10.244.0.1", true).await;
    cluster.set_pod("web-2", "10.244.0.2", false).await;
    cluster.set_pod("other", "10.244.0.3", true).await;
    let both = lines(["10.244.0.1:9000 rs-", "10.244.0.2:9000 ---"]);
    eventually("two pods", both, || endpoints(&cluster)).await;

    cluster.set_pod("web-2", "10.244.0.2", true).await;
    // Bound Pods stay until their kubelet, which nobody plays here, has ended them.
    cluster
        .here::<Pod>()
        .delete("web-1", &DeleteParams::default())
        .await
        .unwrap();
    let one_ends = lines(["10.244.0.1:9000 -st", "10.244.0.2:9000 rs-"]);
    eventually("one ends", one_ends, || endpoints(&cluster)).await;

    let now = DeleteParams::default().grace_period(0);
    cluster.here::<Pod>().delete("web-1", &now).await.unwrap();
    merge(
        &cluster.here::<Pod>(),
        "other",
        json!({"metadata": {"labels": {"app": "web"}}}),
    )
    .await;
    let other = lines(["10.244.0.2:9000 rs-", "10.244.0.3:9000 rs-"]);
    eventually("a pod changes sides", other, || endpoints(&cluster)).await;

    let port = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
    merge(&cluster.here::<Service>(), "web", port).await;
    let moved = lines(["10.244.0.2:8080 rs-", "10.244.0.3:8080 rs-"]);
    eventually("another target port", moved, || endpoints(&cluster)).await;

    cluster
        .here::<Service>()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    eventually("no service, no slices", 0, || async {
        let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
        cluster
            .here::<EndpointSlice>()
            .list(&of_web)
            .await
            .unwrap()
            .items
            .len()
    })
    .await;
}

/// The addresses of Endpoints `web`, those that are not ready with a `!` before; `None` without Endpoints.
async fn legacy_endpoints(cluster: &ControlPlane) -> Option<Vec<String>> {
    let endpoints = cluster.here::<Endpoints>().get_opt("web").await.unwrap()?;
    let mut found = Vec::new();
    for subset in endpoints.subsets.into_iter().flatten() {
        let ready = subset.addresses.into_iter().flatten();
        found.extend(ready.map(|address| address.ip));
        let not_ready = subset.not_ready_addresses.into_iter().flatten();
        found.extend(not_ready.map(|address| format!("!{}", address.ip)));
    }
    Some(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_say_what_the_slices_say() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("a").await;
    // Those of a Service without selector are somebody else's.
    let foreign =
        json!({"metadata": {"name": "foreign"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}]}]});
    create(&cluster.here::<Endpoints>(), foreign).await;
    add_service(&cluster).await;
    let legacy = || legacy_endpoints(&cluster);
    eventually("endpoints of no pods", Some(Vec::new()), legacy).await;
    for (name, address) in [("web-1", "10.244.0.2"), ("web-2", "10.244.0.1")] {
        cluster.add_pod(name, "web", "100m", json!({})).await;
        cluster.set_pod(name, address, true).await;
    }
    let both = Some(lines(["10.244.0.1", "10.244.0.2"]));
    eventually("two ready pods", both, legacy).await;
    cluster.set_pod("web-2", "10.244.0.1", false).await;
    let one = Some(lines(["10.244.0.2", "!10.244.0.1"]));
    eventually("one is not ready", one, legacy).await;
    let now = DeleteParams::default();
    cluster.here::<Service>().delete("web", &now).await.unwrap();
    eventually("no service, no endpoints", None, legacy).await;
    let foreign = cluster.here::<Endpoints>().get("foreign").await.unwrap();
    assert!(foreign.subsets.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_changes_nothing_and_misses_nothing() {
    let cluster = ControlPlane::start(quick()).await;
    for node in ["a", "b", "c"] {
        cluster.add_node(node).await;
    }
    add_service(&cluster).await;
    cluster
        .add_pod("web-1", "web", "1m", json!({"nodeName": "a"}))
        .await;
    cluster.set_pod("web-1", "10.244.0.1", true).await;
    eventually("endpoints", lines(["10.244.0.1:9000 rs-"]), || {
        endpoints(&cluster)
    })
    .await;
    eventually("podCIDRs", 3, || async {
        let mut all = BTreeSet::new();
        for node in ["a", "b", "c"] {
            let cidrs = pod_cidrs(&cluster, node).await;
            if cidrs.len() == 2 {
                all.insert(cidrs);
            }
        }
        all.len()
    })
    .await;
    let before = pod_cidrs(&cluster, "b").await;
    let versions = async |cluster: &ControlPlane| {
        let nodes = cluster
            .all::<Node>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let slices = cluster
            .here::<EndpointSlice>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let nodes = nodes.into_iter().map(|node| node.resource_version());
        nodes
            .chain(slices.into_iter().map(|slice| slice.resource_version()))
            .collect::<Vec<_>>()
    };
    eventually("no taints", 0, || async {
        let nodes = cluster
            .all::<Node>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let taints = |node: Node| {
            node.spec
                .and_then(|spec| spec.taints)
                .unwrap_or_default()
                .len()
        };
        nodes.into_iter().map(taints).sum::<usize>()
    })
    .await;
    let quiet = versions(&cluster).await;

    let cluster = cluster.restart().await;
    // What comes after the restart shows that the controllers are back, and that they kept what was there.
    cluster.add_node("d").await;
    eventually("a new node", 2, || async {
        pod_cidrs(&cluster, "d").await.len()
    })
    .await;
    assert_eq!(pod_cidrs(&cluster, "b").await, before);
    cluster
        .all::<Node>()
        .delete("d", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(versions(&cluster).await, quiet, "nothing was written again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_marked_and_its_pods_leave_the_endpoints_until_it_speaks_again() {
    let options = control_plane_controllers::Options {
        node_monitor_period: Duration::from_millis(200),
        node_monitor_grace_period: Duration::from_secs(3),
        ..quick()
    };
    let cluster = ControlPlane::start(options).await;
    cluster.add_node("lively").await;
    cluster.add_node("silent").await;
    add_service(&cluster).await;
    for (pod, node, address) in [
        ("web-1", "lively", "10.244.0.1"),
        ("web-2", "silent", "10.244.1.1"),
    ] {
        cluster
            .add_pod(pod, "web", "1m", json!({"nodeName": node}))
            .await;
        cluster.set_pod(pod, address, true).await;
    }
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    create(
        &leases,
        json!({"metadata": {"name": "lively"}, "spec": {"holderIdentity": "lively"}}),
    )
    .await;
    let renewing = tokio::spawn(async move {
        loop {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
            merge(&leases, "lively", json!({"spec": {"renewTime": now}})).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let state = async |name: &str| {
        let node = cluster.all::<Node>().get(name).await.unwrap();
        let conditions = node.status.unwrap().conditions.unwrap_or_default();
        let ready = conditions
            .into_iter()
            .find(|condition| condition.type_ == "Ready");
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let mut taints: Vec<_> = taints
            .into_iter()
            .map(|t| format!("{}:{}", t.key, t.effect))
            .collect();
        taints.sort();
        (ready.map(|ready| ready.status).unwrap_or_default(), taints)
    };
    let all = lines(["10.244.0.1:9000 rs-", "10.244.1.1:9000 rs-"]);
    eventually("all serve", all.clone(), || endpoints(&cluster)).await;
    let unreachable = lines([
        "node.kubernetes.io/unreachable:NoExecute",
        "node.kubernetes.io/unreachable:NoSchedule",
    ]);
    eventually("marked", ("Unknown".to_owned(), unreachable), || {
        state("silent")
    })
    .await;
    let one = lines(["10.244.0.1:9000 rs-", "10.244.1.1:9000 ---"]);
    eventually("out of service", one, || endpoints(&cluster)).await;
    assert_eq!(state("lively").await, ("True".to_owned(), vec![]));

    cluster.set_node_ready("silent").await;
    cluster.set_pod("web-2", "10.244.1.1", true).await;
    eventually("back", ("True".to_owned(), vec![]), || state("silent")).await;
    eventually("all serve again", all, || endpoints(&cluster)).await;
    renewing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_node_that_is_gone_are_removed_and_no_others() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("stays").await;
    cluster.add_node("goes").await;
    for (pod, node) in [("kept", "stays"), ("lost", "goes"), ("never", "nowhere")] {
        cluster
            .add_pod(pod, "p", "1m", json!({"nodeName": node}))
            .await;
    }
    cluster
        .all::<Node>()
        .delete("goes", &DeleteParams::default())
        .await
        .unwrap();
    eventually("pods", lines(["kept"]), || async {
        let pods = cluster
            .here::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap();
        pods.into_iter()
            .map(|pod| pod.name_any())
            .collect::<Vec<_>>()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_loses_its_content_and_then_itself() {
    let cluster = ControlPlane::start(quick()).await;
    let namespaces = cluster.all::<Namespace>();
    for name in ["doomed", "neighbour"] {
        create(&namespaces, json!({"metadata": {"name": name}})).await;
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), name);
        for number in 0..3 {
            create(
                &maps,
                json!({"metadata": {"name": format!("m-{number}")}, "data": {}}),
            )
            .await;
        }
    }
    namespaces
        .delete("doomed", &DeleteParams::default())
        .await
        .unwrap();
    let names = || async {
        let all = namespaces.list(&ListParams::default()).await.unwrap();
        all.into_iter()
            .map(|namespace| namespace.name_any())
            .collect::<Vec<_>>()
    };
    let left = lines([
        "default",
        "kube-node-lease",
        "kube-public",
        "kube-system",
        "neighbour",
    ]);
    eventually("namespaces", left, names).await;
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let maps = maps.list(&ListParams::default()).await.unwrap();
    let of = |namespace: &str| {
        maps.iter()
            .filter(|map| map.namespace().as_deref() == Some(namespace))
            .count()
    };
    assert_eq!((of("doomed"), of("neighbour")), (0, 3));
}

/// Makes a ConfigMap with these owners; answers it.
async fn owned(cluster: &ControlPlane, name: &str, owners: &[&ConfigMap]) -> ConfigMap {
    let owners = owners.iter().map(|owner| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid()})
    });
    let owners: Vec<_> = owners.collect();
    let map = json!({"metadata": {"name": name, "ownerReferences": owners}});
    create(&cluster.here::<ConfigMap>(), map).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_owns_any_more_goes_with_what_it_owns_itself() {
    let cluster = ControlPlane::start(quick()).await;
    let maps = cluster.here::<ConfigMap>();
    let top = owned(&cluster, "top", &[]).await;
    let other = owned(&cluster, "other", &[]).await;
    let middle = owned(&cluster, "middle", &[&top]).await;
    owned(&cluster, "bottom", &[&middle]).await;
    owned(&cluster, "shared", &[&top, &other]).await;
    // Its owner has the name of one that is there, but never was that one.
    let mut feigned = top.clone();
    feigned.metadata.uid = Some("00000000-0000-0000-0000-000000000000".to_owned());
    owned(&cluster, "feigned", &[&feigned]).await;
    let names = || async {
        let list = maps.list(&ListParams::default()).await.unwrap();
        let mut names: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
        names.retain(|name| name != "kube-root-ca.crt");
        names.sort();
        names
    };
    let five = lines(["bottom", "middle", "other", "shared", "top"]);
    eventually("one without a real owner", five, names).await;
    maps.delete("top", &DeleteParams::background())
        .await
        .unwrap();
    let two = lines(["other", "shared"]);
    eventually("what depended on top is gone", two, names).await;
    eventually("shared has one owner", 1, || async {
        let shared = maps.get("shared").await.unwrap();
        shared.owner_references().len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_goes_after_its_dependents_or_leaves_them_as_it_is_asked() {
    let cluster = ControlPlane::start(quick()).await;
    let maps = cluster.here::<ConfigMap>();
    let there = |name: &'static str| {
        let maps = maps.clone();
        move || {
            let maps = maps.clone();
            async move { maps.get_opt(name).await.unwrap().is_some() }
        }
    };
    let kept = owned(&cluster, "kept", &[]).await;
    owned(&cluster, "orphan", &[&kept]).await;
    maps.delete("kept", &DeleteParams::orphan()).await.unwrap();
    eventually("the owner goes", false, there("kept")).await;
    let orphan = maps.get("orphan").await.unwrap();
    assert!(orphan.owner_references().is_empty(), "{orphan:?}");

    let owner = owned(&cluster, "owner", &[]).await;
    let blocking = json!({"metadata": {"name": "child", "finalizers": ["example.com/hold"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid(),
            "blockOwnerDeletion": true}]}});
    create(&maps, blocking).await;
    maps.delete("owner", &DeleteParams::foreground())
        .await
        .unwrap();
    eventually("the child is asked to go", true, || async {
        let child = maps.get("child").await.unwrap();
        child.metadata.deletion_timestamp.is_some()
    })
    .await;
    assert!(
        maps.get_opt("owner").await.unwrap().is_some(),
        "the owner went first"
    );
    merge(&maps, "child", json!({"metadata": {"finalizers": null}})).await;
    eventually("the owner goes after its child", false, there("owner")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_or_over_is_given_back_to_the_quota() {
    let cluster = ControlPlane::start(quick()).await;
    cluster.add_node("a").await;
    let quotas = cluster.here::<ResourceQuota>();
    let map = |name: &str| json!({"metadata": {"name": name}});
    create(&cluster.here::<ConfigMap>(), map("before")).await;
    let hard = json!({"configmaps": "2", "pods": "1", "requests.cpu": "1", "count/deployments.apps": "1", "count/widgets.example.com": "3"});
    create(
        &quotas,
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}),
    )
    .await;
    let used = || async {
        let quota = quotas.get("q").await.unwrap();
        let used = quota.status.and_then(|status| status.used);
        let used = used.unwrap_or_default().into_iter();
        used.map(|(name, amount)| format!("{name}={}", amount.0))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let of = |maps: u8, pods: u8, cpu: &str| {
        format!(
            "configmaps={maps} count/deployments.apps=0 count/widgets.example.com=0 pods={pods} requests.cpu={cpu}"
        )
    };
    eventually("what was there is counted", of(1, 0, "0"), used).await;
    create(&cluster.here::<ConfigMap>(), map("after")).await;
    assert_eq!(used().await, of(2, 0, "0"), "in the transaction itself");
    let (maps, how) = (cluster.here::<ConfigMap>(), PostParams::default());
    let third = serde_json::from_value(map("third")).unwrap();
    let refused = maps.create(&how, &third);
    let refused = refused.await.unwrap_err().to_string();
    assert!(
        refused.contains(
            "exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2"
        ),
        "{refused}"
    );
    cluster
        .here::<ConfigMap>()
        .delete("before", &DeleteParams::default())
        .await
        .unwrap();
    eventually("a deletion gives back", of(1, 0, "0"), used).await;

    cluster
        .add_pod("p", "p", "300m", json!({"nodeName": "a"}))
        .await;
    assert_eq!(used().await, of(1, 1, "300m"));
    patch_status(&cluster.here::<Pod>(), "p", json!({"phase": "Succeeded"})).await;
    eventually("a pod that is over gives back", of(1, 0, "0"), used).await;
    cluster
        .add_pod("q", "q", "500m", json!({"nodeName": "a"}))
        .await;
    assert_eq!(used().await, of(1, 1, "500m"));
    merge(
        &quotas,
        "q",
        json!({"spec": {"hard": {"requests.cpu": null}}}),
    )
    .await;
    let less =
        "configmaps=1 count/deployments.apps=0 count/widgets.example.com=0 pods=1".to_owned();
    eventually("another specification is counted anew", less, used).await;
}
