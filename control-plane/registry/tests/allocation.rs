//! ClusterIPs and node ports: never the same twice, not under load and not after a restart.

mod common;

use std::collections::HashSet;

use common::{Cluster, service};
use control_plane_registry::Options;
use serde_json::{Value, json};

/// 14 addresses of each family, one of them for Service `kubernetes`; 8 node ports.
fn small() -> Options {
    Options {
        service_cidrs: vec![
            "10.0.0.0/28".parse().expect("a CIDR"),
            "fd00::/124".parse().expect("a CIDR"),
        ],
        node_ports: 30000..=30007,
    }
}

fn ip(service: &Value) -> String {
    let ip = service["spec"]["clusterIP"].as_str();
    ip.expect("a clusterIP").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_get_different_addresses_and_ports_until_there_are_none() {
    let cluster = Cluster::with(small()).await;
    let creates = (0..40).map(|n| {
        let (cluster, kind) = (&cluster, if n % 2 == 0 { "NodePort" } else { "ClusterIP" });
        async move {
            cluster
                .create("services", service(&format!("s{n}"), kind))
                .await
        }
    });
    let mut ips = HashSet::new();
    let mut ports = HashSet::new();
    for outcome in futures::future::join_all(creates).await {
        match outcome {
            Ok(made) => {
                assert!(ips.insert(ip(&made)), "{} twice", ip(&made));
                if let Some(port) = made["spec"]["ports"][0]["nodePort"].as_i64() {
                    assert!(ports.insert(port), "{port} twice");
                }
            }
            Err(error) => assert!(error.message.ends_with("range is full"), "{error}"),
        }
    }
    // All are used: 13 of 14 addresses (10.0.0.1 is taken already), or all 8 ports.
    assert!(ips.len() == 13 || ports.len() == 8, "{ips:?} {ports:?}");
    assert!(!ips.contains("10.0.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_who_ask_for_the_same_address_gets_it() {
    let cluster = Cluster::with(small()).await;
    let creates = (0..10).map(|n| {
        let mut wish = service(&format!("s{n}"), "NodePort");
        wish["spec"]["clusterIP"] = json!("10.0.0.9");
        wish["spec"]["ports"][0]["nodePort"] = json!(30005);
        cluster.create("services", wish)
    });
    let outcomes = futures::future::join_all(creates).await;
    let (made, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 1);
    for error in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.code, 422);
        assert!(error.message.contains("is already allocated"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_stays_taken_over_a_restart_and_comes_back_after_a_delete() {
    let cluster = Cluster::with(small()).await;
    let made = cluster
        .create("services", service("a", "NodePort"))
        .await
        .unwrap();
    let cluster = cluster.restart(small()).await;
    let mut same = service("b", "ClusterIP");
    same["spec"]["clusterIP"] = json!(ip(&made));
    let error = cluster.create("services", same.clone()).await.unwrap_err();
    assert_eq!(
        error.message,
        format!(
            "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{0}\"]: failed to allocate IP {0}: provided IP is already allocated",
            ip(&made)
        )
    );
    cluster.delete("services", "a").await.unwrap();
    let again = cluster.create("services", same).await.unwrap();
    assert_eq!(ip(&again), ip(&made));
    let mut ports = service("c", "NodePort");
    ports["spec"]["ports"][0]["nodePort"] = made["spec"]["ports"][0]["nodePort"].clone();
    cluster.create("services", ports).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_type_takes_and_gives_back() {
    let cluster = Cluster::with(small()).await;
    let made = cluster
        .create("services", service("s", "ClusterIP"))
        .await
        .unwrap();
    assert!(made["spec"]["ports"][0].get("nodePort").is_none());
    let change = |spec: Value| cluster.patch("services", "s", json!({"spec": spec}));
    let open = change(json!({"type": "NodePort"})).await.unwrap();
    assert_eq!(ip(&open), ip(&made));
    let port = open["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert_eq!(open["spec"]["externalTrafficPolicy"], "Cluster");
    let closed = change(json!({"type": "ClusterIP"})).await.unwrap();
    assert!(closed["spec"]["ports"][0].get("nodePort").is_none());
    assert!(closed["spec"].get("externalTrafficPolicy").is_none());
    let mut other = service("other", "NodePort");
    other["spec"]["ports"][0]["nodePort"] = json!(port);
    cluster.create("services", other).await.unwrap();

    let named = change(json!({"type": "ExternalName", "externalName": "example.com"}))
        .await
        .unwrap();
    assert!(named["spec"].get("clusterIP").is_none());
    let mut third = service("third", "ClusterIP");
    third["spec"]["clusterIP"] = json!(ip(&made));
    cluster.create("services", third).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_stack_is_what_the_policy_says() {
    let cluster = Cluster::with(small()).await;
    for (policy, families) in [
        (json!(null), vec!["IPv4"]),
        (json!("SingleStack"), vec!["IPv4"]),
        (json!("PreferDualStack"), vec!["IPv4", "IPv6"]),
        (json!("RequireDualStack"), vec!["IPv4", "IPv6"]),
    ] {
        let mut wish = service("s", "ClusterIP");
        wish["spec"]["ipFamilyPolicy"] = policy.clone();
        let made = cluster.create("services", wish).await.unwrap();
        assert_eq!(made["spec"]["ipFamilies"], json!(families), "{policy}");
        assert_eq!(
            made["spec"]["clusterIPs"].as_array().unwrap().len(),
            families.len()
        );
        cluster.delete("services", "s").await.unwrap();
    }
    let headless =
        json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "selector": {"a": "b"}}});
    let made = cluster.create("services", headless).await.unwrap();
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    let mut six = service("six", "ClusterIP");
    six["spec"]["ipFamilies"] = json!(["IPv6"]);
    let made = cluster.create("services", six).await.unwrap();
    assert!(ip(&made).starts_with("fd00::"));
    // One address of the two goes when the Service becomes single-stack.
    let mut both = service("both", "ClusterIP");
    both["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    let made = cluster.create("services", both).await.unwrap();
    let change = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let single = cluster.patch("services", "both", change).await.unwrap();
    assert_eq!(single["spec"]["clusterIPs"], json!([ip(&made)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replace_without_address_keeps_it_and_another_address_is_refused() {
    let cluster = Cluster::with(small()).await;
    let made = cluster
        .create("services", service("s", "NodePort"))
        .await
        .unwrap();
    let kept = cluster
        .update("services", None, service("s", "NodePort"))
        .await
        .unwrap();
    assert_eq!(kept["spec"], made["spec"]);
    let mut moved = service("s", "NodePort");
    let other = ["10.0.0.11", "10.0.0.12"];
    let other = other.iter().find(|other| **other != ip(&made)).unwrap();
    moved["spec"]["clusterIP"] = json!(other);
    let error = cluster.update("services", None, moved).await.unwrap_err();
    assert_eq!(error.code, 422);
    assert!(error.message.contains("may not change once set"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_kubernetes_has_the_first_address_and_leads_to_the_servers() {
    let cluster = Cluster::with(small()).await;
    assert_eq!(
        ip(&cluster.get("services", "kubernetes").await.unwrap()),
        "10.0.0.1"
    );
    let at = [
        "172.31.240.1:6443".parse().unwrap(),
        "[fd00:fa1e::1]:6443".parse().unwrap(),
    ];
    cluster.registry.publish(&at).await.unwrap();
    let slice = cluster.get("endpointslices", "kubernetes").await.unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["172.31.240.1"]));
    assert_eq!(slice["ports"][0]["port"], 6443);
    cluster.registry.publish(&[]).await.unwrap();
    let slice = cluster.get("endpointslices", "kubernetes").await.unwrap();
    assert_eq!(slice["endpoints"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_that_keeps_clients_addresses_gets_a_port_for_its_health_checks() {
    let cluster = Cluster::with(small()).await;
    let mut wish = service("web", "LoadBalancer");
    wish["spec"]["externalTrafficPolicy"] = json!("Local");
    let made = cluster.create("services", wish).await.expect("created");
    let port = made["spec"]["healthCheckNodePort"].as_i64();
    let port = port.expect("a port was allocated");
    assert!((30000..=30007).contains(&port), "{port}");
    assert_ne!(made["spec"]["ports"][0]["nodePort"], port);

    // Nobody else gets it, and it is wrong where nobody asks there.
    let mut other = service("other", "NodePort");
    other["spec"]["ports"][0]["nodePort"] = json!(port);
    let error = cluster.create("services", other).await.expect_err("taken");
    assert!(error.message.contains("already allocated"), "{error}");
    let mut wrong = service("wrong", "LoadBalancer");
    wrong["spec"]["healthCheckNodePort"] = json!(30001);
    let error = cluster.create("services", wrong).await.expect_err("no use");
    assert!(
        error.message.contains("spec.healthCheckNodePort") && error.message.contains("'Local'"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ranges_of_the_server_stand_in_a_service_cidr() {
    let cluster = Cluster::with(small()).await;
    let made = cluster.get("servicecidrs", "kubernetes").await.unwrap();
    let ranges: Vec<_> = small()
        .service_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(made["spec"]["cidrs"], json!(ranges));
    let condition = &made["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("Ready"), &json!("True"))
    );
    // Another start writes nothing.
    let cluster = cluster.restart(small()).await;
    let again = cluster.get("servicecidrs", "kubernetes").await.unwrap();
    assert_eq!(again, made);
}
