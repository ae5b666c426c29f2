//! The forms of answers: discovery, OpenAPI, Tables, metadata only, watches.

mod common;

use common::Server;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const TABLE: (&str, &str) = (
    "accept",
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

#[tokio::test(flavor = "multi_thread")]
async fn aggregated_discovery_has_its_exact_type() {
    let server = Server::start().await;
    let accept = format!("{AGGREGATED},application/json");
    for path in ["/api", "/apis"] {
        let answer = server
            .ask(Method::GET, path, &[("accept", &accept)], "")
            .await;
        assert_eq!(answer.header("content-type"), AGGREGATED);
        assert_eq!(answer.json()["apiVersion"], "apidiscovery.k8s.io/v2");
    }
    let core = server
        .ask(Method::GET, "/api", &[("accept", &accept)], "")
        .await
        .json();
    let resources = core["items"][0]["versions"][0]["resources"]
        .as_array()
        .unwrap();
    let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
    assert_eq!(pods["shortNames"], json!(["po"]));
    assert_eq!(pods["scope"], "Namespaced");
    let names: Vec<&Value> = pods["subresources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["subresource"])
        .collect();
    let expected = [
        "attach",
        "binding",
        "ephemeralcontainers",
        "eviction",
        "exec",
        "log",
        "portforward",
        "proxy",
        "resize",
        "status",
    ];
    assert_eq!(names, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_that_a_client_has_is_not_sent_again() {
    let server = Server::start().await;
    let accept = (
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    );
    let first = server
        .ask(Method::GET, "/apis", &[accept], axum::body::Body::empty())
        .await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.len() == 66, "{tag}");
    let known = [accept, ("if-none-match", tag.as_str())];
    let again = server
        .ask(Method::GET, "/apis", &known, axum::body::Body::empty())
        .await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);
    assert!(again.body.is_empty());
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.post(definitions, definition).await;
    let changed = server
        .ask(Method::GET, "/apis", &known, axum::body::Body::empty())
        .await;
    assert_eq!(changed.status, StatusCode::OK, "there is a new kind");
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_discovery_says_the_same() {
    let server = Server::start().await;
    assert_eq!(server.get("/api").await.json()["versions"], json!(["v1"]));
    let groups = server.get("/apis").await.json();
    let names: Vec<&Value> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["name"])
        .collect();
    for group in ["apps", "batch", "coordination.k8s.io", "discovery.k8s.io"] {
        assert!(names.iter().any(|n| *n == group), "{names:?}");
    }
    let autoscaling = server.get("/apis/autoscaling").await.json();
    assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
    let apps = server.get("/apis/apps/v1").await.json();
    let scale = apps["resources"].as_array().unwrap().iter();
    let scale = scale
        .clone()
        .find(|r| r["name"] == "deployments/scale")
        .unwrap();
    assert_eq!(
        (&scale["group"], &scale["kind"]),
        (&json!("autoscaling"), &json!("Scale"))
    );
    let list = server.get("/apis/discovery.k8s.io/v1").await.json();
    assert_eq!(list["groupVersion"], "discovery.k8s.io/v1");
    assert_eq!(list["resources"][0]["name"], "endpointslices");
    let core = server.get("/api/v1").await.json();
    let names: Vec<&str> = core["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert!(names.contains(&"pods/status") && names.contains(&"namespaces/finalize"));
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_has_what_kubectl_looks_for_and_may_be_kept_for_good() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.json();
    let url = index["paths"]["api/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let answer = server.get(url).await;
    assert_eq!(answer.header("cache-control"), "public, immutable");
    assert_eq!(answer.header("vary"), "Accept");
    assert!(answer.header("expires").ends_with(" GMT"));
    let document = answer.json();
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "", "kind": "Pod", "version": "v1"})
    );
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(
        parameters
            .iter()
            .any(|p| p["name"] == "fieldValidation" && p["in"] == "query")
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let schema = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(
        schema["properties"]["containers"]["x-kubernetes-patch-merge-key"],
        "name"
    );
    // Nobody reads what stands beside a reference itself.
    let affinity = &schema["properties"]["affinity"];
    assert_eq!(
        affinity,
        &json!({
            "allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Affinity"}],
            "description": "If specified, the pod's scheduling constraints",
        })
    );
    let etag = answer.header("etag").to_owned();
    let again = server
        .ask(Method::GET, url, &[("if-none-match", &etag)], "")
        .await;
    assert_eq!(
        (again.status, again.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let moved = server.get("/openapi/v3/api/v1?hash=OLD").await;
    assert_eq!(
        (moved.status, moved.header("location")),
        (StatusCode::MOVED_PERMANENTLY, url)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces";
    let table = server.ask(Method::GET, uri, &[TABLE], "").await.json();
    assert_eq!(table["kind"], "Table");
    let names: Vec<&Value> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["Name", "Status", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "default");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let uri = "/api/v1/namespaces/default?includeObject=Object";
    let table = server.ask(Method::GET, uri, &[TABLE], "").await.json();
    assert_eq!(table["rows"][0]["object"]["kind"], "Namespace");
    let accept = [(
        "accept",
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    )];
    let list = server
        .ask(Method::GET, "/api/v1/namespaces", &accept, "")
        .await
        .json();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0].get("spec"), None);
    let none = server
        .ask(Method::GET, uri, &[("accept", "image/png")], "")
        .await;
    assert_eq!(none.status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_may_be_yaml_or_nameless_json() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces/default/configmaps";
    let yaml = [("content-type", "application/yaml")];
    let answer = server
        .ask(
            Method::POST,
            uri,
            &yaml,
            "metadata:\n  name: y\ndata:\n  a: b\n",
        )
        .await;
    assert_eq!(answer.json()["data"]["a"], "b");
    let patch = [("content-type", "application/merge-patch+json")];
    let answer = server
        .ask(
            Method::PATCH,
            &format!("{uri}/y"),
            &patch,
            r#"{"data":{"a":null}}"#,
        )
        .await;
    assert_eq!(answer.json()["data"].get("a"), None);
    let patch = [("content-type", "application/json-patch+json")];
    let add = r#"[{"op":"add","path":"/data","value":{"c":"d"}}]"#;
    let answer = server
        .ask(Method::PATCH, &format!("{uri}/y"), &patch, add)
        .await;
    assert_eq!(answer.json()["data"], json!({"c": "d"}));
    let wrong = r#"[{"op":"test","path":"/data/c","value":"x"}]"#;
    let answer = server
        .ask(Method::PATCH, &format!("{uri}/y"), &patch, wrong)
        .await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_in_every_form() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut plain = server.watch(uri, &[]).await;
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        let event = plain.next().await.unwrap();
        assert_eq!(
            (&event["type"], &event["object"]["metadata"]["name"]),
            (&json!("ADDED"), &json!(name))
        );
    }
    let end = plain.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["kind"], "Namespace");
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let from = end["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap();
    let uri = format!("/api/v1/namespaces?watch=true&resourceVersion={from}");
    let mut table = server.watch(&uri, &[TABLE]).await;
    let partial = [(
        "accept",
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    )];
    let mut partial = server.watch(&uri, &partial).await;
    server
        .post("/api/v1/namespaces", json!({"metadata": {"name": "x"}}))
        .await;
    assert_eq!(
        plain.next().await.unwrap()["object"]["metadata"]["name"],
        "x"
    );
    let event = table.next().await.unwrap();
    assert_eq!(event["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(event["object"]["rows"][0]["cells"][0], "x");
    assert_eq!(
        partial.next().await.unwrap()["object"]["kind"],
        "PartialObjectMetadata"
    );
    // The server is to end: a last bookmark for who takes them, and the end for all.
    server.stop.send_replace(true);
    assert_eq!(plain.next().await.unwrap()["type"], "BOOKMARK");
    assert_eq!(plain.next().await, None);
    assert_eq!(table.next().await, None);
    assert_eq!(
        server.get("/readyz").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_time_is_over() {
    let server = Server::start().await;
    let uri = "/api/v1/namespaces?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Dnobody";
    let mut watch = server.watch(uri, &[]).await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_we_are_and_how_we_are() {
    let server = Server::start().await;
    let version = server.get("/version").await.json();
    assert!(version["major"].as_str().unwrap().parse::<u32>().is_ok());
    assert!(version["minor"].as_str().unwrap().parse::<u32>().is_ok());
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(server.get(path).await.text(), "ok");
    }
}
