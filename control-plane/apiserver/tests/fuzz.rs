//! Whatever comes, the answer is a Status that blames the client, and the server goes on.

mod common;

use common::Server;
use http::Method;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value};

/// Words that lead somewhere.
const WORDS: &[&str] = &[
    "$deleteFromPrimitiveList/finalizers",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "apiVersion",
    "containerPort",
    "containers",
    "data",
    "finalizers",
    "image",
    "kind",
    "labels",
    "managedFields",
    "metadata",
    "name",
    "ports",
    "replicas",
    "selector",
    "matchLabels",
    "spec",
    "template",
    "versions",
    "schema",
    "delete",
    "replace",
    "op",
    "path",
    "/spec/replicas",
    "value",
    "fieldsV1",
    "k:{\"name\":1}",
    "operation",
    "Apply",
];

const PATHS: &[&str] = &[
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/configmaps/c",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/pods/p/eviction",
    "/api/v1/namespaces/default/pods/p/binding",
    "/api/v1/namespaces/default/services",
    "/api/v1/nodes/n/status",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/apps/v1/namespaces/default/deployments/d",
    "/apis/apps/v1/namespaces/default/deployments/d/scale",
    "/apis/apps/v1/namespaces/default/deployments/d/status",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h",
    "/apis/batch/v1/namespaces/default/cronjobs",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/openapi/v3/apis/apps/v1",
    "/apis",
];

const TYPES: &[&str] = &[
    "",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const DEPLOYMENT: &str = r#"{"metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":
    {"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}]}]}}}}"#;

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        proptest::sample::select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let entry = (proptest::sample::select(WORDS), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            proptest::collection::vec(entry, 0..6).prop_map(|entries| {
                let entries = entries.into_iter().map(|(k, v)| (k.to_owned(), v));
                Value::Object(entries.collect::<Map<_, _>>())
            }),
        ]
    })
}

fn query() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(
        &[
            "labelSelector",
            "fieldSelector",
            "limit",
            "continue",
            "resourceVersion",
            "resourceVersionMatch",
            "dryRun",
            "fieldManager",
            "force",
            "fieldValidation",
            "propagationPolicy",
            "gracePeriodSeconds",
            "includeObject",
            "hash",
        ][..],
    );
    let value = prop_oneof![
        "[a-z0-9=!,()%+ ]{0,12}",
        Just("All".to_owned()),
        Just("true".to_owned())
    ];
    proptest::collection::vec((name, value), 0..4).prop_map(|pairs| {
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(name, value)| format!("{name}={}", value.replace(' ', "+")))
            .collect();
        pairs.join("&")
    })
}

#[test]
fn nothing_makes_it_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let made = runtime.block_on(server.ask(Method::POST, deployments, &[], DEPLOYMENT));
    assert_eq!(made.status, 201, "{}", made.text());
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let body = prop_oneof![
        json().prop_map(|v| v.to_string().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..64),
        proptest::collection::vec(any::<u8>(), 0..64)
            .prop_map(|raw| [b"k8s\0".to_vec(), raw].concat()),
    ];
    let request = (
        proptest::sample::select(methods.to_vec()),
        proptest::sample::select(PATHS),
        proptest::sample::select(TYPES),
        query(),
        body,
    );
    let mut runner = TestRunner::new(Config::with_cases(1500));
    let outcome = runner.run(&request, |(method, path, kind, query, body)| {
        // The collections of this test are not to be emptied.
        prop_assume!(method != Method::DELETE || !path.ends_with("deployments"));
        let headers: &[(&str, &str)] = if kind.is_empty() {
            &[]
        } else {
            &[("content-type", kind)]
        };
        let uri = format!("{path}?{query}");
        let answer = runtime.block_on(server.ask(method, &uri, headers, body));
        let status = answer.status.as_u16();
        // A resourceVersion that has not happened is waited for in vain.
        prop_assert!(status < 500 || status == 504, "{status}: {}", answer.text());
        if status >= 400 && answer.header("content-type") == "application/json" {
            prop_assert_eq!(&answer.json()["kind"], "Status");
        }
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(runtime.block_on(server.get("/readyz")).status, 200);
}
