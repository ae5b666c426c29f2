//! Admission policies in CEL, and the conditions of webhooks: what they say must be worked out, or it is refused.
//!
//! Follows `pkg/apis/admissionregistration/validation` of Kubernetes. `authorizer` is nothing that expressions know here.

use std::collections::BTreeSet;

use control_plane_cel::{Program, Variable};
use serde_json::{Value, json};

use super::{CHECKED, Strategy, defaults, empty_status};
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

/// What every expression of admission may name.
const NAMES: [&str; 3] = ["object", "oldObject", "request"];
/// What those of policies may name too.
const OF_POLICIES: [&str; 3] = ["params", "namespaceObject", "variables"];

pub const VALIDATING_POLICY: Strategy = Strategy {
    default: |policy| {
        policy.put_default("/spec/failurePolicy", "Fail");
        if policy.has("/spec/matchConstraints") {
            default_matching(
                policy,
                "/spec/matchConstraints",
                &["resourceRules", "excludeResourceRules"],
            );
        }
    },
    prepare_create: empty_status,
    validate: validate_policy,
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

pub const POLICY_BINDING: Strategy = Strategy {
    generation: true,
    default: |binding| {
        if binding.has("/spec/matchResources") {
            default_matching(
                binding,
                "/spec/matchResources",
                &["resourceRules", "excludeResourceRules"],
            );
        }
    },
    validate: validate_binding,
    caveat: |binding| {
        let audits = binding
            .items("/spec/validationActions")
            .contains(&json!("Audit"));
        audits.then_some("validationActions Audit is kept and leaves no trace in the audit log yet")
    },
    ..CHECKED
};

fn default_matching(object: &mut Value, at: &str, rules: &[&str]) {
    for (field, value) in [
        ("matchPolicy", json!("Equivalent")),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({})),
    ] {
        defaults(object, [(format!("{at}/{field}").as_str(), value)]);
    }
    for field in rules {
        for rule in object
            .items_mut(&format!("{at}/{field}"))
            .into_iter()
            .flatten()
        {
            rule.put_default("/scope", "*");
        }
    }
}

fn validate_policy(policy: &Value, errors: &mut Vec<FieldError>) {
    one_of(
        policy,
        "/spec/failurePolicy",
        "spec.failurePolicy",
        &["Fail", "Ignore"],
        errors,
    );
    if policy
        .items("/spec/matchConstraints/resourceRules")
        .is_empty()
    {
        errors.push(FieldError::required(
            "spec.matchConstraints.resourceRules",
            "",
        ));
    }
    conditions(
        policy,
        "/spec/matchConditions",
        "spec.matchConditions",
        &["params", "namespaceObject"],
        errors,
    );
    let mut seen = BTreeSet::new();
    for (at, variable) in policy.items("/spec/variables").iter().enumerate() {
        let path = format!("spec.variables[{at}]");
        let name = variable.text("/name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            errors.push(FieldError::invalid(
                format!("{path}.name"),
                name,
                "name is not a valid CEL identifier",
            ));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        expression(variable, "expression", &path, &OF_POLICIES, errors);
    }
    let (validations, notes) = (
        policy.items("/spec/validations"),
        policy.items("/spec/auditAnnotations"),
    );
    if validations.is_empty() && notes.is_empty() {
        let why = "validations or auditAnnotations must be set";
        errors.push(FieldError::required("spec.validations", why));
    }
    for (at, validation) in validations.iter().enumerate() {
        let path = format!("spec.validations[{at}]");
        expression(validation, "expression", &path, &OF_POLICIES, errors);
        if validation.has("/messageExpression") {
            expression(validation, "messageExpression", &path, &OF_POLICIES, errors);
        }
        let reasons = [
            "Forbidden",
            "Invalid",
            "RequestEntityTooLarge",
            "Unauthorized",
        ];
        one_of(
            validation,
            "/reason",
            format!("{path}.reason"),
            &reasons,
            errors,
        );
    }
    for (at, note) in notes.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{at}]");
        expression(note, "valueExpression", &path, &OF_POLICIES, errors);
    }
}

fn validate_binding(binding: &Value, errors: &mut Vec<FieldError>) {
    if binding.text("/spec/policyName").is_empty() {
        errors.push(FieldError::required("spec.policyName", ""));
    }
    let actions = binding.items("/spec/validationActions");
    // Bindings of policies that change objects have none.
    if binding.text("/kind").starts_with("Validating") {
        if actions.is_empty() {
            errors.push(FieldError::required(
                "spec.validationActions",
                "at least one validation action is required",
            ));
        }
        for (at, action) in actions.iter().enumerate() {
            let known = ["Audit", "Deny", "Warn"];
            one_of(
                action,
                "",
                format!("spec.validationActions[{at}]"),
                &known,
                errors,
            );
        }
        if actions.contains(&json!("Deny")) && actions.contains(&json!("Warn")) {
            let why = "must not contain both Deny and Warn";
            errors.push(FieldError::invalid(
                "spec.validationActions",
                actions.to_vec(),
                why,
            ));
        }
    }
    let (named, selected) = (
        !binding.text("/spec/paramRef/name").is_empty(),
        binding.has("/spec/paramRef/selector"),
    );
    if binding.has("/spec/paramRef") && named == selected {
        let why = "exactly one of name or selector must be set";
        errors.push(FieldError::invalid(
            "spec.paramRef",
            binding["spec"]["paramRef"].clone(),
            why,
        ));
    }
}

/// Checks `matchConditions`, which may name `more` too.
pub(super) fn conditions(
    object: &Value,
    pointer: &str,
    path: &str,
    more: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let mut seen = BTreeSet::new();
    for (at, condition) in object.items(pointer).iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = condition.text("/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if let Some(why) = validate::qualified_name(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        expression(condition, "expression", &path, more, errors);
    }
}

fn expression(of: &Value, field: &str, path: &str, more: &[&str], errors: &mut Vec<FieldError>) {
    let source = of.text(&format!("/{field}"));
    let path = format!("{path}.{field}");
    if source.trim().is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let names = NAMES.iter().chain(more);
    let variables: Vec<Variable<'_>> = names
        .map(|name| Variable {
            name,
            schema: &Value::Null,
        })
        .collect();
    if let Err(why) = Program::compile(source, &variables) {
        errors.push(FieldError::invalid(
            path,
            source,
            format!("compilation failed: {why}"),
        ));
    }
}
