//! The verbs that only some resources know: scale, eviction, binding, token, component statuses.

use std::sync::Arc;

use axum::response::Response;
use control_plane_registry::decode::Body;
use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, DeleteOptions, List, kinds};
use http::StatusCode;

use super::{Call, success};
use crate::path::Target;
use crate::{components, respond};

impl Call {
    pub async fn scale(&self) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let scale = self.api.registry.scale(self.kind, namespace, name).await?;
        self.object(StatusCode::OK, &scale)
    }

    pub async fn update_scale(&self, body: Body) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let options = self.write_options(false)?;
        let registry = &self.api.registry;
        let written = registry.update_scale(self.kind, namespace, name, body, &options);
        self.written(StatusCode::OK, &written.await?)
    }

    pub async fn evict(&self, body: Body) -> Result<Response> {
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

    pub async fn token(&self, body: Body) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let account = self
            .api
            .registry
            .get(self.kind, namespace, name, None)
            .await?;
        let accounts = &self.api.settings.authenticators.service_accounts;
        let accounts = accounts.as_ref().ok_or_else(ApiError::method_not_allowed)?;
        let mut request = body.value;
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        let issued = accounts.issue(&self.api.registry, &account, request)?;
        Ok(respond::json(StatusCode::CREATED, &issued))
    }

    pub async fn components(&self) -> Result<Response> {
        let mut components = components::all(&self.api).await.into_iter();
        let Target { name, .. } = &self.target;
        if name.is_empty() {
            let options = self.query.list_options(self.kind)?;
            let selected =
                components.filter(|one| options.labels.matches(one) && options.fields.matches(one));
            self.many(List {
                kind: self.kind,
                items: selected.map(Arc::new).collect(),
                revision: self.api.registry.revision(),
                continue_token: None,
                remaining: None,
            })
        } else {
            let found = components.find(|component| *component.name == **name);
            let found = found.ok_or_else(|| ApiError::not_found(self.kind, name))?;
            self.object(StatusCode::OK, &Arc::new(found))
        }
    }

    pub async fn bind(&self, body: Body) -> Result<Response> {
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
}
