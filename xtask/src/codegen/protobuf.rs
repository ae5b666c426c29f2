//! Protobuf's field numbers of the types in the OpenAPI table, read from the attributes of generated prost structs.
//!
//! A type becomes `{"number": "property", ...}`. What JSON writes inline is a message of its own in protobuf; its number
//! leads to the map of that message: `{"2": {"1": "hostPath", ...}}`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// Messages by the lower-case OpenAPI name of their type.
type Messages = HashMap<String, Vec<Field>>;

#[derive(Debug, PartialEq, Eq)]
struct Field {
    number: String,
    /// In the letters that prost and JSON agree on.
    name: String,
    /// The last part of the type's path, in lower case.
    of: String,
}

pub fn table(source: &Path, definitions: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut messages = Messages::new();
    read_folder(source, "io.k8s", &mut messages)?;
    let mut table = Map::new();
    let mut without = Vec::new();
    for (name, definition) in definitions {
        let Some(properties) = definition.get("properties").and_then(Value::as_object) else {
            continue;
        };
        let known: HashMap<String, &str> = properties
            .keys()
            .map(|property| (plain(property), property.as_str()))
            .collect();
        let Some(message) = messages.get(&name.to_lowercase()) else {
            continue;
        };
        let mut numbered = Vec::new();
        let package = name.rsplit_once('.').map_or("", |(package, _)| package);
        let fields = resolve(&messages, package, message, &known, &mut numbered);
        // Objects and lists carry these beside the message, in its envelope.
        let enveloped = |p: &str| matches!(p, "apiVersion" | "kind");
        without.extend(
            properties
                .keys()
                .filter(|p| !numbered.contains(&p.as_str()) && !enveloped(p))
                .map(|p| format!("{name}.{p}")),
        );
        table.insert(name.clone(), Value::Object(fields));
    }
    println!(
        "codegen: {} fields are too new to have a protobuf number{}{}",
        without.len(),
        if without.is_empty() { "" } else { ": " },
        without.join(", ")
    );
    Ok(table)
}

fn resolve<'a>(
    messages: &Messages,
    package: &str,
    message: &[Field],
    known: &HashMap<String, &'a str>,
    numbered: &mut Vec<&'a str>,
) -> Map<String, Value> {
    let mut out = Map::new();
    for field in message {
        if let Some(property) = known.get(&field.name) {
            numbered.push(property);
            out.insert(field.number.clone(), Value::from(*property));
        } else if let Some(inner) =
            messages.get(&format!("{}.{}", package.to_lowercase(), field.of))
        {
            let inner = resolve(messages, package, inner, known, numbered);
            if !inner.is_empty() {
                out.insert(field.number.clone(), Value::Object(inner));
            }
        }
    }
    out
}

/// Reads `mod.rs` of a folder and of those below it; `package` is the OpenAPI name of the folder.
fn read_folder(folder: &Path, package: &str, messages: &mut Messages) -> Result<()> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in list {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            // OpenAPI writes a dash where Rust's modules cannot: k8s.io/kube-aggregator.
            let below = format!("{package}.{}", name.replace('_', "-"));
            read_folder(&path, &below, messages)?;
        } else if name == "mod.rs" {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            read_messages(&text, package, messages)
                .with_context(|| format!("in {}", path.display()))?;
        }
    }
    Ok(())
}

fn read_messages(text: &str, package: &str, messages: &mut Messages) -> Result<()> {
    let mut lines = text.lines().map(str::trim);
    let mut current: Option<String> = None;
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{', ';']).next().unwrap_or_default();
            let name = format!("{package}.{name}").to_lowercase();
            messages.insert(name.clone(), Vec::new());
            current = Some(name);
        } else if line.starts_with("#[prost(") {
            let attribute = until(line, ")]", &mut lines);
            let field = until("", ",", &mut lines);
            let message = current.as_ref().and_then(|name| messages.get_mut(name));
            match (read_field(&attribute, &field), message) {
                (Some(field), Some(message)) => message.push(field),
                _ => bail!("not understood: {attribute} {field}"),
            }
        }
    }
    Ok(())
}

/// Joins lines until one ends with `end`.
fn until<'a>(first: &str, end: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut joined = first.to_owned();
    while !joined.ends_with(end) {
        let Some(line) = lines.next() else {
            break;
        };
        joined.push_str(line);
    }
    joined
}

fn read_field(attribute: &str, field: &str) -> Option<Field> {
    let number = attribute.split_once("tag = \"")?.1.split('"').next()?;
    let (name, of) = field.strip_prefix("pub ")?.split_once(':')?;
    let of = of.rsplit(['<', ':']).next()?;
    let of = of.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    Some(Field {
        number: number.to_owned(),
        name: plain(name.trim_start_matches("r#")),
        of: of.to_lowercase(),
    })
}

/// `cluster_i_ps`, `clusterIPs` and `$ref`, `ref` are the same.
fn plain(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    letters.collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SOURCE: &str = r#"
pub struct Volume {
    #[prost(string, optional, tag = "1")]
    pub name: ::core::option::Option<::prost::alloc::string::String>,
    #[prost(message, optional, tag = "2")]
    pub volume_source: ::core::option::Option<VolumeSource>,
}
pub struct VolumeSource {
    #[prost(message, optional, tag = "28")]
    pub host_i_ps:
        ::core::option::Option<super::super::other::HostPath>,
}
"#;

    #[test]
    fn inline_structs_are_maps_in_maps() {
        let mut messages = Messages::new();
        read_messages(SOURCE, "io.k8s.api.core.v1", &mut messages).unwrap();
        let message = &messages["io.k8s.api.core.v1.volume"];
        let known = [("name", "name"), ("hostips", "hostIPs")];
        let known = known.map(|(a, b)| (a.to_owned(), b)).into();
        let mut numbered = Vec::new();
        let out = resolve(
            &messages,
            "io.k8s.api.core.v1",
            message,
            &known,
            &mut numbered,
        );
        assert_eq!(
            Value::Object(out),
            json!({"1": "name", "2": {"28": "hostIPs"}})
        );
        assert_eq!(numbered, ["name", "hostIPs"]);
        assert!(
            read_messages(
                "pub struct A {\n#[prost(x)]\npub a: A,\n",
                "p",
                &mut messages
            )
            .is_err()
        );
    }
}
