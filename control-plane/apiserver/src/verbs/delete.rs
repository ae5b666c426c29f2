//! Deleting one object or many, where nobody who is asked refuses it.

use axum::response::Response;
use control_plane_registry::admission::{Operation, Proposed};
use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, DeleteOptions, Deleted, Object, decode};
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::path::Target;
use crate::{admission, body, negotiate, respond};

impl Call {
    pub(super) async fn delete(&self, options: &DeleteOptions) -> Result<Response> {
        let Target {
            namespace, name, ..
        } = &self.target;
        let registry = &self.api.registry;
        self.may_go(namespace, name, options).await?;
        match registry.delete(self.kind, namespace, name, options).await? {
            Deleted::Object(object) => self.object(StatusCode::OK, &object),
            Deleted::Gone(object) => Ok(respond::json(StatusCode::OK, &gone(&object))),
        }
    }

    pub(super) async fn delete_collection(&self, options: &DeleteOptions) -> Result<Response> {
        if self.kind.namespaced && self.target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let which = self.query.list_options(self.kind)?;
        if admission::gate(&self.api, &self.context.user, &self.warnings).is_some() {
            let registry = &self.api.registry;
            let all = registry
                .list(self.kind, &self.target.namespace, &which)
                .await?;
            for object in all.items {
                self.may_go(&object.namespace, &object.name, options)
                    .await?;
            }
        }
        let list = self
            .api
            .registry
            .delete_collection(self.kind, &self.target.namespace, &which, options)
            .await?;
        self.many(list)
    }

    pub(super) async fn delete_options(&self, body: axum::body::Body) -> Result<DeleteOptions> {
        let bytes = body::read(body).await?;
        let given = if bytes.is_empty() {
            Value::Null
        } else {
            decode::parse(&bytes, negotiate::format(&self.headers)?)?.value
        };
        self.query.delete_options(DeleteOptions::from_body(&given)?)
    }

    /// Asks those who may refuse a deletion.
    async fn may_go(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        let Some(admission) = admission::gate(&self.api, &self.context.user, &self.warnings) else {
            return Ok(());
        };
        let registry = &self.api.registry;
        let old = registry
            .get(self.kind, namespace, name, None)
            .await?
            .value();
        let proposed = Proposed {
            kind: self.kind,
            subresource: None,
            namespace,
            name,
            operation: Operation::Delete,
            old: Some(&old),
            dry_run: options.dry_run,
        };
        admission.validate(&proposed, None).await
    }
}

/// The answer when an object is gone.
fn gone(object: &Object) -> Value {
    let mut details = json!({"name": &*object.name});
    if !object.kind.group.is_empty() {
        details["group"] = object.kind.group.into();
    }
    details["kind"] = object.kind.plural.into();
    details["uid"] = (&*object.uid).into();
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
