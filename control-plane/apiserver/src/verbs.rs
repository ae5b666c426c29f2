//! The verbs on resources: from a request to a call of the registry and back.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use control_plane_registry::decode::{self, Body};
use control_plane_registry::errors::Result;
use control_plane_registry::{
    ApiError, DeleteOptions, Deleted, Kind, List, Object, PatchType, Subresource, WriteOptions,
    Written, kinds,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use crate::connect::Connection;
use crate::negotiate::{self, Shape};
use crate::path::Target;
use crate::query::Query;
use crate::{Api, body, respond, table, watch};

/// Answers a request about `target`.
pub async fn handle(api: Api, target: Target, request: Request) -> Response {
    match dispatch(api, target, request).await {
        Ok(response) => response,
        Err(error) => respond::error(&error),
    }
}

async fn dispatch(api: Api, target: Target, request: Request) -> Result<Response> {
    if let Some(connection) = target.subresource.and_then(Connection::of) {
        return connection.open(&api, &target, request).await;
    }
    let (parts, body) = request.into_parts();
    let call = Call {
        api,
        kind: target.kind.0,
        query: Query::parse(parts.uri.query()),
        headers: parts.headers,
        target,
    };
    let collection = call.target.name.is_empty();
    if call.target.subresource.is_none() && !call.allows(&parts.method) {
        return Err(ApiError::method_not_allowed());
    }
    match (&parts.method, call.target.subresource) {
        (&Method::GET, None) if call.is_watch() => call.watch().await,
        (&Method::GET, None) if collection => call.list().await,
        (&Method::GET, None | Some(Subresource::Status)) => call.get().await,
        (&Method::GET, Some(Subresource::Scale)) => call.scale().await,
        (&Method::POST, None) if call.kind.kind == "Binding" => {
            call.bind(call.read(body).await?).await
        }
        (&Method::POST, None) if collection => call.create(call.read(body).await?).await,
        (&Method::POST, Some(Subresource::Binding)) => call.bind(call.read(body).await?).await,
        (&Method::POST, Some(Subresource::Eviction)) => call.evict(call.read(body).await?).await,
        (&Method::PUT, None | Some(Subresource::Status | Subresource::Finalize)) if !collection => {
            call.update(call.read(body).await?).await
        }
        (&Method::PUT, Some(Subresource::Scale)) => call.update_scale(call.read(body).await?).await,
        (&Method::PATCH, None | Some(Subresource::Status | Subresource::Scale)) if !collection => {
            let patch_type = negotiate::patch_type(&call.headers)?;
            let bytes = body::read(body).await?;
            match patch_type {
                Some(PatchType::Strategic) if call.kind.custom.is_some() => {
                    Err(negotiate::no_strategic_patch())
                }
                Some(patch_type) => {
                    let patch = decode::parse(&bytes, decode::Format::Json)?;
                    call.patch(&patch, patch_type).await
                }
                None => {
                    call.apply(decode::parse(&bytes, decode::Format::Yaml)?)
                        .await
                }
            }
        }
        (&Method::DELETE, None) => {
            let options = call.delete_options(body).await?;
            if collection {
                call.delete_collection(&options).await
            } else {
                call.delete(&options).await
            }
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// One request.
struct Call {
    api: Api,
    kind: &'static Kind,
    target: Target,
    query: Query,
    headers: HeaderMap,
}

impl Call {
    fn is_watch(&self) -> bool {
        self.target.watch || self.query.flag("watch")
    }

    /// Whether the kind takes the method at all.
    fn allows(&self, method: &Method) -> bool {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        self.kind.verbs.contains(&verb)
    }

    async fn scale(&self) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let scale = self.api.registry.scale(self.kind, namespace, name).await?;
        self.object(StatusCode::OK, &scale)
    }

    async fn update_scale(&self, body: Body) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let options = self.write_options(false)?;
        let registry = &self.api.registry;
        let written = registry.update_scale(self.kind, namespace, name, body, &options);
        self.written(StatusCode::OK, &written.await?)
    }

    async fn evict(&self, body: Body) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let mut options = DeleteOptions::from_body(&body.value["deleteOptions"])?;
        options.dry_run |= self.write_options(false)?.dry_run;
        let registry = &self.api.registry;
        registry
            .evict(self.kind, namespace, name, &body.value, &options)
            .await?;
        Ok(success(StatusCode::CREATED))
    }

    async fn get(&self) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let version = self.query.resource_version()?;
        let object = self.api.registry.get(self.kind, namespace, name, version);
        self.object(StatusCode::OK, &object.await?)
    }

    async fn list(&self) -> Result<Response> {
        let options = self.query.list_options(self.kind)?;
        let list = self
            .api
            .registry
            .list(self.kind, &self.target.namespace, &options)
            .await?;
        self.many(&list)
    }

    async fn watch(&self) -> Result<Response> {
        let shape = negotiate::shape(&self.headers)?;
        let options = self.query.watch_options(self.kind, &self.target.name)?;
        let timeout = self.query.timeout_seconds()?;
        let include = table::Include::parse(self.query.get("includeObject"))?;
        let watch = self
            .api
            .registry
            .watch(self.kind, &self.target.namespace, options)
            .await?;
        Ok(watch::stream(
            &self.api, self.kind, watch, shape, include, timeout,
        ))
    }

    async fn create(&self, body: Body) -> Result<Response> {
        if self.kind.namespaced && self.target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let options = self.write_options(false)?;
        let written = self
            .api
            .registry
            .create(self.kind, &self.target.namespace, body, &options)
            .await?;
        self.written(StatusCode::CREATED, &written)
    }

    async fn update(&self, body: Body) -> Result<Response> {
        let Target {
            namespace,
            name,
            subresource,
            ..
        } = &self.target;
        let options = self.write_options(false)?;
        let written = self
            .api
            .registry
            .update(self.kind, *subresource, namespace, name, body, &options)
            .await?;
        self.written(StatusCode::OK, &written)
    }

    async fn patch(&self, patch: &Body, patch_type: PatchType) -> Result<Response> {
        let Target {
            namespace,
            name,
            subresource,
            ..
        } = &self.target;
        let options = self.write_options(false)?;
        let registry = &self.api.registry;
        if *subresource == Some(Subresource::Scale) {
            let written =
                registry.patch_scale(self.kind, namespace, name, patch, patch_type, &options);
            return self.written(StatusCode::OK, &written.await?);
        }
        let written = registry.patch(
            self.kind,
            *subresource,
            namespace,
            name,
            patch,
            patch_type,
            &options,
        );
        self.written(StatusCode::OK, &written.await?)
    }

    async fn apply(&self, config: Body) -> Result<Response> {
        let Target {
            namespace,
            name,
            subresource,
            ..
        } = &self.target;
        if *subresource == Some(Subresource::Scale) {
            return Err(ApiError::bad_request(
                "a scale cannot be applied: patch it, or apply spec.replicas of the object",
            ));
        }
        let options = self.write_options(true)?;
        let registry = &self.api.registry;
        let applied = registry.apply(self.kind, *subresource, namespace, name, config, &options);
        let (written, created) = applied.await?;
        let status = if created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        self.written(status, &written)
    }

    fn write_options(&self, applies: bool) -> Result<WriteOptions> {
        let agent = self.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|value| value.to_str().ok());
        self.query.write_options(agent.unwrap_or_default(), applies)
    }

    async fn bind(&self, body: Body) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let dry_run = self.write_options(false)?.dry_run;
        // A Binding posted to its own collection names its pod.
        let (pods, name) = match name.as_str() {
            "" => (
                kinds::find("", "v1", "pods").ok_or_else(ApiError::unknown_resource)?,
                body.value["metadata"]["name"].as_str().unwrap_or_default(),
            ),
            name => (self.kind, name),
        };
        self.api
            .registry
            .bind(pods, namespace, name, &body.value, dry_run)
            .await?;
        Ok(success(StatusCode::CREATED))
    }

    async fn delete(&self, options: &DeleteOptions) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let registry = &self.api.registry;
        match registry.delete(self.kind, namespace, name, options).await? {
            Deleted::Object(object) => self.object(StatusCode::OK, &object),
            Deleted::Gone(object) => Ok(respond::json(StatusCode::OK, &gone(&object))),
        }
    }

    async fn delete_collection(&self, options: &DeleteOptions) -> Result<Response> {
        if self.kind.namespaced && self.target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let which = self.query.list_options(self.kind)?;
        let list = self
            .api
            .registry
            .delete_collection(self.kind, &self.target.namespace, &which, options)
            .await?;
        self.many(&list)
    }

    async fn delete_options(&self, body: axum::body::Body) -> Result<DeleteOptions> {
        let bytes = body::read(body).await?;
        let given = if bytes.is_empty() {
            Value::Null
        } else {
            decode::parse(&bytes, negotiate::format(&self.headers)?)?.value
        };
        self.query.delete_options(DeleteOptions::from_body(&given)?)
    }

    async fn read(&self, body: axum::body::Body) -> Result<Body> {
        let format = negotiate::format(&self.headers)?;
        let bytes = body::read(body).await?;
        decode::parse(&bytes, format)
    }

    fn written(&self, status: StatusCode, written: &Written) -> Result<Response> {
        let response = self.object(status, &written.object)?;
        Ok(respond::warn(response, &written.warnings))
    }

    fn object(&self, status: StatusCode, object: &Arc<Object>) -> Result<Response> {
        match negotiate::shape(&self.headers)? {
            Shape::Object => Ok(respond::bytes(status, object.bytes.clone())),
            Shape::Table => {
                let include = table::Include::parse(self.query.get("includeObject"))?;
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                // A scale has columns of its own.
                let kind = match self.target.subresource {
                    Some(Subresource::Scale) => object.kind,
                    _ => self.kind,
                };
                let table = table::make(kind, metadata, [object], include);
                Ok(respond::json(status, &table))
            }
            Shape::Metadata => Ok(respond::json(status, &table::partial(&object.value()))),
        }
    }

    fn many(&self, list: &List) -> Result<Response> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(token) = &list.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let body = match negotiate::shape(&self.headers)? {
            Shape::Object => return Ok(respond::bytes(StatusCode::OK, splice(list, &metadata))),
            Shape::Table => {
                let include = table::Include::parse(self.query.get("includeObject"))?;
                table::make(self.kind, metadata, &list.items, include)
            }
            Shape::Metadata => {
                let items = list.items.iter().map(|o| table::partial(&o.value()));
                json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                    "items": items.collect::<Vec<_>>(),
                })
            }
        };
        Ok(respond::json(StatusCode::OK, &body))
    }
}

fn success(code: StatusCode) -> Response {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": code.as_u16(),
    });
    respond::json(code, &status)
}

/// A list of objects that are encoded already.
fn splice(list: &List, metadata: &Value) -> bytes::Bytes {
    let size: usize = list.items.iter().map(|o| o.bytes.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        list.kind.kind,
        list.kind.api_version()
    );
    out.extend_from_slice(head.as_bytes());
    for (at, object) in list.items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&object.bytes);
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// The answer when an object is gone.
fn gone(object: &Object) -> Value {
    let mut details = json!({"name": object.name});
    if !object.kind.group.is_empty() {
        details["group"] = object.kind.group.into();
    }
    details["kind"] = object.kind.plural.into();
    details["uid"] = object.uid.as_str().into();
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
