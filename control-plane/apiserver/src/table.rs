//! `meta.k8s.io/v1` `Table` and `PartialObjectMetadata`: what people and caches want of objects.

use std::sync::Arc;

use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, FieldError, Kind, Object};
use serde_json::{Value, json};

/// What comes with each row (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    /// # Errors
    /// 422 for an unknown word.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::Nothing),
            "Object" => Ok(Self::Object),
            other => {
                let known = ["Metadata", "None", "Object"];
                let error = FieldError::not_supported("includeObject", other, &known);
                Err(ApiError::invalid_of(
                    "meta.k8s.io",
                    "TableOptions",
                    "",
                    &[error],
                ))
            }
        }
    }
}

/// The table of some objects of a kind.
pub fn make<'a>(
    kind: &Kind,
    metadata: Value,
    objects: impl IntoIterator<Item = &'a Arc<Object>>,
    include: Include,
) -> Value {
    let now = jiff::Timestamp::now();
    let columns: Vec<Value> = kind
        .printer
        .columns
        .iter()
        .map(|c| {
            json!({
                "name": c.name,
                "type": c.kind,
                "format": c.format,
                "description": c.description,
                "priority": c.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let value = object.value();
            let mut row = json!({"cells": kind.printer.cells(&value, now)});
            match include {
                Include::Nothing => {}
                Include::Metadata => row["object"] = partial(&value),
                Include::Object => row["object"] = value,
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// Only the metadata of an object.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}
