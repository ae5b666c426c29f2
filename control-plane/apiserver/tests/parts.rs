//! Parts of pods that have subresources of their own, and kinds that are worked out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Answer, Server};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const POD: &str = "/api/v1/namespaces/default/pods/p";

async fn with_pod() -> Server {
    let server = Server::start().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
    let made = server.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(made.status, StatusCode::CREATED);
    server
}

async fn patch(server: &Server, uri: &str, patch: Value) -> Answer {
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    server
        .ask(Method::PATCH, uri, &strategic, patch.to_string())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_to_debug_with_is_added_to_a_pod_that_runs() {
    let server = with_pod().await;
    // As kubectl debug sends it.
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debugger", "image": "busybox", "targetContainerName": "c", "stdin": true}]}});
    let answer = patch(
        &server,
        &format!("{POD}/ephemeralcontainers"),
        debug.clone(),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let pod = server.get(POD).await.json();
    let container = &pod["spec"]["ephemeralContainers"][0];
    assert_eq!(
        (&container["name"], &container["terminationMessagePolicy"]),
        (&json!("debugger"), &json!("File"))
    );
    assert_eq!(pod["metadata"]["generation"], 2);
    let refused = patch(
        &server,
        POD,
        json!({"spec": {"ephemeralContainers": [{"name": "more", "image": "busybox"}]}}),
    )
    .await;
    assert_eq!(
        refused.status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "only by the subresource"
    );
    let got = server
        .get(&format!("{POD}/ephemeralcontainers"))
        .await
        .json();
    assert_eq!(got["kind"], "Pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_of_a_pod_that_runs_are_changed_by_resize_only() {
    let server = with_pod().await;
    let more =
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
    assert_eq!(
        patch(&server, POD, more.clone()).await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    let answer = patch(&server, &format!("{POD}/resize"), more).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let pod = server.get(POD).await.json();
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "2"
    );
    let none =
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": null}}}]}});
    let refused = patch(&server, &format!("{POD}/resize"), none).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused
            .text()
            .contains("Pod QOS Class may not change as a result of resizing")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_a_component_with_a_status() {
    let server = Server::start().await;
    let answer = server.get("/api/v1/componentstatuses").await;
    assert_eq!(
        answer.header("warning"),
        "299 - \"v1 ComponentStatus is deprecated in v1.19+\""
    );
    let list = answer.json();
    assert_eq!(list["kind"], "ComponentStatusList");
    assert_eq!(list["items"][0]["metadata"]["name"], "etcd-0");
    assert_eq!(list["items"][0]["conditions"][0]["status"], "True");
    for selector in [
        "fieldSelector=metadata.name%3Dscheduler",
        "labelSelector=tier",
    ] {
        let path = format!("/api/v1/componentstatuses?{selector}");
        let list = server.get(&path).await.json();
        assert_eq!(list["items"], json!([]), "{selector}");
    }
    assert_eq!(
        server.get("/api/v1/componentstatuses/none").await.status,
        StatusCode::NOT_FOUND
    );
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = server
        .ask(
            Method::GET,
            "/api/v1/componentstatuses",
            &table,
            axum::body::Body::empty(),
        )
        .await
        .json();
    assert_eq!(
        table["rows"][0]["cells"],
        json!(["etcd-0", "Healthy", "ok", ""])
    );
    let made = server
        .post(
            "/api/v1/componentstatuses",
            json!({"metadata": {"name": "x"}}),
        )
        .await;
    assert_eq!(made.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_endpoints_hears_what_to_ask_for_instead() {
    const WARNING: &str =
        "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    const ALL: &str = "/api/v1/namespaces/default/endpoints";
    const ONE: &str = "/api/v1/namespaces/default/endpoints/e";
    let server = Server::start().await;
    let manifest = json!({"metadata": {"name": "e"}});
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    for (answer, status) in [
        // An error is an answer too.
        (server.get(ONE).await, StatusCode::NOT_FOUND),
        (server.post(ALL, manifest).await, StatusCode::CREATED),
        (server.get(ONE).await, StatusCode::OK),
        (server.get(ALL).await, StatusCode::OK),
        (server.get("/api/v1/endpoints").await, StatusCode::OK),
        (
            server.get(&format!("{ALL}?watch=1&timeoutSeconds=1")).await,
            StatusCode::OK,
        ),
        (patch(&server, ONE, labels).await, StatusCode::OK),
        (server.delete(ONE).await, StatusCode::OK),
        (server.delete(ALL).await, StatusCode::OK),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text());
        let said: Vec<_> = answer.headers.get_all("warning").iter().collect();
        assert_eq!(said, [WARNING], "{}", answer.text());
    }
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(server.get(slices).await.header("warning"), "");
}
