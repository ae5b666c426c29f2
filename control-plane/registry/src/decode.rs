//! From request bytes to an object of its schema: duplicate and unknown fields found, nulls gone, types checked.
//!
//! Texts follow what Kubernetes' strict decoder (`sigs.k8s.io/json`) answers.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::options::FieldValidation;
use crate::protobuf;
use crate::schema::{Field, Shape, Type, schema};
use crate::yaml;

/// How the bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    /// With Kubernetes' envelope.
    Protobuf,
}

/// A parsed body.
#[derive(Clone, Debug)]
pub struct Body {
    pub value: Value,
    /// Which fields came twice (the last one counts), as `duplicate field "data.a"`, or are unknown to protobuf.
    pub found: Vec<String>,
}

/// What conforming an object to its schema found.
#[derive(Debug, Default)]
pub struct Findings {
    /// As in `unknown field "spec.foo"`; for the user to see, the fields are already dropped.
    pub strict: Vec<String>,
    /// The first value of a wrong type: the object cannot be understood.
    pub mismatch: Option<String>,
}

/// Parses `bytes`.
///
/// # Errors
/// 400 when the bytes are not of their format.
pub fn parse(bytes: &[u8], format: Format) -> Result<Body> {
    if format == Format::Protobuf {
        return protobuf::decode(bytes);
    }
    if format == Format::Yaml {
        // JSON is YAML, and most of what comes as YAML is JSON.
        return json(bytes).or_else(|_| {
            let value = yaml::parse(bytes)?;
            let found = Vec::new();
            Ok(Body { value, found })
        });
    }
    json(bytes)
        .map_err(|e| ApiError::bad_request(format!("the object provided is unrecognized: {e}")))
}

fn json(bytes: &[u8]) -> serde_json::Result<Body> {
    let duplicates = RefCell::new(Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        path: String::new(),
        duplicates: &duplicates,
    };
    let value = seed
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))?;
    Ok(Body {
        value,
        found: duplicates.into_inner(),
    })
}

/// Makes `object` conform to its kind's schema, and answers the warnings that the client should see.
///
/// `found` holds what the parser already found.
///
/// # Errors
/// 400 for a value of a wrong type, and for unknown or duplicate fields under `Strict`.
pub fn conform(
    kind: &Kind,
    object: &mut Value,
    mut found: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>> {
    let cannot = |why: String| {
        ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        ))
    };
    let findings = check(kind.object_type(), object);
    if let Some(mismatch) = findings.mismatch {
        return Err(cannot(mismatch));
    }
    found.extend(findings.strict);
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(found),
        FieldValidation::Strict if found.is_empty() => Ok(found),
        FieldValidation::Strict => Err(cannot(strict_error(&found))),
    }
}

/// The text for unknown and duplicate fields that were refused.
#[must_use]
pub fn strict_error(found: &[String]) -> String {
    format!("strict decoding error: {}", found.join(", "))
}

/// Drops nulls and unknown fields of `object`, an instance of the type, and reports.
pub fn check(of: Option<&Type>, object: &mut Value) -> Findings {
    let mut findings = Findings::default();
    if let Some(of) = of {
        check_object(of, object, "", &mut findings);
    }
    findings
}

fn check_object(of: &Type, value: &mut Value, path: &str, found: &mut Findings) {
    let Some(map) = value.as_object_mut() else {
        mismatch(found, value, of, path, &format!("v1.{}", of.name));
        return;
    };
    map.retain(|name, value| {
        if of.fields.contains_key(name) {
            return !value.is_null();
        }
        if of.open {
            return true;
        }
        found
            .strict
            .push(format!("unknown field \"{}\"", join(path, name)));
        false
    });
    for (name, value) in map {
        if let Some(field) = of.fields.get(name) {
            check_field(field, of, value, &join(path, name), found);
        }
    }
}

