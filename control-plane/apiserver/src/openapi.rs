//! `/openapi/v3`: one document for each group and version, with the operations and the schemas that clients look for.
//!
//! Before it sends an object kubectl looks for a `patch` operation of its kind with a `fieldValidation` parameter;
//! `explain` and three-way patches read the schemas. A client that asks by
//! hash may keep a document for good.

use std::sync::{Arc, OnceLock};

use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use control_plane_registry::schema::schema;
use control_plane_registry::{Kind, Kinds, Subresource, kinds};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::connect::Connection;
use crate::query::Query;
use crate::{Api, respond};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// The documents of the built-in kinds, made once and not before somebody asks. Those of custom resources are made when they are asked for: they
/// change with their definitions.
#[derive(Debug, Default)]
pub struct Documents(OnceLock<Vec<Arc<Document>>>);

#[derive(Debug)]
pub struct Document {
    /// As in `api/v1`, `apis/discovery.k8s.io/v1`.
    path: String,
    hash: String,
    body: Bytes,
}

impl Documents {
    /// All documents of the kinds that there are now.
    fn current(&self, kinds: &Kinds) -> Vec<Arc<Document>> {
        let built_in = self.0.get_or_init(|| {
            let kinds = Kinds::new(kinds::all().collect());
            let all = kinds.group_versions().into_iter();
            all.map(|(group, version)| Arc::new(Document::new(&kinds, group, version)))
                .collect()
        });
        let mut all = built_in.clone();
        for (group, version) in kinds.group_versions() {
            if kinds.of(group, version).any(|k| k.custom.is_some()) {
                all.push(Arc::new(Document::new(kinds, group, version)));
            }
        }
        all
    }
}

/// `/openapi/v3`: where the documents are.
pub async fn index(State(api): State<Api>) -> Response {
    let mut paths = Map::new();
    for document in api.documents.current(&api.registry.kinds()) {
        let url = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
        paths.insert(document.path.clone(), json!({"serverRelativeURL": url}));
    }
    respond::json(StatusCode::OK, &json!({"paths": paths}))
}

/// `/openapi/v2`: a document without content, as gnostic's protobuf.
///
/// kubectl asks for it when version 3 knows nothing of a kind, and gives up with a misleading message when there is
/// none at all. With this one it says that there is no such kind.
pub async fn version_2() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    // `openapi.v2.Info`: title = 1, version = 2; `openapi.v2.Document`: swagger = 1, info = 2.
    let info = [message(1, b"Fairlead"), message(2, version.as_bytes())].concat();
    let body = [message(1, b"2.0"), message(2, &info)].concat();
    let protobuf = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let content_type = HeaderValue::from_static(protobuf);
    respond::with_type(StatusCode::OK, content_type, body.into())
}

/// A field of protobuf with a text or a message of less than 128 bytes.
fn message(field: u8, value: &[u8]) -> Vec<u8> {
    /// The wire type of what has a length.
    const LEN: u8 = 2;
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX) & 0x7f;
    let value = &value[..usize::from(length)];
    [&[field << 3 | LEN, length], value].concat()
}

/// One document.
pub async fn document(
    State(api): State<Api>,
    Path(path): Path<String>,
    request: Request,
) -> Response {
    let documents = api.documents.current(&api.registry.kinds());
    let Some(document) = documents.iter().find(|d| d.path == path) else {
        return respond::page_not_found();
    };
    let query = Query::parse(request.uri().query());
    let asked = query.get("hash");
    if !asked.is_empty() && asked != document.hash {
        let location = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
        let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return response;
    }
    let etag = format!("\"{}\"", document.hash);
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|tag| tag.trim() == etag));
    let mut response = if known {
        respond::bytes(StatusCode::NOT_MODIFIED, Bytes::new())
    } else {
        respond::bytes(StatusCode::OK, document.body.clone())
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if !asked.is_empty() {
        let forever = HeaderValue::from_static("public, immutable");
        headers.insert(header::CACHE_CONTROL, forever);
        let year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        let year = year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(year) = HeaderValue::from_str(&year) {
            headers.insert(header::EXPIRES, year);
        }
    }
    response
}

