//! ValidatingAdmissionPolicies: rules in CEL that writes are held against.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Answer, Server};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

async fn add(server: &Server, plural: &str, object: Value) -> Answer {
    server.post(&format!("{GROUP}/{plural}"), object).await
}

fn policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [
        {"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}}});
    for (field, value) in spec.as_object().unwrap() {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn binding(policy: &str, spec: Value) -> Value {
    let mut binding = json!({"metadata": {"name": format!("{policy}-here")}, "spec": {"policyName": policy, "validationActions": ["Deny"]}});
    for (field, value) in spec.as_object().unwrap() {
        binding["spec"][field] = value.clone();
    }
    binding
}

async fn enforce(server: &Server, name: &str, spec: Value, bound: Value) {
    let made = add(server, "validatingadmissionpolicies", policy(name, spec)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.header("warning"), "");
    let made = add(
        server,
        "validatingadmissionpolicybindings",
        binding(name, bound),
    )
    .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
}

async fn make(server: &Server, name: &str, data: Value) -> Answer {
    server
        .post(MAPS, json!({"metadata": {"name": name}, "data": data}))
        .await
}

fn message(answer: &Answer) -> String {
    answer.json()["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_breaks_a_policy_is_denied_with_the_authors_words() {
    let server = Server::start().await;
    let spec = json!({
        "variables": [
            {"name": "size", "expression": "int(object.data.size)"},
            {"name": "double", "expression": "variables.size * 2"},
        ],
        "matchConditions": [{"name": "sized", "expression": "has(object.data) && has(object.data.size)"}],
        "validations": [
            {"expression": "variables.double <= 10", "messageExpression": "'twice is ' + string(variables.double)", "reason": "Forbidden"},
            {"expression": "oldObject == null || variables.size >= int(oldObject.data.size)", "message": "it may only grow"},
            {"expression": "namespaceObject.metadata.name == request.namespace"},
        ],
    });
    enforce(&server, "small", spec, json!({})).await;
    assert_eq!(
        make(&server, "other", json!({})).await.status,
        StatusCode::CREATED,
        "no condition holds"
    );
    assert_eq!(
        make(&server, "a", json!({"size": "5"})).await.status,
        StatusCode::CREATED
    );
    let large = make(&server, "b", json!({"size": "6"})).await;
    assert_eq!(large.status, StatusCode::FORBIDDEN);
    assert_eq!(
        message(&large),
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'small-here' denied request: twice is 12"
    );
    let patch = [("content-type", "application/merge-patch+json")];
    let less = json!({"data": {"size": "4"}}).to_string();
    let less = server
        .ask(Method::PATCH, &format!("{MAPS}/a"), &patch, less)
        .await;
    assert_eq!(less.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(less.json()["reason"], "Invalid");
    assert!(message(&less).ends_with("denied request: it may only grow"));
    // What cannot be worked out is denied too.
    let odd = make(&server, "c", json!({"size": "x"})).await;
    assert!(
        message(&odd)
            .contains("expression 'variables.double <= 10' resulted in error: no such key: double"),
        "{}",
        message(&odd)
    );
    server
        .delete(&format!(
            "{GROUP}/validatingadmissionpolicybindings/small-here"
        ))
        .await;
    assert_eq!(
        make(&server, "b", json!({"size": "6"})).await.status,
        StatusCode::CREATED,
        "without a binding"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_come_from_objects_and_warnings_reach_the_client() {
    let server = Server::start().await;
    let limits = json!({"metadata": {"name": "limits"}, "data": {"most": "2"}});
    server
        .post("/api/v1/namespaces/kube-system/configmaps", limits)
        .await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "object.metadata.namespace != 'default' || object.?data.orValue({}).size() <= int(params.data.most)", "message": "too much"}],
    });
    let bound = json!({
        "paramRef": {"name": "limits", "namespace": "kube-system", "parameterNotFoundAction": "Deny"},
        "validationActions": ["Warn"],
        "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}},
    });
    enforce(&server, "most", spec, bound).await;
    let fits = make(&server, "fits", json!({"a": "", "b": ""})).await;
    assert_eq!(
        (fits.status, fits.header("warning")),
        (StatusCode::CREATED, "")
    );
    let over = make(&server, "over", json!({"a": "", "b": "", "c": ""})).await;
    assert_eq!(over.status, StatusCode::CREATED);
    let warning = "299 - \"Validation failed for ValidatingAdmissionPolicy 'most' with binding 'most-here': too much\"";
    assert_eq!(over.header("warning"), warning);
    server
        .delete("/api/v1/namespaces/kube-system/configmaps/limits")
        .await;
    server.registry.caught_up().await.unwrap();
    let lost = make(&server, "lost", json!({})).await;
    assert!(
        lost.header("warning").contains("no params found"),
        "{}",
        lost.header("warning")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_could_only_fail_is_refused_with_the_place() {
    let server = Server::start().await;
    let spec = json!({
        "matchConditions": [{"name": "a", "expression": "authorizer.group('').resource('x')"}],
        "variables": [{"name": "1-x", "expression": "1"}],
        "validations": [{"expression": "object.spec >"}, {"expression": "nobody(object)"}, {"expression": "true", "reason": "Because"}],
    });
    let answer = add(&server, "validatingadmissionpolicies", policy("p", spec)).await;
    assert_eq!(
        answer.status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "{}",
        answer.text()
    );
    let causes = answer.json()["details"]["causes"]
        .as_array()
        .unwrap()
        .clone();
    let fields: Vec<&str> = causes
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.matchConditions[0].expression",
            "spec.variables[0].name",
            "spec.validations[0].expression",
            "spec.validations[1].expression",
            "spec.validations[2].reason",
        ]
    );
    assert!(causes[3]["message"].as_str().unwrap().contains("compilation failed: ERROR: <input>:1:7: undeclared reference to 'nobody' (in container '')"), "{}", causes[3]);
    let both = binding(
        "p",
        json!({"validationActions": ["Deny", "Warn"], "paramRef": {}}),
    );
    let answer = add(&server, "validatingadmissionpolicybindings", both).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_never_ends_denies_within_its_budget() {
    let server = Server::start().await;
    let many = format!("[{}]", vec!["1"; 100].join(","));
    let forever = format!(
        "{many}.all(a, {many}.all(b, {many}.all(c, {many}.all(d, {many}.all(e, a + b + c + d + e > 0)))))"
    );
    enforce(
        &server,
        "forever",
        json!({"validations": [{"expression": forever}]}),
        json!({}),
    )
    .await;
    let began = std::time::Instant::now();
    let denied = make(&server, "m", json!({})).await;
    assert!(
        message(&denied).ends_with("operation cancelled: actual cost limit exceeded"),
        "{}",
        message(&denied)
    );
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
