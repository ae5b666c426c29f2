//! Requests made to harm: each is refused with a Status, quickly and without memory for it, and the server goes on.

mod common;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Answer, Server};
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON_PATCH: &[(&str, &str)] = &[("content-type", "application/json-patch+json")];
const YAML: &[(&str, &str)] = &[("content-type", "application/yaml")];
const PROTOBUF: &[(&str, &str)] = &[("content-type", "application/vnd.kubernetes.protobuf")];

async fn server() -> Server {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "c"}, "data": {"a": "x".repeat(1000)}});
    assert_eq!(server.post(MAPS, body).await.status, 201);
    server
}

/// It is refused with this code, as a Status, and the server is well.
async fn refused(server: &Server, answer: &Answer, code: u16) -> String {
    assert_eq!(answer.status, code, "{}", answer.text());
    let status = answer.json();
    assert_eq!(
        (&status["kind"], &status["code"]),
        (&json!("Status"), &json!(code))
    );
    assert_eq!(server.get("/readyz").await.status, 200);
    status["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_patch_that_doubles_an_object_with_each_copy_is_refused() {
    let server = server().await;
    let mut operations = vec![json!({"op": "add", "path": "/data/b", "value": "x"})];
    for step in 0..60 {
        let path = format!("/data/copy{step}");
        operations.push(json!({"op": "copy", "from": "/data", "path": path}));
    }
    let began = Instant::now();
    let path = format!("{MAPS}/c");
    let body = Value::from(operations).to_string();
    let answer = server.ask(Method::PATCH, &path, JSON_PATCH, body).await;
    let message = refused(&server, &answer, 422).await;
    assert!(message.contains("copies"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_patch_of_more_than_10000_operations_is_refused() {
    let server = server().await;
    let operation = json!({"op": "test", "path": "/kind", "value": "ConfigMap"});
    let path = format!("{MAPS}/c");
    for (count, code) in [(10_000, 200), (10_001, 413)] {
        let body = Value::from(vec![operation.clone(); count]).to_string();
        let answer = server.ask(Method::PATCH, &path, JSON_PATCH, body).await;
        assert_eq!(answer.status, code, "{count}: {}", answer.text());
    }
}

#[tokio::test]
async fn times_beyond_all_time_are_no_crash() {
    let server = server().await;
    let watch = format!("{MAPS}?watch=1&timeoutSeconds={}", u64::MAX);
    let mut lines = server.watch(&watch, &[]).await;
    assert_eq!(lines.next().await.unwrap()["type"], "ADDED");
    let pod = json!({"metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i:1"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(server.post(pods, pod).await.status, 201);
    // A deletion can be made shorter, never longer.
    for (seconds, left) in [(u64::MAX, i64::MAX), (1 << 60, 1 << 60), (9, 9)] {
        let answer = server
            .delete(&format!("{pods}/p?gracePeriodSeconds={seconds}"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            answer.json()["metadata"]["deletionGracePeriodSeconds"],
            left
        );
    }
    let body = format!("{{\"gracePeriodSeconds\":{}}}", i64::MIN);
    let path = format!("{pods}/p");
    let answer = server.ask(Method::DELETE, &path, &[], body).await;
    // Kubernetes takes a negative grace for the shortest that leaves time to end.
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["metadata"]["deletionGracePeriodSeconds"], 1);
}

#[tokio::test]
async fn an_alias_bomb_is_refused() {
    let server = server().await;
    let mut text =
        "kind: ConfigMap\nmetadata: {name: bomb}\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            .to_owned();
    for level in 1..20 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let began = Instant::now();
    refused(
        &server,
        &server.ask(Method::POST, MAPS, YAML, text).await,
        400,
    )
    .await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn bodies_nested_without_end_are_refused() {
    let server = server().await;
    let (open, close) = ("{\"a\":".repeat(200_000), "}".repeat(200_000));
    let deep = format!("{{\"metadata\":{{\"name\":\"deep\"}},\"data\":{open}1{close}}}");
    refused(
        &server,
        &server.ask(Method::POST, MAPS, &[], deep.clone()).await,
        400,
    )
    .await;
    refused(
        &server,
        &server.ask(Method::POST, MAPS, YAML, deep.clone()).await,
        400,
    )
    .await;
    for patch in [
        "merge-patch+json",
        "strategic-merge-patch+json",
        "json-patch+json",
        "apply-patch+yaml",
    ] {
        let media = format!("application/{patch}");
        let path = format!("{MAPS}/c?fieldManager=f");
        let headers = [("content-type", media.as_str())];
        let answer = server
            .ask(Method::PATCH, &path, &headers, deep.clone())
            .await;
        refused(&server, &answer, 400).await;
    }
    let dashes = "- ".repeat(500_000);
    refused(
        &server,
        &server.ask(Method::POST, MAPS, YAML, dashes).await,
        400,
    )
    .await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let answer = server
        .ask(
            Method::POST,
            definitions,
            PROTOBUF,
            nested_definition(20_000),
        )
        .await;
    refused(&server, &answer, 400).await;
}

/// A CustomResourceDefinition in protobuf whose schema is `not` of `not` of …, `levels` deep.
fn nested_definition(levels: usize) -> Vec<u8> {
    // Inside out, by the numbers of apiextensions' generated.proto: the lengths must be known.
    let mut schema = Vec::new();
    for _ in 0..levels {
        schema = field(28, &schema);
    }
    let version = field(4, &field(1, &schema));
    let object = field(2, &field(7, &version));
    let kind = [
        field(1, b"apiextensions.k8s.io/v1"),
        field(2, b"CustomResourceDefinition"),
    ]
    .concat();
    [b"k8s\0".to_vec(), field(1, &kind), field(2, &object)].concat()
}

/// A length-delimited field.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    for mut rest in [number << 3 | 2, bytes.len() as u64] {
        while rest >= 0x80 {
            out.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
            rest >>= 7;
        }
        out.push(u8::try_from(rest).expect("seven bits"));
    }
    out.extend_from_slice(bytes);
    out
}

#[tokio::test]
async fn a_continue_token_leads_to_nothing_of_another_kind() {
    let server = server().await;
    let secret = json!({"metadata": {"name": "secret"}, "stringData": {"a": "b"}});
    assert_eq!(
        server
            .post("/api/v1/namespaces/default/secrets", secret)
            .await
            .status,
        201
    );
    let revision = server.get(MAPS).await.json()["metadata"]["resourceVersion"].clone();
    let revision: u64 = revision.as_str().unwrap().parse().unwrap();
    for start in [
        "../../secrets/",
        "/registry/secrets/",
        "\0",
        "",
        "zzz",
        "\u{10ffff}",
    ] {
        for rv in [revision, 0, 1, u64::MAX] {
            let token = json!({"v": "meta.k8s.io/v1", "rv": rv, "start": start});
            let token = URL_SAFE_NO_PAD.encode(token.to_string());
            let answer = server
                .get(&format!("{MAPS}?limit=5&continue={token}"))
                .await;
            assert!(answer.status.as_u16() < 500, "{}", answer.text());
            assert!(!answer.text().contains("secret\""), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn definitions_with_monstrous_patterns_are_refused() {
    let server = server().await;
    for pattern in [
        "(((a{1000}){1000}){1000})",
        &"(".repeat(5000),
        "a{4294967296}",
    ] {
        let definition = json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}}}]},
        });
        let answer = server
            .post(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
                definition,
            )
            .await;
        refused(&server, &answer, 422).await;
    }
}
