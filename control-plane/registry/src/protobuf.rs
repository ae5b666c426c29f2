//! Objects in protobuf, as every generated client of Kubernetes sends them: an envelope, and in it the object, read by
//! the numbers of the schema.
//!
//! The envelope: <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>. The wire format:
//! <https://protobuf.dev/programming-guides/encoding/>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number as JsonNumber, Value, json};

use crate::decode::Body;
use crate::errors::{ApiError, Result};
use crate::schema::{Field, Number, Numbers, Shape, Type, schema};

use wire::{Reader, Wire};

mod wire;

/// What an encoded object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Objects are not nested deeper than this.
const DEPTH_MAX: usize = 64;

/// Protobuf of version 2 writes the zero of every field that Go has no pointer for, so a zero mostly says nothing. In
/// these fields, which are pointers in Go, it says something.
const ZERO_COUNTS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "attachRequired",
    "automountServiceAccountToken",
    "backoffLimit",
    "backoffLimitPerIndex",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "enableServiceLinks",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "lendablePercent",
    "maxFailedIndexes",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minReplicas",
    "minimum",
    "mode",
    "nominalConcurrencyShares",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "podInfoOnMount",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "requiresRepublish",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxMount",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stabilizationWindowSeconds",
    "started",
    "startingDeadlineSeconds",
    "storageCapacity",
    "storageClassName",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

type Decoded<T> = std::result::Result<T, String>;

/// Reads an envelope and the object in it.
///
/// # Errors
/// 400 when the bytes are none, or the object is of a type that this server does not know.
pub fn decode(bytes: &[u8]) -> Result<Body> {
    read(bytes)
        .map_err(|why| ApiError::bad_request(format!("the object provided is unrecognized: {why}")))
}

