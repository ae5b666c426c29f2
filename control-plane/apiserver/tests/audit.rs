//! The audit log: what is recorded of requests, by the policy.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use common::Server;
use control_plane_apiserver::Settings;
use control_plane_apiserver::audit::{Audit, FileOptions, Log, Policy};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, nonResourceURLs: ['/livez*', /version]}
  - level: Metadata
    resources: [{group: '', resources: [secrets]}]
  - level: RequestResponse
    verbs: [create, patch]
    resources: [{group: '', resources: [configmaps]}]
    omitManagedFields: true
  - {level: Request, namespaces: [kube-system]}
  - {level: Metadata, omitStages: []}
";

struct Audited {
    server: Server,
    path: PathBuf,
    _folder: TempDir,
}

impl Audited {
    async fn start(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let log = Log::open(FileOptions {
            path: path.clone(),
            max_size: 0,
            max_backups: 0,
            max_age: std::time::Duration::ZERO,
        })
        .unwrap();
        let audit = Audit::new(Policy::parse(policy).unwrap(), log);
        let settings = Settings {
            audit: Some(Arc::new(audit)),
            ..Settings::default()
        };
        Self {
            server: Server::start_with(settings).await,
            path,
            _folder: folder,
        }
    }

    /// The events there are, once there are so many.
    async fn events(&self, count: usize) -> Vec<Value> {
        for _ in 0..200 {
            let text = std::fs::read_to_string(&self.path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            if lines.len() >= count {
                return lines
                    .iter()
                    .map(|l| serde_json::from_str(l).unwrap())
                    .collect();
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!(
            "no {count} events: {}",
            std::fs::read_to_string(&self.path).unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_matches_says_how_much_is_recorded() {
    let audited = Audited::start(POLICY).await;
    let server = &audited.server;
    server.get("/livez").await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hidden"}});
    server
        .post("/api/v1/namespaces/default/secrets", secret)
        .await;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "b"}});
    let headers = [
        ("user-agent", "tester/1"),
        ("audit-id", "an-id"),
        ("x-forwarded-for", "192.0.2.7"),
    ];
    let maps = "/api/v1/namespaces/default/configmaps";
    let answer = server
        .ask(Method::POST, maps, &headers, map.to_string())
        .await;
    assert_eq!(answer.header("audit-id"), "an-id");
    server.get("/api/v1/namespaces/default/pods/none").await;

    let events = audited.events(3).await;
    assert_eq!(events.len(), 3, "{events:#?}");
    let [secret, map, pod] = &events[..] else {
        unreachable!()
    };
    assert_eq!(secret["level"], "Metadata");
    assert!(!secret.to_string().contains("hidden") && secret.get("requestObject").is_none());
    assert_eq!(map["kind"], "Event");
    assert_eq!(map["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(map["auditID"], "an-id");
    assert_eq!(map["stage"], "ResponseComplete");
    assert_eq!(map["verb"], "create");
    assert_eq!(map["userAgent"], "tester/1");
    assert_eq!(map["sourceIPs"], json!(["192.0.2.7"]));
    assert_eq!(map["user"]["username"], "system:anonymous");
    let reference = json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"});
    assert_eq!(map["objectRef"], reference);
    assert_eq!(map["requestObject"]["data"]["a"], "b");
    assert_eq!(map["responseObject"]["data"]["a"], "b");
    assert_eq!(map["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(map["responseStatus"]["code"], 201);
    assert_eq!(map["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(pod["responseStatus"]["code"], 404);
    assert_eq!(pod["responseStatus"]["reason"], "NotFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_recorded_when_it_begins_and_when_it_ends() {
    let policy =
        "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [watch]}]}";
    let audited = Audited::start(policy).await;
    let watch = audited.server.watch("/api/v1/pods?watch=true", &[]).await;
    let stages = |events: &[Value]| {
        let stages = events
            .iter()
            .map(|e| e["stage"].as_str().unwrap().to_owned());
        stages.collect::<Vec<_>>()
    };
    let begun = audited.events(2).await;
    assert_eq!(stages(&begun), ["RequestReceived", "ResponseStarted"]);
    drop(watch);
    let ended = audited.events(3).await;
    assert_eq!(stages(&ended)[2], "ResponseComplete");
    assert!(ended.iter().all(|e| e["auditID"] == ended[0]["auditID"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_body_that_is_recorded_still_reaches_its_handler() {
    let policy = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Request}]}";
    let audited = Audited::start(policy).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let yaml = [("content-type", "application/yaml")];
    let body = Body::from("metadata: {name: m}\ndata: {a: b}\n");
    let answer = audited.server.ask(Method::POST, maps, &yaml, body).await;
    assert_eq!(answer.status.as_u16(), 201, "{}", answer.text());
    let events = audited.events(2).await;
    assert_eq!(events[1]["requestObject"]["data"]["a"], "b");
    assert_eq!(events[1].get("responseObject"), None);
}

#[test]
fn a_policy_that_is_none_says_what_is_wrong() {
    for (text, why) in [
        (
            "kind: Policy",
            "it cannot be read as audit.k8s.io/v1 Policy",
        ),
        (
            "{apiVersion: v1, kind: Pod}",
            "it is v1 Pod; give apiVersion: audit.k8s.io/v1 and kind: Policy",
        ),
        (
            "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: []}",
            "it has no rules, so that nothing would be recorded; give at least one, as in rules: [{level: Metadata}]",
        ),
        (
            "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Some}]}",
            "it cannot be read as audit.k8s.io/v1 Policy",
        ),
    ] {
        assert_eq!(Policy::parse(text).unwrap_err().to_string(), why);
    }
}
