//! Pod templates, and what the kinds that stamp pods out of them share.
//!
//! Follows `pkg/apis/apps/validation` and `ValidatePodTemplateSpec` of Kubernetes.

use serde_json::{Value, json};

use super::{Strategy, pod_defaults, pod_validate};
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::{labels, validate};

pub const POD_TEMPLATE: Strategy = Strategy {
    default: |object| default(object, "/template"),
    validate: |object, errors| validate(object, "/template", errors),
    generation: true,
    ..Strategy::PLAIN
};

/// Defaults of the template at `pointer`.
pub(super) fn default(object: &mut Value, pointer: &str) {
    if let Some(template) = object.pointer_mut(pointer).filter(|t| t.is_object()) {
        pod_defaults::default_template(template);
    }
}

/// Checks the template at `pointer`; messages name its fields from the object's root.
pub(super) fn validate(object: &Value, pointer: &str, errors: &mut Vec<FieldError>) {
    let path = pointer.trim_start_matches('/').replace('/', ".");
    let Some(template) = object.pointer(pointer) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let mut own = Vec::new();
    validate::labels(template, "/metadata/labels", "metadata.labels", &mut own);
    pod_validate::validate(template, &mut own);
    errors.extend(own.into_iter().map(|mut error| {
        error.field = format!("{path}.{}", error.field);
        error
    }));
}

/// The template's pods may only be restarted so.
pub(super) fn restart_policy(
    object: &Value,
    pointer: &str,
    allowed: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let field = format!("{pointer}/spec/restartPolicy");
    let path = field.trim_start_matches('/').replace('/', ".");
    let policy = object.text(&field);
    if object.has(pointer) && !allowed.contains(&policy) {
        errors.push(FieldError::not_supported(path, policy, allowed));
    }
}

/// The selector must select the template's pods, and not everything.
pub(super) fn selector(object: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let Some(selector) = object.pointer("/spec/selector") else {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    };
    let before = errors.len();
    labels::validate(selector, "spec.selector", errors);
    if selector.object("/matchLabels").is_none_or(|m| m.is_empty())
        && selector.items("/matchExpressions").is_empty()
    {
        errors.push(FieldError::invalid(
            "spec.selector",
            json!({}),
            format!("empty selector is invalid for {kind}"),
        ));
    }
    let template = object.object("/spec/template/metadata/labels");
    if errors.len() == before && !labels::selects(selector, template) {
        let shown = template.cloned().unwrap_or_default();
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            Value::Object(shown),
            "`selector` does not match template `labels`",
        ));
    }
}

/// The field at `pointer` stays what it was.
pub(super) fn immutable(new: &Value, old: &Value, pointers: &[&str], errors: &mut Vec<FieldError>) {
    for pointer in pointers {
        let at = |object: &Value| object.pointer(pointer).cloned().unwrap_or_default();
        if !same(&at(new), &at(old)) {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(path, at(new), "field is immutable"));
        }
    }
}

/// The integers at these pointers, where there are some, are not negative.
pub(super) fn not_negative(object: &Value, pointers: &[&str], errors: &mut Vec<FieldError>) {
    for pointer in pointers {
        if let Some(number) = object.integer(pointer)
            && number < 0
        {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(
                path,
                number,
                "must be greater than or equal to 0",
            ));
        }
    }
}
