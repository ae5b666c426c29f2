//! From JSON to values: what a field is follows from its schema, where there is one.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use crate::value::Value;

/// The value of `json`, which `schema` (an OpenAPI schema; null: none) describes.
#[must_use]
pub fn from_json(json: &Json, schema: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => {
            let real = schema["type"] == "number";
            match (real, number.as_i64(), number.as_u64()) {
                (false, Some(number), _) => Value::Int(number),
                (false, None, Some(number)) => Value::Uint(number),
                _ => Value::Double(number.as_f64().unwrap_or_default()),
            }
        }
        Json::String(text) => from_text(text, schema),
        Json::Array(items) => {
            let of = &schema["items"];
            Value::list(items.iter().map(|item| from_json(item, of)).collect())
        }
        Json::Object(map) => {
            let (properties, others) = (&schema["properties"], &schema["additionalProperties"]);
            let pairs = map.iter().map(|(name, json)| match properties.get(name) {
                Some(schema) => (Value::text(&escape(name)), from_json(json, schema)),
                None => (Value::text(name), from_json(json, others)),
            });
            let mut pairs: Vec<_> = pairs.collect();
            let name = |pair: &(Value, Value)| match &pair.0 {
                Value::String(name) => name.clone(),
                _ => "".into(),
            };
            pairs.sort_by_key(name);
            Value::Map(Arc::new(pairs))
        }
    }
}

/// A text, or what its format says that it is.
fn from_text(text: &str, schema: &Json) -> Value {
    let found = match schema["format"].as_str() {
        Some("date-time") => text.parse::<Timestamp>().ok().map(Value::Timestamp),
        Some("date") => format!("{text}T00:00:00Z")
            .parse::<Timestamp>()
            .ok()
            .map(Value::Timestamp),
        Some("duration") => duration(text).map(Value::Duration),
        _ => None,
    };
    found.unwrap_or_else(|| Value::text(text))
}

/// A duration as Go writes it: `1h30m`, `-1.5s`, `250ms`.
pub(crate) fn duration(text: &str) -> Option<SignedDuration> {
    let negative = text.starts_with('-');
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let seconds = if negative { -seconds } else { seconds };
    (!text.is_empty()).then(|| SignedDuration::try_from_secs_f64(seconds).ok())?
}

/// The name by which an expression says a field that is no identifier, or a word of CEL.
/// See <https://kubernetes.io/docs/reference/using-api/cel/#escaping>.
pub(crate) fn escape(name: &str) -> String {
    const WORDS: [&str; 19] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
    ];
    if WORDS.contains(&name) || matches!(name, "void" | "while") {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/', '_']) {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
