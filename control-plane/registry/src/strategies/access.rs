//! Who is who and may do what: roles, bindings, and the reviews that ask about it, which the API server answers.

use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate::{self, one_of};

const GROUP: &str = "rbac.authorization.k8s.io";

pub const ROLE: Strategy = Strategy {
    name: validate::path_segment,
    default: |role| role.put_default("/rules", json!([])),
    validate: |role, errors| {
        let namespaced = role.has("/metadata/namespace");
        for (at, rule) in role.items("/rules").iter().enumerate() {
            let path = format!("rules[{at}]");
            let urls = !rule.items("/nonResourceURLs").is_empty();
            if rule.items("/verbs").is_empty() {
                errors.push(FieldError::required(
                    format!("{path}.verbs"),
                    "verbs must contain at least one value",
                ));
            }
            if urls {
                let path = format!("{path}.nonResourceURLs");
                let listed = rule["nonResourceURLs"].clone();
                if namespaced {
                    let why = "namespaced rules cannot apply to non-resource URLs";
                    errors.push(FieldError::invalid(path, listed, why));
                } else if !rule.items("/resources").is_empty() {
                    let why = "rules cannot apply to both regular resources and non-resource URLs";
                    errors.push(FieldError::invalid(path, listed, why));
                }
                continue;
            }
            for (field, why) in [
                (
                    "apiGroups",
                    "resource rules must supply at least one api group",
                ),
                (
                    "resources",
                    "resource rules must supply at least one resource",
                ),
            ] {
                if rule.items(&format!("/{field}")).is_empty() {
                    errors.push(FieldError::required(format!("{path}.{field}"), why));
                }
            }
        }
    },
    ..Strategy::PLAIN
};

pub const ROLE_BINDING: Strategy = Strategy {
    name: validate::path_segment,
    default: |binding| {
        binding.put_default("/roleRef/apiGroup", GROUP);
        for subject in binding.items_mut("/subjects").into_iter().flatten() {
            if matches!(subject.text("/kind"), "User" | "Group") {
                subject.put_default("/apiGroup", GROUP);
            }
        }
    },
    validate: |binding, errors| {
        let kinds = ["ClusterRole", "Role"];
        let namespaced = binding.has("/metadata/namespace");
        let kinds = if namespaced { &kinds[..] } else { &kinds[..1] };
        one_of(binding, "/roleRef/kind", "roleRef.kind", kinds, errors);
        for field in ["kind", "name"] {
            if binding.text(&format!("/roleRef/{field}")).is_empty() {
                errors.push(FieldError::required(format!("roleRef.{field}"), ""));
            }
        }
        for (at, subject) in binding.items("/subjects").iter().enumerate() {
            let path = format!("subjects[{at}]");
            let kinds = ["Group", "ServiceAccount", "User"];
            one_of(subject, "/kind", format!("{path}.kind"), &kinds, errors);
            if subject.text("/name").is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            if subject.text("/kind") == "ServiceAccount" && subject.text("/namespace").is_empty() {
                errors.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
    },
    validate_update: |new, old, errors| {
        if !same(&new["roleRef"], &old["roleRef"]) {
            let value = as_go_names_it(&new["roleRef"]);
            errors.push(FieldError::invalid(
                "roleRef",
                value,
                "cannot change roleRef",
            ));
        }
    },
    ..Strategy::PLAIN
};

pub const ACCESS_REVIEW: Strategy = Strategy {
    validate: |review, errors| {
        let resource = review.has("/spec/resourceAttributes");
        if resource == review.has("/spec/nonResourceAttributes") {
            errors.push(FieldError::invalid(
                "spec.resourceAttributes",
                review["spec"].clone(),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
        if review.text("/kind") != "SelfSubjectAccessReview"
            && review.text("/spec/user").is_empty()
            && review.items("/spec/groups").is_empty()
        {
            errors.push(FieldError::invalid(
                "spec.user",
                "",
                "at least one of user or group must be specified",
            ));
        }
    },
    review: true,
    ..Strategy::PLAIN
};

/// Answered, without anything to check.
pub const REVIEW: Strategy = Strategy {
    review: true,
    ..Strategy::PLAIN
};

pub const TOKEN_REVIEW: Strategy = Strategy {
    validate: |review: &Value, errors| {
        if review.text("/spec/token").is_empty() {
            errors.push(FieldError::required("spec.token", ""));
        }
    },
    review: true,
    ..Strategy::PLAIN
};

/// Kubernetes shows the type that it works with, whose fields have no names of JSON.
fn as_go_names_it(reference: &Value) -> Value {
    json!({
        "APIGroup": reference["apiGroup"],
        "Kind": reference["kind"],
        "Name": reference["name"],
    })
}
