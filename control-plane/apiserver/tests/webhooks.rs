//! Admission webhooks: asked over TLS about writes, by what their configurations say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Server};
use control_plane_apiserver::{serve_tls, tls};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook of its own: labels what is called `labelled`, refuses what is called `bad`, and sleeps over `slow`.
struct Hook {
    url: String,
    authority: String,
    asked: Arc<Mutex<Vec<Value>>>,
    _stop: watch::Sender<bool>,
}

impl Hook {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.pem();
        let key = made.signing_key.serialize_pem();
        let config = tls::config(certificate.as_bytes(), key.as_bytes(), None).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let app = Router::new()
            .route("/", post(answer))
            .with_state(asked.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(serve_tls(listener, app, config, stopping));
        Self {
            url,
            authority: STANDARD.encode(certificate),
            asked,
            _stop: stop,
        }
    }

    /// A configuration of this hook, with `more` in it.
    fn configuration(&self, kind: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": "hook.example.com",
            "clientConfig": {"url": self.url, "caBundle": self.authority},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
        });
        for (field, value) in more.as_object().unwrap() {
            hook[field] = value.clone();
        }
        json!({"kind": kind, "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "hook"}, "webhooks": [hook]})
    }
}

async fn answer(
    State(asked): State<Arc<Mutex<Vec<Value>>>>,
    Json(review): Json<Value>,
) -> Json<Value> {
    let request = &review["request"];
    asked.lock().unwrap().push(request.clone());
    let mut response = json!({"uid": request["uid"], "allowed": true});
    match request["name"].as_str().unwrap_or_default() {
        "labelled" if request["operation"] != "DELETE" => {
            let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"by": "hook"}}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch.to_string()));
        }
        "bad" => {
            response["allowed"] = json!(false);
            response["status"] = json!({"code": 422, "message": "that is bad"});
        }
        "slow" => tokio::time::sleep(Duration::from_secs(3)).await,
        _ => {}
    }
    Json(
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}),
    )
}

async fn configure(server: &Server, plural: &str, configuration: Value) {
    let made = server
        .post(&format!("{REGISTRATION}/{plural}"), configuration)
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.header("warning"), "");
    // Known to this server as soon as its cache has it.
    server.registry.caught_up().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
}

