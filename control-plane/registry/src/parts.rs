//! What a client's object must agree with before it is looked at: the URL, the stored version, and the part of the
//! object that the request is about.

use serde_json::{Value, json};

use crate::errors::{ApiError, FieldError, Result};
use crate::json::{Json, same};
use crate::kinds::{Kind, Subresource};

/// The body must be of the kind that the URL names; it may leave that out.
pub fn identify(kind: &Kind, object: &mut Value) -> Result<()> {
    if !object.is_object() {
        return Err(ApiError::bad_request(format!(
            "the body must be an object of kind {}",
            kind.kind
        )));
    }
    let api_version = kind.api_version();
    let given = object.text("/apiVersion");
    if !given.is_empty() && given != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({api_version})"
        )));
    }
    let given = object.text("/kind");
    if !given.is_empty() && given != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{given} in version \"{}\" cannot be handled as a {}: converting ({given}) to ({}): unknown conversion",
            kind.version, kind.kind, kind.kind
        )));
    }
    object.put("/apiVersion", api_version);
    object.put("/kind", kind.kind);
    Ok(())
}

/// The object stands in the namespace of the URL.
pub fn place(kind: &Kind, namespace: &str, object: &mut Value) -> Result<()> {
    if !object.has("/metadata") {
        object.put("/metadata", json!({}));
    }
    if !kind.namespaced {
        object.take_at("/metadata/namespace");
        return Ok(());
    }
    let given = object.text("/metadata/namespace");
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.put("/metadata/namespace", namespace);
    Ok(())
}

pub fn check_version(kind: &Kind, new: &Value, old: &Value) -> Result<()> {
    let name = old.text("/metadata/name");
    let (uid, has) = (new.text("/metadata/uid"), old.text("/metadata/uid"));
    if !uid.is_empty() && uid != has {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {has}");
        return Err(ApiError::conflict(kind, name, &why));
    }
    let version = new.text("/metadata/resourceVersion");
    if matches!(version, "" | "0") || version == old.text("/metadata/resourceVersion") {
        return Ok(());
    }
    if version.parse::<u64>().is_err() {
        let why = "must be a resourceVersion that this server gave out";
        let error = FieldError::invalid("metadata.resourceVersion", version, why);
        return Err(ApiError::invalid(kind, name, &[error]));
    }
    Err(ApiError::modified(kind, name))
}

/// A write to the object leaves its status alone, a write to the status everything else.
pub fn keep_other_parts(
    kind: &Kind,
    subresource: Option<Subresource>,
    new: &mut Value,
    old: &Value,
) {
    let take_from_old = |new: &mut Value, field: &str| match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            new.take_at(&format!("/{field}"));
        }
    };
    match subresource {
        None if kind.has(Subresource::Status) => take_from_old(new, "status"),
        None => {}
        Some(Subresource::Status) => {
            let owners = old.pointer("/metadata/ownerReferences").cloned();
            if let Some(owners) = owners {
                new.put("/metadata/ownerReferences", owners);
            }
            let status = new.get("status").cloned();
            let metadata = new["metadata"].take();
            *new = old.clone();
            new["metadata"] = metadata;
            match status {
                Some(status) => new["status"] = status,
                None => {
                    new.take_at("/status");
                }
            }
        }
        Some(part) => *new = (kind.strategy.part)(part, new, old),
    }
}

/// Whether nothing but metadata and status differs.
pub fn same_specification(new: &Value, old: &Value) -> bool {
    let rest = |v: &Value| {
        let mut v = v.clone();
        v.take_at("/metadata");
        v.take_at("/status");
        v
    };
    same(&rest(new), &rest(old))
}