fn read(bytes: &[u8]) -> Decoded<Body> {
    let unknown = bytes
        .strip_prefix(MAGIC)
        .ok_or("it does not begin with \"k8s\" and a zero, as protobuf objects of Kubernetes do")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    // runtime.Unknown: typeMeta = 1 {apiVersion = 1, kind = 2}, raw = 2.
    for field in Reader::new(unknown) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Reader::new(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let of = schema().of_kind(&api_version, &kind).ok_or_else(|| {
        format!("no type {kind:?} in version {api_version:?} is registered for protobuf; send it as JSON")
    })?;
    let mut reading = Reading { found: Vec::new() };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    reading.message(of, &of.numbers, raw, &mut object, 0)?;
    Ok(Body {
        value: Value::Object(object),
        found: reading.found,
    })
}

struct Reading {
    /// Numbers that no field has.
    found: Vec<String>,
}

impl Reading {
    /// Reads the fields of a message into `out`.
    fn message(
        &mut self,
        of: &Type,
        numbers: &Numbers,
        bytes: &[u8],
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Decoded<()> {
        if depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} objects"));
        }
        for field in Reader::new(bytes) {
            let (number, wire) = field?;
            match numbers.get(&number) {
                Some(Number::Inline(inner)) => {
                    self.message(of, inner, wire.bytes(&of.name)?, out, depth + 1)?;
                }
                Some(Number::Property(name)) => {
                    let Some(field) = of.fields.get(name) else {
                        continue;
                    };
                    self.property(of, name, field, wire, out, depth)
                        .map_err(|why| format!("{}.{name}: {why}", of.name))?;
                }
                None => self
                    .found
                    .push(format!("unknown field number {number} of {}", of.name)),
            }
        }
        Ok(())
    }

    fn property(
        &mut self,
        of: &Type,
        name: &str,
        field: &Field,
        wire: Wire<'_>,
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Decoded<()> {
        match &field.shape {
            Shape::Array(inner) => {
                let list = out.entry(name).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    self.item(inner, wire, list, depth)?;
                }
            }
            Shape::Map(inner) => {
                let (key, value) = self.entry(inner, wire.bytes(name)?, depth)?;
                let map = out.entry(name).or_insert_with(|| json!({}));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            _ => {
                let value = self.value(field, wire, depth)?;
                let said = match &value {
                    Value::Null => false,
                    Value::String(text) if text.is_empty() => ZERO_COUNTS.contains(&name),
                    Value::Bool(false) => counts(of, name),
                    Value::Number(n) if n.as_f64() == Some(0.0) => counts(of, name),
                    _ => true,
                };
                if said {
                    out.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// One occurrence of a repeated field: one item, or packed numbers.
    fn item(
        &mut self,
        inner: &Field,
        wire: Wire<'_>,
        list: &mut Vec<Value>,
        depth: usize,
    ) -> Decoded<()> {
        match (&inner.shape, wire) {
            (Shape::Boolean | Shape::Integer(_), Wire::Bytes(packed)) => {
                let mut rest = packed;
                while !rest.is_empty() {
                    let number = wire::varint(&mut rest)?;
                    list.push(self.value(inner, Wire::Varint(number), depth)?);
                }
            }
            (_, wire) => list.push(self.value(inner, wire, depth)?),
        }
        Ok(())
    }

    /// An entry of a map: key = 1, value = 2.
    fn entry(&mut self, inner: &Field, bytes: &[u8], depth: usize) -> Decoded<(String, Value)> {
        let mut key = String::new();
        let mut value = None;
        for field in Reader::new(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => key = string(text)?,
                (2, wire) => value = Some(self.value(inner, wire, depth)?),
                _ => {}
            }
        }
        let absent = || match inner.shape {
            Shape::Object(_) => json!({}),
            Shape::Array(_) => json!([]),
            Shape::Quantity => json!("0"),
            _ => json!(""),
        };
        Ok((key, value.unwrap_or_else(absent)))
    }

    fn value(&mut self, field: &Field, wire: Wire<'_>, depth: usize) -> Decoded<Value> {
        match &field.shape {
            Shape::Boolean => Ok((wire.varint()? != 0).into()),
            // Negative numbers are written as the 64 bits that they are.
            Shape::Integer(_) => Ok(wire.varint()?.cast_signed().into()),
            Shape::Number => {
                let number = f64::from_bits(wire.fixed64()?);
                let number = JsonNumber::from_f64(number).ok_or("it is no finite number")?;
                Ok(Value::Number(number))
            }
            Shape::String => string(wire.bytes("a string")?).map(Value::String),
            Shape::Bytes => Ok(STANDARD.encode(wire.bytes("bytes")?).into()),
            Shape::Time | Shape::MicroTime => time(wire.bytes("a time")?, &field.shape),
            Shape::IntOrString => int_or_string(wire.bytes("an IntOrString")?),
            Shape::Quantity => {
                let text = only_field(wire.bytes("a quantity")?)?;
                Ok(if text.is_empty() {
                    json!("0")
                } else {
                    string(text)?.into()
                })
            }
            Shape::Any => {
                let raw = only_field(wire.bytes("JSON")?)?;
                if raw.is_empty() {
                    return Ok(Value::Null);
                }
                serde_json::from_slice(raw).map_err(|e| format!("it holds no JSON: {e}"))
            }
            Shape::SchemaOr(other) => self.schema_or(other, wire.bytes(other)?, depth),
            Shape::Object(name) => {
                let of = schema().get(name).ok_or("its type is not known")?;
                let mut out = Map::new();
                self.message(of, &of.numbers, wire.bytes(name)?, &mut out, depth + 1)?;
                Ok(Value::Object(out))
            }
            // A list in a map or a list is a message with items = 1.
            Shape::Array(inner) => {
                let mut list = Vec::new();
                for field in Reader::new(wire.bytes("a list")?) {
                    if let (1, wire) = field? {
                        self.item(inner, wire, &mut list, depth + 1)?;
                    }
                }
                Ok(list.into())
            }
            Shape::Map(_) | Shape::Inline(_) | Shape::Free => {
                Err("this cannot stand here in protobuf".into())
            }
        }
    }

    /// `JSONSchemaPropsOrArray {schema = 1, jSONSchemas = 2}`, `JSONSchemaPropsOrBool {allows = 1, schema = 2}`,
    /// `JSONSchemaPropsOrStringArray {schema = 1, property = 2}`.
    fn schema_or(&mut self, other: &str, bytes: &[u8], depth: usize) -> Decoded<Value> {
        let (mut one, mut many) = (Value::Null, Vec::new());
        for field in Reader::new(bytes) {
            match field? {
                (1, Wire::Varint(allows)) if one.is_null() => one = (allows != 0).into(),
                (2, Wire::Bytes(text)) if other == "StringArray" => many.push(string(text)?.into()),
                (number, Wire::Bytes(message)) => {
                    let name =
                        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
                    let of = schema().get(name).ok_or("its type is not known")?;
                    let mut out = Map::new();
                    self.message(of, &of.numbers, message, &mut out, depth + 1)?;
                    match (number, other) {
                        (2, "Array") => many.push(Value::Object(out)),
                        _ => one = Value::Object(out),
                    }
                }
                _ => {}
            }
        }
        Ok(if many.is_empty() { one } else { many.into() })
    }
}

fn counts(of: &Type, name: &str) -> bool {
    ZERO_COUNTS.contains(&name) || of.required.iter().any(|r| r == name)
}

fn string(bytes: &[u8]) -> Decoded<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text is not UTF-8".into())
}

/// The bytes in field 1 of a message that has nothing else to say.
fn only_field(message: &[u8]) -> Decoded<&[u8]> {
    let mut found = &[][..];
    for field in Reader::new(message) {
        if let (1, Wire::Bytes(bytes)) = field? {
            found = bytes;
        }
    }
    Ok(found)
}

/// seconds = 1, nanos = 2; the empty message is no time.
fn time(message: &[u8], shape: &Shape) -> Decoded<Value> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i64);
    for field in Reader::new(message) {
        match field? {
            (1, Wire::Varint(n)) => seconds = n.cast_signed(),
            (2, Wire::Varint(n)) => nanos = n.cast_signed(),
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| "it has too many nanoseconds")?;
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    let form = match shape {
        Shape::MicroTime => "%Y-%m-%dT%H:%M:%S%.6fZ",
        _ => "%Y-%m-%dT%H:%M:%SZ",
    };
    Ok(at.strftime(form).to_string().into())
}

/// type = 1 (0: a number), intVal = 2, strVal = 3.
fn int_or_string(message: &[u8]) -> Decoded<Value> {
    let (mut kind, mut number, mut text) = (0, 0, String::new());
    for field in Reader::new(message) {
        match field? {
            (1, Wire::Varint(n)) => kind = n,
            (2, Wire::Varint(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if kind == 0 {
        number.into()
    } else {
        text.into()
    })
}

#[cfg(test)]
mod tests;
