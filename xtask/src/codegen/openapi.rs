//! The OpenAPI v3 schemas of the served groups, and of all that they refer to, from the published JSON schemas.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The packages of which every type is kept.
const PACKAGES: &[&str] = &[
    "io.k8s.api.admissionregistration.v1",
    "io.k8s.api.apps.v1",
    "io.k8s.api.authentication.v1",
    "io.k8s.api.authorization.v1",
    "io.k8s.api.autoscaling.v1",
    "io.k8s.api.autoscaling.v2",
    "io.k8s.api.batch.v1",
    "io.k8s.api.coordination.v1",
    "io.k8s.api.core.v1",
    "io.k8s.api.discovery.v1",
    "io.k8s.api.events.v1",
    "io.k8s.api.flowcontrol.v1",
    "io.k8s.api.networking.v1",
    "io.k8s.api.node.v1",
    "io.k8s.api.policy.v1",
    "io.k8s.api.rbac.v1",
    "io.k8s.api.scheduling.v1",
    "io.k8s.api.storage.v1",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    "io.k8s.apimachinery.pkg.apis.meta.v1",
    "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
];

/// Longer descriptions are cut at a word: the table is compiled into the binary.
const DESCRIPTION_MAX: usize = 160;

pub fn table(published: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut kept = Map::new();
    let mut next: Vec<String> = published
        .keys()
        .filter(|name| {
            let package = name.rsplit_once('.').map_or("", |(package, _)| package);
            PACKAGES.contains(&package)
        })
        .cloned()
        .collect();
    while let Some(name) = next.pop() {
        if kept.contains_key(&name) {
            continue;
        }
        let schema = published
            .get(&name)
            .with_context(|| format!("no definition {name}"))?;
        kept.insert(name, convert(schema, false, &mut next));
    }
    Ok(kept)
}

/// JSON schema to OpenAPI v3: one type instead of `[type, "null"]`, references into components; what is new is noted in
/// `refs`. The published schemas have an `enum` only of what stands in `apiVersion` and `kind`, which Kubernetes' own
/// documents do not have.
fn convert(schema: &Value, names: bool, refs: &mut Vec<String>) -> Value {
    match schema {
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                // Below `properties` keys are field names, not keywords.
                if names {
                    out.insert(key.clone(), convert(value, false, refs));
                    continue;
                }
                match key.as_str() {
                    "enum" | "x-kubernetes-unions" => {}
                    "type" => {
                        out.insert(key.clone(), first_type(value));
                    }
                    "$ref" => {
                        let name = value.as_str().unwrap_or_default();
                        let name = name.rsplit('/').next().unwrap_or_default();
                        refs.push(name.to_owned());
                        out.insert(key.clone(), json!(format!("#/components/schemas/{name}")));
                    }
                    "description" => {
                        out.insert(key.clone(), json!(shorten(value.as_str().unwrap_or(""))));
                    }
                    _ => {
                        out.insert(key.clone(), convert(value, key == "properties", refs));
                    }
                }
            }
            if !names {
                set_reference_apart(&mut out);
            }
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(|v| convert(v, false, refs)).collect(),
        other => other.clone(),
    }
}

/// What stands beside a `$ref` is not read (OpenAPI 3.0, "Reference Object"); beside an `allOf` of it, it is.
fn set_reference_apart(schema: &mut Map<String, Value>) {
    if schema.len() > 1
        && let Some(reference @ Value::String(_)) = schema.remove("$ref")
    {
        schema.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
}

fn first_type(value: &Value) -> Value {
    match value {
        Value::Array(types) => types.first().cloned().unwrap_or(Value::Null),
        other => other.clone(),
    }
}

/// The first sentence, or as many of its words as there is room for.
fn shorten(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = text.find(". ").map_or(text.len(), |at| at + 1);
    if sentence <= DESCRIPTION_MAX {
        return text[..sentence].to_owned();
    }
    let mut short = String::new();
    for word in text.split(' ') {
        if short.len() + word.len() >= DESCRIPTION_MAX {
            break;
        }
        short.push_str(word);
        short.push(' ');
    }
    short.push_str("...");
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_refers_to_comes_along() {
        let published = json!({
            "io.k8s.api.core.v1.A": {"type": ["object", "null"], "properties": {
                "enum": {"type": ["string", "null"], "enum": ["x"]},
                "b": {"$ref": "#/$defs/other.B"},
                "d": {"$ref": "#/$defs/other.B", "description": "D.", "x-kubernetes-map-type": "atomic"},
                "$ref": {"type": "string", "description": "E."}}},
            "other.B": {"type": "string"},
            "other.C": {"type": "string"},
        });
        let table = table(published.as_object().unwrap()).unwrap();
        assert_eq!(
            Value::Object(table),
            json!({
                "io.k8s.api.core.v1.A": {"type": "object", "properties": {
                    "enum": {"type": "string"},
                    "b": {"$ref": "#/components/schemas/other.B"},
                    "d": {"allOf": [{"$ref": "#/components/schemas/other.B"}], "description": "D.",
                        "x-kubernetes-map-type": "atomic"},
                    "$ref": {"type": "string", "description": "E."}}},
                "other.B": {"type": "string"},
            })
        );
    }
}
