//! CustomResourceDefinitions: their defaults, their rules, and the status that says that they are served.
//!
//! Follows `pkg/apis/apiextensions/validation` of Kubernetes.

use serde_json::{Value, json};

use super::template::immutable;
use super::{Strategy, defaults};
use crate::custom::{Path, Rules};
use crate::errors::FieldError;
use crate::json::Json;
use crate::meta;
use crate::validate::{self, one_of};

/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

pub const CUSTOM_RESOURCE_DEFINITION: Strategy = Strategy {
    default: |definition| {
        defaults(definition, [("/spec/conversion/strategy", json!("None"))]);
        let kind = definition.text("/spec/names/kind").to_owned();
        if !kind.is_empty() {
            definition.put_default("/spec/names/singular", kind.to_lowercase());
            definition.put_default("/spec/names/listKind", format!("{kind}List"));
        }
    },
    prepare_create: |definition| {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": "True", "lastTransitionTime": meta::now(),
                "reason": reason, "message": message})
        };
        let conditions = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition(
                "Established",
                "InitialNamesAccepted",
                "the initial names have been accepted"
            ),
        ]);
        definition.put(
            "/status",
            json!({"conditions": conditions, "storedVersions": []}),
        );
        accept(definition);
    },
    prepare_update: |new, old| {
        new.put("/status", old["status"].clone());
        accept(new);
    },
    validate,
    validate_update: |new, old, errors| {
        immutable(
            new,
            old,
            &["/spec/scope", "/spec/names/plural", "/spec/names/kind"],
            errors,
        );
    },
    terminate: |definition| {
        let mut finalizers = definition.items("/metadata/finalizers").to_vec();
        if !finalizers.contains(&json!(CLEANUP)) {
            finalizers.push(json!(CLEANUP));
        }
        definition.put("/metadata/finalizers", finalizers);
        let condition = json!({"type": "Terminating", "status": "True", "lastTransitionTime": meta::now(),
            "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"});
        if let Some(conditions) = definition.items_mut("/status/conditions") {
            conditions.push(condition);
        }
    },
    // Its objects go first, as [`CLEANUP`] says from then on.
    waits: |definition| !definition.has("/metadata/deletionTimestamp"),
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

/// The status follows the specification: names and versions are served at once.
fn accept(definition: &mut Value) {
    let names = definition["spec"]["names"].clone();
    definition.put("/status/acceptedNames", names);
    let versions = definition.items("/spec/versions").iter();
    let stored = versions.clone().find(|v| v.flag("/storage"));
    let stored = stored.map(|v| v["name"].clone());
    definition.put_default("/status/storedVersions", json!([]));
    if let (Some(stored), Some(list)) = (stored, definition.items_mut("/status/storedVersions"))
        && !list.contains(&stored)
    {
        list.push(stored);
    }
}

fn validate(definition: &Value, errors: &mut Vec<FieldError>) {
    let group = definition.text("/spec/group");
    let plural = definition.text("/spec/names/plural");
    let name = definition.text("/metadata/name");
    if name != format!("{plural}.{group}") {
        errors.push(FieldError::invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !group.is_empty() && !group.contains('.') {
        let why = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", group, why));
    }
    if crate::kinds::all().any(|k| k.group == group) {
        let why = "is a group of Kubernetes itself: choose a domain of your own";
        errors.push(FieldError::invalid("spec.group", group, why));
    }
    one_of(
        definition,
        "/spec/scope",
        "spec.scope",
        &["Cluster", "Namespaced"],
        errors,
    );
    let conversion = "spec.conversion.strategy";
    one_of(
        definition,
        "/spec/conversion/strategy",
        conversion,
        &["None"],
        errors,
    );
    for (field, rule) in [
        ("plural", validate::label_1035 as fn(&str) -> _),
        ("singular", validate::label_1035),
    ] {
        let text = definition.text(&format!("/spec/names/{field}"));
        if let (false, Some(why)) = (text.is_empty(), rule(text)) {
            errors.push(FieldError::invalid(
                format!("spec.names.{field}"),
                text,
                why,
            ));
        }
    }
    let versions = definition.items("/spec/versions");
    if versions.iter().filter(|v| v.flag("/storage")).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            versions.to_vec(),
            "must have exactly one version marked as storage version",
        ));
    }
    for (at, version) in versions.iter().enumerate() {
        validate_version(version, &format!("spec.versions[{at}]"), errors);
    }
}

fn validate_version(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let name = version.text("/name");
    if let (false, Some(why)) = (name.is_empty(), validate::label_1035(name)) {
        errors.push(FieldError::invalid(format!("{path}.name"), name, why));
    }
    let schema = format!("{path}.schema.openAPIV3Schema");
    match version.pointer("/schema/openAPIV3Schema") {
        None => errors.push(FieldError::required(schema, "schemas are required")),
        Some(root) => {
            if root.text("/type") != "object" {
                let word = root.text("/type");
                errors.push(FieldError::invalid(
                    format!("{schema}.type"),
                    word,
                    "must be object at the root",
                ));
            }
            validate_schema(root, &schema, errors);
            Rules::check(root, &schema, errors);
        }
    }
    for (at, column) in version
        .items("/additionalPrinterColumns")
        .iter()
        .enumerate()
    {
        let path = format!("{path}.additionalPrinterColumns[{at}]");
        let types = ["boolean", "date", "integer", "number", "string"];
        one_of(column, "/type", format!("{path}.type"), &types, errors);
        let text = column.text("/jsonPath");
        if let Err(why) = Path::parse(text) {
            errors.push(FieldError::invalid(format!("{path}.jsonPath"), text, why));
        }
    }
    for field in ["specReplicasPath", "statusReplicasPath"] {
        let text = version.text(&format!("/subresources/scale/{field}"));
        let is_path = || Path::parse(text).ok().and_then(|p| p.pointer()).is_some();
        if version.has("/subresources/scale") && (text.is_empty() || !is_path()) {
            let path = format!("{path}.subresources.scale.{field}");
            errors.push(FieldError::invalid(
                path,
                text,
                "should be a json path of fields, as in .spec.replicas",
            ));
        }
    }
}

/// A structural schema says the type of everything that it names, and its patterns can be read.
fn validate_schema(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let free = [
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ];
    if schema.text("/type").is_empty() && !free.iter().any(|f| schema.flag(&format!("/{f}"))) {
        let path = format!("{path}.type");
        errors.push(FieldError::required(
            path,
            "must not be empty for specified object fields",
        ));
    }
    let pattern = schema.text("/pattern");
    if let Err(why) = regex::Regex::new(pattern) {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), pattern, why));
    }
    for (name, property) in schema.object("/properties").into_iter().flatten() {
        validate_schema(property, &format!("{path}.properties[{name}]"), errors);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get(below).filter(|s| s.is_object()) {
            validate_schema(schema, &format!("{path}.{below}"), errors);
        }
    }
    if schema.text("/type") == "array" && !schema.has("/items") {
        errors.push(FieldError::required(
            format!("{path}.items"),
            "must be specified",
        ));
    }
}
