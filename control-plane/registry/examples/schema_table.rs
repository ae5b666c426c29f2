//! Generates `src/schema/definitions.json`: the OpenAPI v3 schemas of the served kinds, and of all
//! that they refer to, out of the JSON schemas of one Kubernetes release.
//!
//! The input is `kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json` of the
//! Python package `kubernetes-validate` 1.37 (Apache-2.0), which keeps the `x-kubernetes-*`
//! extensions that patches need:
//!
//! ```sh
//! pip download --no-deps kubernetes-validate==1.37.0
//! unzip kubernetes_validate-*.whl 'kubernetes_validate/kubernetes-json-schema/v1.37.0-local/*'
//! cargo run -p control-plane-registry --example schema_table -- \
//!   kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json \
//!   > control-plane/registry/src/schema/definitions.json
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The kinds to keep; their `List`s come along by themselves.
const ROOTS: &[&str] = &[
    "io.k8s.api.coordination.v1.Lease",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Endpoints",
    "io.k8s.api.core.v1.Event",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.Node",
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.discovery.v1.EndpointSlice",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

/// Longer descriptions are cut at a word: the table is compiled into the binary.
const DESCRIPTION_MAX: usize = 220;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: schema_table PATH/_definitions.json")?;
    let document: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let all = document["$defs"]
        .as_object()
        .ok_or("no $defs in the file")?;
    let mut kept = BTreeMap::new();
    for root in ROOTS {
        keep(all, root, &mut kept)?;
        let list = format!("{root}List");
        if all.contains_key(&list) {
            keep(all, &list, &mut kept)?;
        }
    }
    // One definition a line, so that a new release reads as a diff of types.
    println!("{{");
    let last = kept.len() - 1;
    for (at, (name, schema)) in kept.iter().enumerate() {
        let comma = if at == last { "" } else { "," };
        println!("{}:{}{comma}", json!(name), schema);
    }
    println!("}}");
    Ok(())
}

/// Adds the definition `name` and everything that it refers to.
fn keep(
    all: &Map<String, Value>,
    name: &str,
    kept: &mut BTreeMap<String, Value>,
) -> Result<(), String> {
    if kept.contains_key(name) {
        return Ok(());
    }
    let schema = all
        .get(name)
        .ok_or_else(|| format!("no definition {name}"))?;
    let mut refs = Vec::new();
    kept.insert(name.to_owned(), convert(schema, false, &mut refs));
    for next in refs {
        keep(all, &next, kept)?;
    }
    Ok(())
}

/// JSON schema to OpenAPI v3: one type instead of `[type, "null"]`, references into components.
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
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(|v| convert(v, false, refs)).collect(),
        other => other.clone(),
    }
}

fn first_type(value: &Value) -> Value {
    match value {
        Value::Array(types) => types.first().cloned().unwrap_or(Value::Null),
        other => other.clone(),
    }
}

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