impl Document {
    fn new(kinds: &Kinds, group: &str, version: &str) -> Self {
        let path = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let mut paths = Map::new();
        let mut roots = vec![STATUS, DELETE_OPTIONS, OBJECT_META, LIST_META];
        let mut own = Map::new();
        for kind in kinds.of(group, version) {
            match kind.custom {
                Some(custom) => add_custom(kind, &custom.schema, &mut own),
                None => roots.push(kind.schema),
            }
            roots.extend(kind.subresources.iter().filter_map(|s| body_of(*s)));
            add_paths(kind, &format!("/{path}"), &mut paths);
        }
        let lists: Vec<String> = roots.iter().map(|r| format!("{r}List")).collect();
        roots.extend(lists.iter().map(String::as_str));
        let schema = schema();
        let mut schemas: Map<String, Value> = schema
            .reachable(&roots)
            .into_iter()
            .filter_map(|name| Some((name.clone(), schema.definitions.get(&name)?.clone())))
            .collect();
        schemas.extend(own);
        let body = json!({
            "openapi": "3.0.0",
            "info": {"title": "Fairlead", "version": env!("CARGO_PKG_VERSION")},
            "paths": paths,
            "components": {"schemas": schemas},
        })
        .to_string();
        let hash = Sha256::digest(body.as_bytes());
        let hash = hash.iter().map(|byte| format!("{byte:02X}")).collect();
        Self {
            path,
            hash,
            body: body.into(),
        }
    }
}

/// The type of a subresource that is not the kind itself.
fn body_of(subresource: Subresource) -> Option<&'static str> {
    match subresource {
        Subresource::Binding => Some("io.k8s.api.core.v1.Binding"),
        Subresource::Eviction => Some("io.k8s.api.policy.v1.Eviction"),
        Subresource::Token => Some("io.k8s.api.authentication.v1.TokenRequest"),
        Subresource::Scale => Some("io.k8s.api.autoscaling.v1.Scale"),
        _ => None,
    }
}

fn add_paths(kind: &'static Kind, base: &str, paths: &mut Map<String, Value>) {
    if !kind.verbs.contains(&"get") {
        add_create_only(kind, base, paths);
        return;
    }
    let own = schema_name(kind);
    let mut scope: Vec<Value> = Vec::new();
    let mut collection = format!("{base}/{}", kind.plural);
    if kind.namespaced {
        let all = json!({"get": operation(kind, "list", "", None)});
        paths.insert(collection, all);
        scope.push(parameter("path", "namespace", "object name and auth scope"));
        collection = format!("{base}/namespaces/{{namespace}}/{}", kind.plural);
    }
    let many = json!({
        "get": operation(kind, "list", "", None),
        "post": operation(kind, "post", "", Some(&schema_name(kind))),
        "delete": operation(kind, "deletecollection", "", Some(DELETE_OPTIONS)),
        "parameters": scope,
    });
    paths.insert(collection.clone(), many);
    scope.push(parameter(
        "path",
        "name",
        &format!("name of the {}", kind.kind),
    ));
    let one = json!({
        "get": operation(kind, "get", "", None),
        "put": operation(kind, "put", "", Some(&schema_name(kind))),
        "patch": operation(kind, "patch", "", None),
        "delete": operation(kind, "delete", "", Some(DELETE_OPTIONS)),
        "parameters": scope,
    });
    paths.insert(format!("{collection}/{{name}}"), one);
    // What passes through a connection has no schema.
    let described = |subresource: &&Subresource| Connection::of(**subresource).is_none();
    for subresource in kind.subresources.iter().filter(described) {
        let name = subresource.name();
        let mut item = json!({"parameters": scope});
        for verb in subresource.verbs() {
            let (method, action) = match *verb {
                "create" => ("post", "post"),
                "update" => ("put", "put"),
                "patch" => ("patch", "patch"),
                _ => ("get", "get"),
            };
            let body = match (body_of(*subresource), method) {
                (Some(of), "post" | "put") => Some(of),
                (None, "put") => Some(own.as_str()),
                _ => None,
            };
            item[method] = operation(kind, action, name, body);
        }
        paths.insert(format!("{collection}/{{name}}/{name}"), item);
    }
}

