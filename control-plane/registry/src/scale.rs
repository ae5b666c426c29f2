//! `scale`: the number of replicas of any kind that has one, read and written as an `autoscaling/v1` `Scale`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::decode::{self, Body};
use crate::errors::{ApiError, FieldError, Result};
use crate::json::Json;
use crate::kinds::{Kind, SCALE, ScalePaths, Subresource};
use crate::labels;
use crate::merge;
use crate::object::Object;
use crate::options::{PatchType, WriteOptions};
use crate::parts::{identify, place};
use crate::registry::Registry;
use crate::write::Written;

impl Registry {
    /// The `Scale` of an object.
    ///
    /// # Errors
    /// 404 when there is no such object, or its kind has no scale.
    pub async fn scale(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>> {
        let object = self.get(kind, namespace, name, None).await?;
        Ok(shown(kind, &object))
    }

    /// Replaces the `Scale` of an object.
    ///
    /// # Errors
    /// As an update of the object.
    pub async fn update_scale(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        body: Body,
        options: &WriteOptions,
    ) -> Result<Written> {
        let mut scale = body.value;
        identify(&SCALE, &mut scale)?;
        decode::conform(&SCALE, &mut scale, body.found, options.field_validation)?;
        self.change_scale(kind, namespace, name, options, |_| Ok(scale.clone()))
            .await
    }

    /// Patches the `Scale` of an object.
    ///
    /// # Errors
    /// As a patch of the object.
    pub async fn patch_scale(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        patch: &Body,
        patch_type: PatchType,
        options: &WriteOptions,
    ) -> Result<Written> {
        let change = |old: &Value| {
            let mut new = merge::apply(&SCALE, old, &patch.value, patch_type)?;
            identify(&SCALE, &mut new)?;
            let found = patch.found.clone();
            decode::conform(&SCALE, &mut new, found, options.field_validation)?;
            Ok(new)
        };
        self.change_scale(kind, namespace, name, options, change)
            .await
    }

    async fn change_scale(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        change: impl Fn(&Value) -> Result<Value>,
    ) -> Result<Written> {
        let paths = paths(kind)?;
        let whole = |old: &Value| {
            let mut scale = change(&read(paths, old))?;
            place(&SCALE, namespace, &mut scale)?;
            let given = scale.text("/metadata/name");
            if !given.is_empty() && given != name {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({name})"
                )));
            }
            let replicas = scale.integer("/spec/replicas").unwrap_or(0);
            if replicas < 0 {
                let why = "must be greater than or equal to 0";
                let error = FieldError::invalid("spec.replicas", replicas, why);
                return Err(ApiError::invalid(&SCALE, name, &[error]));
            }
            let mut new = old.clone();
            new.put(paths.spec_replicas, replicas);
            for field in ["uid", "resourceVersion"] {
                let pointer = format!("/metadata/{field}");
                new.put(&pointer, scale.text(&pointer));
            }
            Ok((new, Vec::new()))
        };
        let written = self
            .modify(
                kind,
                Some(Subresource::Scale),
                namespace,
                name,
                options,
                whole,
            )
            .await?;
        Ok(Written {
            object: shown(kind, &written.object),
            warnings: written.warnings,
        })
    }
}

fn paths(kind: &Kind) -> Result<&ScalePaths> {
    kind.scale.as_ref().ok_or_else(ApiError::unknown_resource)
}

fn shown(kind: &Kind, object: &Object) -> Arc<Object> {
    let scale = match &kind.scale {
        Some(paths) => read(paths, &object.value()),
        None => Value::Null,
    };
    Arc::new(Object::new(&SCALE, scale, object.revision))
}

fn read(paths: &ScalePaths, object: &Value) -> Value {
    let mut metadata = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let number = |pointer: &str| object.integer(pointer).unwrap_or(0);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": number(paths.spec_replicas)},
        "status": {"replicas": number(paths.status_replicas)},
    });
    if let Some(selector) = object
        .pointer(paths.selector)
        .filter(|_| !paths.selector.is_empty())
    {
        scale.put("/status/selector", labels::text(selector));
    }
    scale
}
