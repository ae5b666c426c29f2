//! How often a DaemonSet's template has changed: once a field of the specification, in apps/v1 an annotation that says
//! what the server has counted, whatever a client writes.
//!
//! Follows `pkg/apis/apps/v1/conversion.go` and `pkg/registry/apps/daemonset` of Kubernetes.

use serde_json::Value;

use crate::errors::FieldError;
use crate::json::{Json, same};

const ANNOTATION: &str = "/metadata/annotations/deprecated.daemonset.template.generation";

/// Who leaves it out has written zero.
pub(super) fn default(set: &mut Value) {
    set.put_default(ANNOTATION, "0");
}

/// A new set begins with one, or goes on with what it had elsewhere.
pub(super) fn begin(set: &mut Value) {
    if read(set).is_some_and(|number| number < 1) {
        put(set, 1);
    }
}

/// The old number, and one more for another template.
pub(super) fn count(new: &mut Value, old: &Value) {
    if read(new).is_none() {
        return;
    }
    let template = |set: &Value| set.pointer("/spec/template").cloned().unwrap_or_default();
    let changed = !same(&template(new), &template(old));
    let before = read(old).unwrap_or(0);
    put(new, before.saturating_add(i64::from(changed)));
}

pub(super) fn validate(set: &Value, errors: &mut Vec<FieldError>) {
    if read(set).is_none() {
        let name = ANNOTATION.trim_start_matches("/metadata/annotations/");
        errors.push(FieldError::invalid(
            format!("metadata.annotations[{name}]"),
            set.text(ANNOTATION),
            "must be a number",
        ));
    }
}

/// `None` for a text that is no number.
fn read(set: &Value) -> Option<i64> {
    set.text(ANNOTATION).parse().ok()
}

fn put(set: &mut Value, number: i64) {
    set.put(ANNOTATION, number.to_string());
}
