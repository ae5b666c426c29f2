//! Which groups, versions and resources there are: the aggregated documents of `apidiscovery.k8s.io/v2`, and the old ones
//! that some clients still read.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use control_plane_registry::{Kind, Kinds, Subresource};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Api, negotiate, respond};

/// `/api`.
pub async fn core(State(api): State<Api>, headers: HeaderMap) -> Response {
    if negotiate::wants_aggregated(&headers) {
        return aggregated(&headers, &api.registry.kinds(), |group| group.is_empty());
    }
    let body = json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    });
    vary(respond::json(StatusCode::OK, &body))
}

/// `/apis`.
pub async fn groups(State(api): State<Api>, headers: HeaderMap) -> Response {
    let kinds = api.registry.kinds();
    if negotiate::wants_aggregated(&headers) {
        return aggregated(&headers, &kinds, |group| !group.is_empty());
    }
    let groups = group_names(&kinds).into_iter();
    let groups: Vec<Value> = groups.map(|g| group_value(&kinds, g)).collect();
    let body = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
    vary(respond::json(StatusCode::OK, &body))
}

/// `/apis/GROUP`.
pub fn group(kinds: &Kinds, name: &str) -> Response {
    let mut body = group_value(kinds, name);
    body["kind"] = "APIGroup".into();
    body["apiVersion"] = "v1".into();
    respond::json(StatusCode::OK, &body)
}

/// `/api/v1`, `/apis/GROUP/VERSION`: an `APIResourceList`.
pub fn legacy(kinds: &Kinds, group: &str, version: &str) -> Response {
    let mut resources = Vec::new();
    for kind in kinds.of(group, version) {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        resources.push(entry);
        for subresource in kind.subresources {
            let (of_group, of_version, of_kind) = subresource_kind(kind, *subresource);
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, subresource.name()),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": of_kind,
                "verbs": subresource.verbs(),
            });
            if of_group != kind.group {
                entry["group"] = of_group.into();
                entry["version"] = of_version.into();
            }
            resources.push(entry);
        }
    }
    let body = json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": resources,
    });
    respond::json(StatusCode::OK, &body)
}

/// `/`: the paths that there are.
pub fn root_paths(kinds: &Kinds) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in kinds.group_versions() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    json!({"paths": paths})
}

/// `v1`, `discovery.k8s.io/v1`.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

fn aggregated(headers: &HeaderMap, kinds: &Kinds, wanted: impl Fn(&str) -> bool) -> Response {
    let mut items: Vec<Value> = Vec::new();
    for (group, version) in kinds.group_versions() {
        if !wanted(group) {
            continue;
        }
        let resources: Vec<Value> = kinds.of(group, version).map(resource).collect();
        let entry = json!({"version": version, "freshness": "Current", "resources": resources});
        match items.iter_mut().find(|i| i["metadata"]["name"] == group) {
            Some(item) => {
                if let Some(versions) = item["versions"].as_array_mut() {
                    versions.push(entry);
                }
            }
            None => items.push(json!({"metadata": {"name": group}, "versions": [entry]})),
        }
    }
    let body = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    });
    let content_type = HeaderValue::from_static(negotiate::AGGREGATED);
    let body = body.to_string();
    let tag = format!("\"{:X}\"", Sha256::digest(&body));
    let known = headers.get(header::IF_NONE_MATCH);
    // Clients keep the document, and only ask whether it is still so.
    let mut response = match known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        true => respond::with_type(StatusCode::NOT_MODIFIED, content_type, Bytes::new()),
        false => respond::with_type(StatusCode::OK, content_type, body.into()),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    vary(response)
}

fn resource(kind: &'static Kind) -> Value {
    let response = |(group, version, name): (&str, &str, &str)| json!({"group": group, "version": version, "kind": name});
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|s| {
            json!({
                "subresource": s.name(),
                "responseKind": response(subresource_kind(kind, *s)),
                "verbs": s.verbs(),
            })
        })
        .collect();
    let scope = if kind.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": response((kind.group, kind.version, kind.kind)),
        "scope": scope,
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    for (field, list) in [
        ("shortNames", json!(kind.short_names)),
        ("categories", json!(kind.categories)),
        ("subresources", json!(subresources)),
    ] {
        if list.as_array().is_some_and(|l| !l.is_empty()) {
            out[field] = list;
        }
    }
    out
}

/// The group, version and kind that a subresource reads and writes.
fn subresource_kind(
    kind: &'static Kind,
    subresource: Subresource,
) -> (&'static str, &'static str, &'static str) {
    match subresource {
        Subresource::Binding => (kind.group, kind.version, "Binding"),
        Subresource::Scale => ("autoscaling", "v1", "Scale"),
        Subresource::Eviction => ("policy", "v1", "Eviction"),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
        Subresource::Status
        | Subresource::Finalize
        | Subresource::Log
        | Subresource::EphemeralContainers
        | Subresource::Resize => (kind.group, kind.version, kind.kind),
        Subresource::Exec => (kind.group, kind.version, "PodExecOptions"),
        Subresource::Attach => (kind.group, kind.version, "PodAttachOptions"),
        Subresource::PortForward => (kind.group, kind.version, "PodPortForwardOptions"),
        Subresource::Proxy if kind.kind == "Node" => (kind.group, kind.version, "NodeProxyOptions"),
        Subresource::Proxy => (kind.group, kind.version, "PodProxyOptions"),
    }
}

fn group_names(kinds: &Kinds) -> Vec<&'static str> {
    let mut names: Vec<_> = Vec::new();
    for (group, _) in kinds.group_versions() {
        if !group.is_empty() && !names.contains(&group) {
            names.push(group);
        }
    }
    names
}

fn group_value(kinds: &Kinds, name: &str) -> Value {
    let versions: Vec<Value> = kinds.group_versions()
        .into_iter()
        .filter(|(group, _)| *group == name)
        .map(|(group, version)| {
            json!({"groupVersion": group_version(group, version), "version": version})
        })
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": name, "versions": versions, "preferredVersion": preferred})
}

fn vary(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
