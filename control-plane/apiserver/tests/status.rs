//! Status bodies, word by word as a real kube-apiserver writes them.

mod common;

use common::Server;
use http::{Method, StatusCode};
use serde_json::{Value, json};

fn failure(code: u16, reason: &str, message: &str, details: Value) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !details.is_null() {
        status["details"] = details;
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there() {
    let server = Server::start().await;
    let answer = server.get("/api/v1/namespaces/default/pods/nope").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let want = failure(
        404,
        "NotFound",
        "pods \"nope\" not found",
        json!({"name": "nope", "kind": "pods"}),
    );
    assert_eq!(answer.json(), want);
    let answer = server
        .get("/apis/coordination.k8s.io/v1/namespaces/default/leases/nope")
        .await;
    let want = failure(
        404,
        "NotFound",
        "leases.coordination.k8s.io \"nope\" not found",
        json!({"name": "nope", "group": "coordination.k8s.io", "kind": "leases"}),
    );
    assert_eq!(answer.json(), want);
    let answer = server.get("/api/v1/podz").await;
    assert_eq!(
        answer.json()["message"],
        "the server could not find the requested resource"
    );
    let answer = server.get("/apis/example.com/v1/things").await;
    assert_eq!(
        (answer.status, answer.text().trim()),
        (StatusCode::NOT_FOUND, "404 page not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_and_what_has_changed() {
    let server = Server::start().await;
    let answer = server
        .post(
            "/api/v1/namespaces",
            json!({"metadata": {"name": "default"}}),
        )
        .await;
    let want = failure(
        409,
        "AlreadyExists",
        "namespaces \"default\" already exists",
        json!({"name": "default", "kind": "namespaces"}),
    );
    assert_eq!(answer.json(), want);
    let uri = "/api/v1/namespaces/default/services/kubernetes";
    let mut service = server.get(uri).await.json();
    service["metadata"]["resourceVersion"] = json!("1");
    let answer = server.ask(Method::PUT, uri, &[], service.to_string()).await;
    let want = failure(
        409,
        "Conflict",
        "Operation cannot be fulfilled on services \"kubernetes\": the object has been modified; please apply your changes to the latest version and try again",
        json!({"name": "kubernetes", "kind": "services"}),
    );
    assert_eq!(answer.json(), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_invalid_names_every_field() {
    let server = Server::start().await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "Z_"}, "spec": {"containers": []}});
    let answer = server.post("/api/v1/namespaces/default/pods", pod).await;
    let name = "Invalid value: \"Z_\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let want = failure(
        422,
        "Invalid",
        &format!("Pod \"Z_\" is invalid: [metadata.name: {name}, spec.containers: Required value]"),
        json!({"name": "Z_", "kind": "Pod", "causes": [
            {"reason": "FieldValueInvalid", "message": name, "field": "metadata.name"},
            {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"},
        ]}),
    );
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.json(), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_understood() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces/default/configmaps";
    let strict = format!("{uri}?fieldValidation=Strict");
    let body = r#"{"metadata":{"name":"m"},"data":{"a":"1","a":"2"},"dataa":{}}"#;
    let answer = server.ask(Method::POST, &strict, &[], body).await;
    let want = failure(
        400,
        "BadRequest",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\", unknown field \"dataa\"",
        Value::Null,
    );
    assert_eq!(answer.json(), want);
    let answer = server.ask(Method::POST, uri, &[], body).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let warnings: Vec<_> = answer.headers.get_all("warning").iter().collect();
    assert_eq!(
        warnings,
        [
            "299 - \"duplicate field \\\"data.a\\\"\"",
            "299 - \"unknown field \\\"dataa\\\"\""
        ]
    );

    let cbor = [("content-type", "application/cbor")];
    let answer = server.ask(Method::POST, uri, &cbor, "\u{a0}").await;
    let want = failure(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        Value::Null,
    );
    assert_eq!(answer.json(), want);
    let answer = server
        .get(&format!("{uri}?fieldSelector=spec.foo%3D1"))
        .await;
    let want = failure(
        400,
        "BadRequest",
        "field label not supported: spec.foo",
        Value::Null,
    );
    assert_eq!(answer.json(), want);
    let answer = server.get(&format!("{uri}?continue=abc&limit=1")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let large = "x".repeat(3 * 1024 * 1024 + 1);
    let answer = server.ask(Method::POST, uri, &[], large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.json()["reason"], "RequestEntityTooLarge");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_make_no_sense() {
    let server = Server::start().await;
    let uri = "/api/v1/pods?watch=true&sendInitialEvents=true";
    let answer = server.get(uri).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        answer.json()["message"],
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    );
    let answer = server
        .get("/api/v1/pods?resourceVersion=999999999&resourceVersionMatch=NotOlderThan")
        .await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(
        answer.json()["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(answer.json()["details"]["retryAfterSeconds"], 1);
    let answer = server.ask(Method::PUT, "/api/v1/pods", &[], "{}").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_answer_by_kind() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces/default/configmaps";
    let made = server
        .post(uri, json!({"metadata": {"name": "m"}}))
        .await
        .json();
    let answer = server.delete(&format!("{uri}/m")).await;
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": "m", "kind": "configmaps", "uid": made["metadata"]["uid"]}});
    assert_eq!(answer.json(), want);
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "a"}]}});
    server.post(pods, pod).await;
    let answer = server.delete(&format!("{pods}/p")).await.json();
    assert_eq!(answer["kind"], "Pod");
    assert_eq!(answer["metadata"]["deletionGracePeriodSeconds"], 30);
    for name in ["a", "b"] {
        server
            .post(
                uri,
                json!({"metadata": {"name": name, "labels": {"x": name}}}),
            )
            .await;
    }
    let answer = server
        .delete(&format!("{uri}?labelSelector=x%3Da"))
        .await
        .json();
    assert_eq!(answer["kind"], "ConfigMapList");
    assert_eq!(answer["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        server.get(uri).await.json()["items"][0]["metadata"]["name"],
        "b"
    );
}