fn check_field(field: &Field, of: &Type, value: &mut Value, path: &str, found: &mut Findings) {
    let want = match &field.shape {
        Shape::Object(name) => {
            if let Some(of) = schema().get(name) {
                check_object(of, value, path, found);
            }
            return;
        }
        Shape::Inline(of) => {
            // The rules of the custom resource say what is wrong with anything else.
            if value.is_object() {
                check_object(of, value, path, found);
            }
            return;
        }
        Shape::Array(inner) => {
            if let Some(items) = value.as_array_mut() {
                for (at, item) in items.iter_mut().enumerate() {
                    check_field(inner, of, item, &format!("{path}[{at}]"), found);
                }
                return;
            }
            "[]interface {}"
        }
        Shape::Map(inner) => {
            if let Some(map) = value.as_object_mut() {
                map.retain(|_, value| !value.is_null());
                for (name, item) in map {
                    check_field(inner, of, item, &join(path, name), found);
                }
                return;
            }
            "map[string]string"
        }
        Shape::Any | Shape::Free | Shape::SchemaOr(_) => return,
        Shape::Boolean if value.is_boolean() => return,
        Shape::Boolean => "bool",
        Shape::Integer("int32") if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            return;
        }
        Shape::Integer("int64") if value.is_i64() => return,
        Shape::Integer(name) => name,
        Shape::Number if value.is_number() => return,
        Shape::Number => "float64",
        Shape::String | Shape::Bytes if value.is_string() => return,
        Shape::String | Shape::Bytes => "string",
        Shape::Time | Shape::MicroTime => match value.as_str() {
            Some(text) if text.parse::<jiff::Timestamp>().is_ok() => return,
            Some(text) => {
                found.mismatch.get_or_insert(format!(
                    "parsing time \"{text}\" at {path}: not an RFC 3339 time, as in 2026-01-31T12:00:00Z"
                ));
                return;
            }
            None => "Time",
        },
        Shape::IntOrString if value.is_string() || value.as_i64().is_some() => return,
        Shape::IntOrString => "IntOrString",
        Shape::Quantity => match quantity(value) {
            Ok(()) => return,
            Err(why) => {
                found.mismatch.get_or_insert(format!("{why} at {path}"));
                return;
            }
        },
    };
    mismatch(found, value, of, path, want);
}

/// Quantities may be written as numbers and are kept as strings.
fn quantity(value: &mut Value) -> Result<(), String> {
    if let Value::Number(number) = value {
        *value = number.to_string().into();
    }
    let parses = value
        .as_str()
        .is_some_and(|text| crate::validate::quantity(text).is_some());
    if parses {
        return Ok(());
    }
    Err(format!(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got {value}"
    ))
}

fn mismatch(found: &mut Findings, value: &Value, of: &Type, path: &str, want: &str) {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "number (with a fraction or out of range)",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    // Go's decoder names the way without the positions in lists.
    let way: String = path
        .split('[')
        .map(|part| part.split_once(']').map_or(part, |(_, rest)| rest))
        .collect();
    found.mismatch.get_or_insert(format!(
        "json: cannot unmarshal {got} into Go struct field {}.{way} of type {want}",
        of.name
    ));
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Reads any JSON and remembers the members that came twice.
struct Seed<'a> {
    path: String,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let seed = Seed {
                path: format!("{}[{}]", self.path, items.len()),
                duplicates: self.duplicates,
            };
            match seq.next_element_seed(seed)? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = join(&self.path, &name);
            let value = map.next_value_seed(Seed {
                path: path.clone(),
                duplicates: self.duplicates,
            })?;
            if out.insert(name, value).is_some() {
                self.duplicates
                    .borrow_mut()
                    .push(format!("duplicate field \"{path}\""));
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicate_fields_are_named_and_the_last_counts() {
        let Body { value, found } = parse(
            br#"{"data":{"a":"1","a":"2"},"x":[{"b":1,"b":2}]}"#,
            Format::Json,
        )
        .unwrap();
        assert_eq!(value["data"]["a"], "2");
        assert_eq!(
            found,
            ["duplicate field \"data.a\"", "duplicate field \"x[0].b\""]
        );
        assert!(parse(b"{} x", Format::Json).is_err());
    }

    #[test]
    fn unknown_fields_and_nulls_are_dropped_and_named() {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": null}, "spec": {"containers": [
            {"name": "c", "imagee": "x", "resources": {"limits": {"cpu": 1}}}]}});
        let findings = check(schema().get("io.k8s.api.core.v1.Pod"), &mut pod);
        assert_eq!(
            findings.strict,
            ["unknown field \"spec.containers[0].imagee\""]
        );
        assert_eq!(
            pod,
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}})
        );
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        let mut service = json!({"spec": {"ports": [{"port": "http"}]}});
        let findings = check(schema().get("io.k8s.api.core.v1.Service"), &mut service);
        assert_eq!(
            findings.mismatch.unwrap(),
            "json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"
        );
    }
}