/// The name of a kind's schema: that of a custom resource is its group turned round.
fn schema_name(kind: &Kind) -> String {
    if kind.custom.is_none() {
        return kind.schema.to_owned();
    }
    let mut parts: Vec<&str> = kind.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), kind.version, kind.kind)
}

/// The schemas of a custom resource and of its list.
fn add_custom(kind: &Kind, schema: &Value, schemas: &mut Map<String, Value>) {
    let name = schema_name(kind);
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let of = |suffix: &str| {
        let kind_name = format!("{}{suffix}", kind.kind);
        json!([{"group": kind.group, "version": kind.version, "kind": kind_name}])
    };
    let mut own = schema.clone();
    if !own["properties"].is_object() {
        own["properties"] = json!({});
    }
    let text = json!({"type": "string"});
    own["properties"]["apiVersion"] = text.clone();
    own["properties"]["kind"] = text.clone();
    own["properties"]["metadata"] = reference(OBJECT_META);
    own["x-kubernetes-group-version-kind"] = of("");
    let list = json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text,
            "kind": text,
            "metadata": reference(LIST_META),
            "items": {"type": "array", "items": reference(&name)},
        },
        "x-kubernetes-group-version-kind": of("List"),
    });
    schemas.insert(format!("{name}List"), list);
    schemas.insert(name, own);
}

/// What is answered and not stored.
fn add_create_only(kind: &'static Kind, base: &str, paths: &mut Map<String, Value>) {
    let scope = if kind.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let create = json!({"post": operation(kind, "post", "", Some(&schema_name(kind)))});
    paths.insert(format!("{base}{scope}/{}", kind.plural), create);
}

/// One operation; `body` is the type of its body.
fn operation(kind: &Kind, action: &str, subresource: &str, body: Option<&str>) -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let answer = match action {
        "list" => format!("{}List", schema_name(kind)),
        "delete" | "deletecollection" => STATUS.to_owned(),
        _ => schema_name(kind),
    };
    let mut parameters = Vec::new();
    match action {
        "post" | "put" | "patch" => {
            for (name, description) in [
                ("dryRun", "All: do everything but store"),
                ("fieldManager", "who makes the change"),
                (
                    "fieldValidation",
                    "what to do about unknown and duplicate fields: Ignore, Warn or Strict",
                ),
            ] {
                parameters.push(parameter("query", name, description));
            }
        }
        "list" | "deletecollection" => {
            for name in [
                "allowWatchBookmarks",
                "continue",
                "fieldSelector",
                "labelSelector",
                "limit",
                "resourceVersion",
                "resourceVersionMatch",
                "sendInitialEvents",
                "timeoutSeconds",
                "watch",
            ] {
                parameters.push(parameter("query", name, ""));
            }
        }
        _ => {}
    }
    let id = format!("{action}{}{}{subresource}", kind.version, kind.kind);
    let mut out = json!({
        "operationId": id,
        "parameters": parameters,
        "responses": {"200": {
            "description": "OK",
            "content": {"application/json": {"schema": reference(&answer)}},
        }},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": kind.group,
            "kind": kind.kind,
            "version": kind.version,
        },
    });
    if action == "patch" {
        let patch = json!({"schema": {"type": "object"}});
        out["requestBody"] = json!({"required": true, "content": {
            "application/apply-patch+yaml": patch,
            "application/json-patch+json": {"schema": {"type": "array", "items": {"type": "object"}}},
            "application/merge-patch+json": patch,
        }});
        if kind.custom.is_none() {
            out["requestBody"]["content"]["application/strategic-merge-patch+json"] = patch;
        }
    } else if let Some(body) = body {
        out["requestBody"] = json!({"content": {"application/json": {"schema": reference(body)}}});
    }
    out
}

fn parameter(place: &str, name: &str, description: &str) -> Value {
    let mut out =
        json!({"name": name, "in": place, "schema": {"type": "string", "uniqueItems": true}});
    if place == "path" {
        out["required"] = true.into();
    }
    if !description.is_empty() {
        out["description"] = description.into();
    }
    out
}
