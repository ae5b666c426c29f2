//! Patches: from an object and a patch to the patched object, by the patch's type.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::options::PatchType;
use crate::strategic;

/// Applies `patch` to `object`.
///
/// # Errors
/// 400 when the patch is none of its type, 422 when it cannot be applied to this object.
pub fn apply(
    kind: &Kind,
    name: &str,
    object: &Value,
    patch: &Value,
    patch_type: PatchType,
) -> Result<Value> {
    let mut patched = object.clone();
    match patch_type {
        PatchType::Json => {
            let operations = json_patch::Patch::deserialize(patch)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
            json_patch::patch(&mut patched, &operations)
                .map_err(|e| ApiError::patch_failed(kind, name, &e.to_string()))?;
        }
        PatchType::Merge => {
            as_object(patch)?;
            json_patch::merge(&mut patched, patch);
        }
        PatchType::Strategic => {
            let map = patched.as_object_mut();
            let original = map.map(std::mem::take).unwrap_or_default();
            let patch = as_object(patch)?.clone();
            let merged = strategic::merge(original, patch, kind.object_type())
                .map_err(|why| ApiError::bad_request(why.to_string()))?;
            patched = Value::Object(merged);
        }
    }
    if !patched.is_object() {
        let why = "the patched document is no object";
        return Err(ApiError::patch_failed(kind, name, why));
    }
    Ok(patched)
}

fn as_object(patch: &Value) -> Result<&Map<String, Value>> {
    patch.as_object().ok_or_else(|| {
        ApiError::bad_request("error decoding patch: the patch must be a JSON object")
    })
}
