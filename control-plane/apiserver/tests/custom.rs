//! Custom resources as a client meets them that does not wait.

mod common;

use common::Server;
use http::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn who_has_defined_a_kind_may_use_it_at_once() {
    let server = Server::start().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for at in 0..20 {
        let plural = format!("things{at}");
        let definition = json!({
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {
                "group": "example.com",
                "scope": "Cluster",
                "names": {"plural": plural, "kind": format!("Thing{at}")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema":
                    {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        });
        let made = server.post(definitions, definition).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let things = format!("/apis/example.com/v1/{plural}");
        let made = server
            .post(&things, json!({"metadata": {"name": "t"}, "a": 1}))
            .await;
        assert_eq!(made.status, 201, "{}", made.text());
        let strategic = [("content-type", "application/strategic-merge-patch+json")];
        let one = format!("{things}/t");
        let refused = server.ask(Method::PATCH, &one, &strategic, "{}").await;
        assert_eq!(refused.status, 415, "{}", refused.text());
        let gone = server
            .delete(&format!("{definitions}/{plural}.example.com"))
            .await;
        assert_eq!(gone.status, 200, "{}", gone.text());
        assert_eq!(server.get(&things).await.status, 404);
    }
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn sized(spec: &Value) -> Value {
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object", "properties": {"ready": {"type": "integer"}}}}});
    json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Cluster",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.ready"}},
                "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

fn message(answer: &common::Answer) -> String {
    assert_eq!(answer.status, 422, "{}", answer.text());
    answer.json()["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_definition_hold_for_its_objects() {
    let server = Server::start().await;
    let spec = json!({
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.replicas <= self.most", "messageExpression": "'at most ' + string(self.most)", "fieldPath": ".replicas"},
            {"rule": "self.ports.all(p, self.ports.exists_one(q, q.port == p.port))", "message": "ports are used once", "reason": "FieldValueForbidden"},
        ],
        "properties": {
            "replicas": {"type": "integer"},
            "most": {"type": "integer", "default": 5},
            "class": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "class is immutable"}]},
            "ports": {"type": "array", "default": [], "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
                "type": "object", "required": ["name"],
                "properties": {"name": {"type": "string"}, "port": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.port >= oldSelf.port"}],
            }},
        },
    });
    let made = server.post(DEFINITIONS, sized(&spec)).await;
    assert_eq!(
        (made.status.as_u16(), made.header("warning")),
        (201, ""),
        "{}",
        made.text()
    );
    let things = "/apis/example.com/v1/things";
    let thing = |spec: Value| json!({"metadata": {"name": "t"}, "spec": spec});
    let many = server.post(things, thing(json!({"replicas": 6}))).await;
    assert_eq!(
        message(&many),
        "Thing.example.com \"t\" is invalid: spec.replicas: Invalid value: at most 5"
    );
    let twice =
        json!({"replicas": 1, "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]});
    let twice = server.post(things, thing(twice)).await;
    assert_eq!(
        message(&twice),
        "Thing.example.com \"t\" is invalid: spec: Forbidden: ports are used once"
    );
    let good = json!({"replicas": 2, "class": "x", "ports": [{"name": "a", "port": 2}, {"name": "b", "port": 3}]});
    let made = server.post(things, thing(good)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let merge = [("content-type", "application/merge-patch+json")];
    let one = format!("{things}/t");
    let patch = async |uri: &str, patch: Value| {
        server
            .ask(Method::PATCH, uri, &merge, patch.to_string())
            .await
    };
    let other = patch(&one, json!({"spec": {"class": "y"}})).await;
    assert_eq!(
        message(&other),
        "Thing.example.com \"t\" is invalid: spec.class: Invalid value: \"y\": class is immutable"
    );
    // Elements are told by their names, wherever they stand; one that is new has nothing before it.
    let ports = json!({"spec": {"ports": [{"name": "b", "port": 2}, {"name": "c", "port": 1}, {"name": "a", "port": 9}]}});
    let less = patch(&one, ports).await;
    assert_eq!(
        message(&less),
        "Thing.example.com \"t\" is invalid: spec.ports[0]: Invalid value: failed rule: self.port >= oldSelf.port"
    );
    // The scale is held to the rules too, and what cannot be worked out is a fault.
    let scaled = patch(&format!("{one}/scale"), json!({"spec": {"replicas": 9}})).await;
    assert!(message(&scaled).contains("at most 5"));
    let nothing = patch(&one, json!({"spec": {"replicas": null}})).await;
    assert!(
        message(&nothing).ends_with(
            "no such key: replicas evaluating rule: failed rule: self.replicas <= self.most"
        ),
        "{}",
        message(&nothing)
    );
    let fine = patch(&one, json!({"spec": {"replicas": 5}})).await;
    assert_eq!(fine.status, 200, "{}", fine.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_could_only_fail_are_refused_with_their_place() {
    let server = Server::start().await;
    let spec = json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.nothing > 1"}, {"rule": ""}, {"rule": "true", "messageExpression": "nobody", "reason": "Because", "fieldPath": ".x"},
        ],
        "properties": {"list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}});
    let answer = server.post(DEFINITIONS, sized(&spec)).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    let causes = answer.json()["details"]["causes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let fields: Vec<&str> = causes
        .iter()
        .filter_map(|cause| cause["field"].as_str())
        .collect();
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec]";
    assert_eq!(
        fields,
        [
            format!("{at}.x-kubernetes-validations[1].rule"),
            format!("{at}.properties[list].items.x-kubernetes-validations[0].rule"),
            format!("{at}.x-kubernetes-validations[0].rule"),
            format!("{at}.x-kubernetes-validations[2].messageExpression"),
        ]
    );
    let text = causes[2]["message"].as_str().unwrap_or_default();
    assert!(text.contains("compilation failed: ERROR: <input>:1:5: undefined field 'nothing'\n | self.nothing > 1\n | ....^"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_cannot_keep_the_server_busy() {
    let server = Server::start().await;
    let spec = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": [{"rule": "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c > 0)))"}]});
    let made = server.post(DEFINITIONS, sized(&spec)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let list: Vec<u32> = (1..20_000).collect();
    let began = std::time::Instant::now();
    let thing = json!({"metadata": {"name": "t"}, "spec": {"list": list}});
    let refused = server.post("/apis/example.com/v1/things", thing).await;
    assert!(
        message(&refused)
            .contains("no further validation rules will be run due to call cost exceeds limit"),
        "{}",
        message(&refused)
    );
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