async fn make(server: &Server, name: &str) -> Answer {
    server.post(MAPS, json!({"metadata": {"name": name}})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutating_webhook_changes_what_it_is_asked_about() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let configuration = hook.configuration("MutatingWebhookConfiguration", json!({}));
    configure(&server, "mutatingwebhookconfigurations", configuration).await;
    let made = make(&server, "labelled").await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.json()["metadata"]["labels"], json!({"by": "hook"}));
    assert_eq!(
        server.get(&format!("{MAPS}/labelled")).await.json()["metadata"]["labels"]["by"],
        "hook"
    );
    server
        .post(
            "/api/v1/namespaces/default/secrets",
            json!({"metadata": {"name": "labelled"}}),
        )
        .await;
    let asked = hook.asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "only about what its rules name");
    assert_eq!(asked[0]["operation"], "CREATE");
    assert_eq!(
        asked[0]["resource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!(asked[0]["userInfo"]["username"], "system:anonymous");
    assert_eq!(asked[0]["object"]["metadata"]["name"], "labelled");
    assert_eq!(asked[0]["oldObject"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validating_webhook_refuses_creates_updates_and_deletes() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    make(&server, "bad").await;
    let configuration = hook.configuration("ValidatingWebhookConfiguration", json!({}));
    configure(&server, "validatingwebhookconfigurations", configuration).await;
    let bad = format!("{MAPS}/bad");
    let patch = [("content-type", "application/merge-patch+json")];
    for answer in [
        server
            .ask(
                Method::PATCH,
                &bad,
                &patch,
                json!({"data": {"a": "b"}}).to_string(),
            )
            .await,
        server.delete(&bad).await,
        server.ask(Method::DELETE, MAPS, &[], Body::empty()).await,
    ] {
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        let message = answer.json()["message"].clone();
        assert_eq!(
            message,
            "admission webhook \"hook.example.com\" denied the request: that is bad"
        );
    }
    let asked = hook.asked.lock().unwrap().clone();
    assert_eq!(asked[0]["operation"], "UPDATE");
    assert_eq!(asked[0]["object"]["data"]["a"], "b");
    assert_eq!(asked[0]["oldObject"].get("data"), None);
    assert_eq!(
        (&asked[1]["operation"], &asked[1]["object"]),
        (&json!("DELETE"), &Value::Null)
    );
    assert_eq!(make(&server, "good").await.status, StatusCode::CREATED);
    assert_eq!(
        server.get(&bad).await.status,
        StatusCode::OK,
        "nothing was deleted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_does_not_answer_fails_the_write_or_not_as_its_policy_says() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let configuration = hook.configuration("ValidatingWebhookConfiguration", json!({}));
    configure(
        &server,
        "validatingwebhookconfigurations",
        configuration.clone(),
    )
    .await;
    let answer = make(&server, "slow").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        answer.json()["message"],
        "Internal error occurred: failed calling webhook \"hook.example.com\": no answer within 1 s"
    );
    let uri = format!("{REGISTRATION}/validatingwebhookconfigurations/hook");
    server.delete(&uri).await;
    let ignore = hook.configuration(
        "ValidatingWebhookConfiguration",
        json!({"failurePolicy": "Ignore"}),
    );
    configure(&server, "validatingwebhookconfigurations", ignore).await;
    assert_eq!(make(&server, "slow").await.status, StatusCode::CREATED);
    // One whose certificate is not of the given authority is not asked.
    server.delete(&uri).await;
    let stranger = Hook::start().await;
    let mut other = hook.configuration("ValidatingWebhookConfiguration", json!({}));
    other["webhooks"][0]["clientConfig"]["caBundle"] = json!(stranger.authority);
    configure(&server, "validatingwebhookconfigurations", other).await;
    let answer = make(&server, "good").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        answer.json()["message"]
            .as_str()
            .unwrap()
            .contains("TLS with 127.0.0.1")
    );
    server.delete(&uri).await;
    let mut nobody = hook.configuration("ValidatingWebhookConfiguration", json!({}));
    nobody["webhooks"][0]["clientConfig"]["caBundle"] = json!("");
    configure(&server, "validatingwebhookconfigurations", nobody).await;
    let answer = make(&server, "good").await;
    assert!(
        answer.json()["message"]
            .as_str()
            .unwrap()
            .contains("clientConfig.caBundle is empty")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_and_dry_runs_are_heeded() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let more = json!({
        "sideEffects": "Some",
        "objectSelector": {"matchLabels": {"checked": "yes"}},
        "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]},
    });
    let configuration = hook.configuration("ValidatingWebhookConfiguration", more);
    configure(&server, "validatingwebhookconfigurations", configuration).await;
    let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"checked": "yes"}}});
    assert_eq!(
        make(&server, "bad").await.status,
        StatusCode::CREATED,
        "without the label"
    );
    let elsewhere = "/api/v1/namespaces/kube-system/configmaps";
    assert_eq!(
        server.post(elsewhere, labelled("bad")).await.status,
        StatusCode::CREATED
    );
    assert_eq!(
        server.post(MAPS, labelled("good")).await.status,
        StatusCode::CREATED
    );
    assert_eq!(hook.asked.lock().unwrap().len(), 1);
    let dry = server
        .post(&format!("{MAPS}?dryRun=All"), labelled("other"))
        .await;
    assert_eq!(dry.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        hook.asked.lock().unwrap().len(),
        1,
        "a rehearsal has no side effects"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_evaluated_is_refused_when_it_is_configured() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let more = json!({"matchConditions": [{"name": "n", "expression": "object.nobody ="}, {"name": "n", "expression": "nobody.knows"}], "clientConfig": {"url": "http://a"}});
    let configuration = hook.configuration("ValidatingWebhookConfiguration", more);
    let uri = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let answer = server.post(&uri, configuration).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let causes = answer.json()["details"]["causes"].clone();
    let fields: Vec<&str> = causes
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "webhooks[0].matchConditions[0].expression",
            "webhooks[0].matchConditions[1].name",
            "webhooks[0].matchConditions[1].expression",
            "webhooks[0].clientConfig.url"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_asked_only_where_its_conditions_hold() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let conditions = json!([
        {"name": "not-mine", "expression": "request.userInfo.username != 'nobody'"},
        {"name": "marked", "expression": "object.metadata.name.startsWith('b') || oldObject.?metadata.hasValue()"},
    ]);
    let configuration = hook.configuration(
        "ValidatingWebhookConfiguration",
        json!({"matchConditions": conditions}),
    );
    configure(&server, "validatingwebhookconfigurations", configuration).await;
    assert_eq!(make(&server, "good").await.status, StatusCode::CREATED);
    assert!(
        hook.asked.lock().unwrap().is_empty(),
        "it would have been asked"
    );
    assert_eq!(
        make(&server, "bad").await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(hook.asked.lock().unwrap().len(), 1);
    server
        .delete(&format!(
            "{REGISTRATION}/validatingwebhookconfigurations/hook"
        ))
        .await;
    // A condition that fails is the hook's own failure.
    let fails = |policy: &str| {
        let conditions = json!([{"name": "fails", "expression": "object.spec.nothing > 1"}]);
        hook.configuration(
            "ValidatingWebhookConfiguration",
            json!({"matchConditions": conditions, "failurePolicy": policy}),
        )
    };
    configure(&server, "validatingwebhookconfigurations", fails("Fail")).await;
    let answer = make(&server, "other").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.ends_with("match condition \"fails\": no such key: spec"),
        "{message}"
    );
    server
        .delete(&format!(
            "{REGISTRATION}/validatingwebhookconfigurations/hook"
        ))
        .await;
    configure(&server, "validatingwebhookconfigurations", fails("Ignore")).await;
    assert_eq!(make(&server, "other").await.status, StatusCode::CREATED);
}
