//! Patches: from an object and a patch to the patched object, by the patch's type.

use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::options::PatchType;
use crate::strategic;

/// As kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;

/// Bytes of JSON that the `copy` operations of one patch may make together: as many as a body may have. Without it each
/// copy could double the object.
const COPIES_MAX: usize = 3 * 1024 * 1024;

/// Applies `patch` to `object`.
///
/// # Errors
/// 400 when the patch is none of its type, 413 when it has too many operations, 422 when it cannot be applied to this
/// object.
pub fn apply(kind: &Kind, object: &Value, patch: &Value, patch_type: PatchType) -> Result<Value> {
    let mut patched = object.clone();
    match patch_type {
        PatchType::Json => {
            let operations = json_patch::Patch::deserialize(patch)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
            operate(&mut patched, &operations)?;
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
        return Err(ApiError::patch_failed("the patched document is no object"));
    }
    Ok(patched)
}

/// RFC 6902, one operation after the other.
fn operate(object: &mut Value, operations: &[PatchOperation]) -> Result<()> {
    if operations.len() > OPERATIONS_MAX {
        return Err(ApiError::too_many_operations(
            OPERATIONS_MAX,
            operations.len(),
        ));
    }
    let mut copied = 0;
    for (at, operation) in operations.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            let what = object.pointer(copy.from.as_str());
            copied += what.map_or(0, |value| value.to_string().len());
            if copied > COPIES_MAX {
                let why =
                    format!("operation '/{at}': the copies are larger than {COPIES_MAX} bytes");
                return Err(ApiError::patch_failed(&why));
            }
        }
        if is_absent_as_tested(object, operation) {
            continue;
        }
        // The object is a copy, which nobody sees when this fails: nothing need be undone.
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|error| {
            let why = format!(
                "operation '/{at}' failed at path '{}': {}",
                error.path, error.kind
            );
            ApiError::patch_failed(&why)
        })?;
    }
    Ok(())
}

/// Kubernetes lets a member that is not there pass for null in a test, where RFC 6902 has an error: so clients make sure
/// that nobody else was first (kube-rs' finalizers do).
fn is_absent_as_tested(object: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else {
        return false;
    };
    let path = test.path.as_str();
    let parent = path
        .rsplit_once('/')
        .and_then(|(parent, _)| object.pointer(parent));
    test.value.is_null() && parent.is_some_and(Value::is_object) && object.pointer(path).is_none()
}

fn as_object(patch: &Value) -> Result<&Map<String, Value>> {
    patch.as_object().ok_or_else(|| {
        ApiError::bad_request("error decoding patch: the patch must be a JSON object")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    fn patched(patch: &Value) -> Result<Value> {
        let kind = kinds::find("", "v1", "configmaps").expect("ConfigMaps are served");
        let object = json!({"metadata": {"name": "c"}, "data": {"a": "1"}});
        apply(kind, &object, patch, PatchType::Json)
    }

    #[test]
    fn a_member_that_is_absent_passes_for_null_in_a_test() {
        let add = json!({"op": "add", "path": "/metadata/finalizers", "value": ["f"]});
        let test = |path: &str| json!({"op": "test", "path": path, "value": null});
        let made = patched(&json!([test("/metadata/finalizers"), add])).unwrap();
        assert_eq!(made["metadata"]["finalizers"], json!(["f"]));
        for wrong in ["/data/a", "/none/a"] {
            assert_eq!(
                patched(&json!([test(wrong)])).unwrap_err().code,
                422,
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_operation_that_fails_is_named() {
        let same = json!({"op": "test", "path": "/data/a", "value": "1"});
        let error = patched(&json!([same, {"op": "remove", "path": "/data/b"}])).unwrap_err();
        assert!(
            error
                .message
                .contains("operation '/1' failed at path '/data/b'"),
            "{}",
            error.message
        );
    }
}
