//! The verbs on resources: from a request to a call of the registry and back.

mod delete;
mod special;

use std::sync::{Arc, PoisonError};

use axum::extract::Request;
use axum::response::Response;
use control_plane_registry::decode::{self, Body};
use control_plane_registry::errors::Result;
use control_plane_registry::{
    ApiError, Kind, List, Object, PatchType, Subresource, WriteOptions, Written,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use crate::admission::Warnings;
use crate::chain::Context;
use crate::connect::Connection;
use crate::list::ListBody;
use crate::negotiate::{self, Shape};
use crate::path::Target;
use crate::query::Query;
use crate::{Api, admission, body, respond, table, watch};

/// Answers a request about `target`.
pub async fn handle(api: Api, target: Target, context: Context, request: Request) -> Response {
    let kind = target.kind.0;
    let response = match dispatch(api, target, context, request).await {
        Ok(response) => response,
        Err(error) => respond::error(&error),
    };
    if kind.deprecated.is_empty() {
        return response;
    }
    respond::warn(response, &[kind.deprecated.to_owned()])
}

async fn dispatch(
    api: Api,
    target: Target,
    context: Context,
    request: Request,
) -> Result<Response> {
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
        context,
        warnings: Warnings::default(),
    };
    let warnings = call.warnings.clone();
    let response = call.answer(&parts.method, body).await?;
    let warnings = std::mem::take(&mut *warnings.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(respond::warn(response, &warnings))
}
/// One request.
struct Call {
    api: Api,
    kind: &'static Kind,
    target: Target,
    query: Query,
    headers: HeaderMap,
    context: Context,
    /// What webhooks and policies say to the client's user.
    warnings: Warnings,
}

impl Call {
    /// Answers it.
    async fn answer(&self, method: &Method, body: axum::body::Body) -> Result<Response> {
        let collection = self.target.name.is_empty();
        if self.target.subresource.is_none() && !self.allows(method) {
            return Err(ApiError::method_not_allowed());
        }
        match (method, self.target.subresource) {
            (&Method::GET, None) if self.context.attributes.verb == "watch" => self.watch().await,
            (&Method::GET, None) if self.kind.kind == "ComponentStatus" => self.components().await,
            (&Method::GET, None) if collection => self.list().await,
            (
                &Method::GET,
                None
                | Some(Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize),
            ) => self.get().await,
            (&Method::GET, Some(Subresource::Scale)) => self.scale().await,
            (&Method::POST, None) if self.kind.kind == "Binding" => {
                self.bind(self.read(body).await?).await
            }
            (&Method::POST, None) if collection => self.create(self.read(body).await?).await,
            (&Method::POST, Some(Subresource::Binding)) => self.bind(self.read(body).await?).await,
            (&Method::POST, Some(Subresource::Eviction)) => {
                self.evict(self.read(body).await?).await
            }
            (&Method::POST, Some(Subresource::Token)) => self.token(self.read(body).await?).await,
            (
                &Method::PUT,
                None
                | Some(
                    Subresource::Status
                    | Subresource::EphemeralContainers
                    | Subresource::Resize
                    | Subresource::Finalize,
                ),
            ) if !collection => self.update(self.read(body).await?).await,
            (&Method::PUT, Some(Subresource::Scale)) => {
                self.update_scale(self.read(body).await?).await
            }
            (
                &Method::PATCH,
                None
                | Some(
                    Subresource::Status
                    | Subresource::EphemeralContainers
                    | Subresource::Resize
                    | Subresource::Scale,
                ),
            ) if !collection => {
                let patch_type = negotiate::patch_type(&self.headers)?;
                let bytes = body::read(body).await?;
                match patch_type {
                    Some(PatchType::Strategic) if self.kind.custom.is_some() => {
                        Err(negotiate::no_strategic_patch())
                    }
                    Some(patch_type) => {
                        let patch = decode::parse(&bytes, decode::Format::Json)?;
                        self.patch(&patch, patch_type).await
                    }
                    None => {
                        self.apply(decode::parse(&bytes, decode::Format::Yaml)?)
                            .await
                    }
                }
            }
            (&Method::DELETE, None) => {
                let options = self.delete_options(body).await?;
                if collection {
                    self.delete_collection(&options).await
                } else {
                    self.delete(&options).await
                }
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// Whether the kind takes the method at all.
    fn allows(&self, method: &Method) -> bool {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.target.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ => "get",
        };
        self.kind.verbs.contains(&verb)
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
        self.many(list)
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
            &self.api,
            &self.target,
            watch,
            watch::Form { shape, include },
            timeout,
            self.context.seat.clone(),
        ))
    }

    async fn create(&self, body: Body) -> Result<Response> {
        if self.kind.namespaced && self.target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let options = self.write_options(false)?;
        let (registry, namespace) = (&self.api.registry, &self.target.namespace);
        let mut written = registry
            .create(self.kind, namespace, body, &options)
            .await?;
        if self.kind.strategy.review {
            let mut review = written.object.value();
            let user = &self.context.user;
            let access = &self.api.access;
            access.review(registry, self.kind, namespace, user, &mut review);
            written.object = Arc::new(Object::new(self.kind, review, 0));
        }
        self.written(StatusCode::CREATED, &written)
    }

    async fn update(&self, body: Body) -> Result<Response> {
        let (subresource, namespace, name) = self.place();
        let options = self.write_options(false)?;
        let written = self
            .api
            .registry
            .update(self.kind, subresource, namespace, name, body, &options)
            .await?;
        self.written(StatusCode::OK, &written)
    }

    async fn patch(&self, patch: &Body, patch_type: PatchType) -> Result<Response> {
        let (subresource, namespace, name) = self.place();
        let options = self.write_options(false)?;
        let registry = &self.api.registry;
        if subresource == Some(Subresource::Scale) {
            let written =
                registry.patch_scale(self.kind, namespace, name, patch, patch_type, &options);
            return self.written(StatusCode::OK, &written.await?);
        }
        let written = registry.patch(
            self.kind,
            subresource,
            namespace,
            name,
            patch,
            patch_type,
            &options,
        );
        self.written(StatusCode::OK, &written.await?)
    }

    async fn apply(&self, config: Body) -> Result<Response> {
        let (subresource, namespace, name) = self.place();
        if subresource == Some(Subresource::Scale) {
            return Err(ApiError::bad_request(
                "a scale cannot be applied: patch it, or apply spec.replicas of the object",
            ));
        }
        let options = self.write_options(true)?;
        let registry = &self.api.registry;
        let applied = registry.apply(self.kind, subresource, namespace, name, config, &options);
        let (written, created) = applied.await?;
        let status = if created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        self.written(status, &written)
    }

    /// What a write is to.
    fn place(&self) -> (Option<Subresource>, &str, &str) {
        let target = &self.target;
        (target.subresource, &target.namespace, &target.name)
    }

    fn write_options(&self, applies: bool) -> Result<WriteOptions> {
        let agent = self.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|value| value.to_str().ok());
        let agent = agent.unwrap_or_default();
        let mut options = self.query.write_options(agent, applies)?;
        options.admission = admission::gate(&self.api, &self.context.user, &self.warnings);
        Ok(options)
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
            Shape::Object => Ok(respond::bytes(status, object.bytes())),
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

    fn many(&self, list: List) -> Result<Response> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(token) = &list.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let body = match negotiate::shape(&self.headers)? {
            Shape::Object => {
                let body = ListBody::new(list, &metadata);
                return Ok(respond::body(StatusCode::OK, body));
            }
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
