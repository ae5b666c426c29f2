//! Sizes, conversions and optional values.

use std::sync::Arc;

use super::{Function, member, no_overload, plain};
use crate::convert::duration;
use crate::eval::{Result, failed};
use crate::value::Value;

pub const ALL: &[Function] = &[
    plain("size", &[1], size),
    member("size", &[0], size),
    plain("dyn", &[1], |v| Ok(v[0].clone())),
    plain("type", &[1], |v| Ok(Value::Type(v[0].type_name()))),
    plain("string", &[1], |v| match text(&v[0]) {
        Some(text) => Ok(Value::text(&text)),
        None => no_overload(),
    }),
    plain("int", &[1], int),
    plain("uint", &[1], uint),
    plain("double", &[1], double),
    plain("bool", &[1], |v| match &v[0] {
        Value::Bool(flag) => Ok(Value::Bool(*flag)),
        Value::String(text) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            _ => failed("type conversion error from 'string' to 'bool'"),
        },
        _ => no_overload(),
    }),
    plain("bytes", &[1], |v| match &v[0] {
        Value::Bytes(_) => Ok(v[0].clone()),
        Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
        _ => no_overload(),
    }),
    plain("duration", &[1], |v| match &v[0] {
        Value::Duration(_) => Ok(v[0].clone()),
        Value::String(text) => match duration(text) {
            Some(span) => Ok(Value::Duration(span)),
            None => failed("type conversion error from 'string' to 'google.protobuf.Duration'"),
        },
        _ => no_overload(),
    }),
    plain("timestamp", &[1], |v| match &v[0] {
        Value::Timestamp(_) => Ok(v[0].clone()),
        Value::String(text) => match text.parse() {
            Ok(time) => Ok(Value::Timestamp(time)),
            Err(_) => failed("type conversion error from 'string' to 'google.protobuf.Timestamp'"),
        },
        _ => no_overload(),
    }),
    plain("optional.of", &[1], |v| Ok(some(v[0].clone()))),
    plain("optional.none", &[0], |_| Ok(Value::Optional(None))),
    plain("optional.ofNonZeroValue", &[1], |v| {
        Ok(match is_zero(&v[0]) {
            true => Value::Optional(None),
            false => some(v[0].clone()),
        })
    }),
    member("hasValue", &[0], |v| match &v[0] {
        Value::Optional(inner) => Ok(Value::Bool(inner.is_some())),
        _ => no_overload(),
    }),
    member("value", &[0], |v| match &v[0] {
        Value::Optional(Some(inner)) => Ok(inner.as_ref().clone()),
        Value::Optional(None) => failed("optional.none() dereference"),
        _ => no_overload(),
    }),
    member("orValue", &[1], |v| match &v[0] {
        Value::Optional(Some(inner)) => Ok(inner.as_ref().clone()),
        Value::Optional(None) => Ok(v[1].clone()),
        _ => no_overload(),
    }),
    member("or", &[1], |v| match &v[0] {
        Value::Optional(Some(_)) => Ok(v[0].clone()),
        Value::Optional(None) => Ok(v[1].clone()),
        _ => no_overload(),
    }),
];

fn some(value: Value) -> Value {
    Value::Optional(Some(Arc::new(value)))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(pairs) => pairs.is_empty(),
        _ => false,
    }
}

/// The number of things as CEL counts.
pub fn count(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn size(values: &[Value]) -> Result<Value> {
    match &values[0] {
        Value::String(text) => Ok(count(text.chars().count())),
        Value::Bytes(bytes) => Ok(count(bytes.len())),
        Value::List(items) => Ok(count(items.len())),
        Value::Map(pairs) => Ok(count(pairs.len())),
        _ => no_overload(),
    }
}

/// The text of a value that has one.
pub fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) | Value::Url(text) => text.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(span) => format!("{}s", span.as_secs_f64()),
        Value::Ip(address) => address.to_string(),
        Value::Cidr(range) => format!("{}/{}", range.ip(), range.prefix()),
        Value::Quantity(quantity) => quantity.to_string(),
        _ => return None,
    })
}

fn no_number<T>(from: &Value, to: &str) -> Result<T> {
    failed(format!(
        "type conversion error from '{}' to '{to}'",
        from.type_name()
    ))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the range is looked at before"
)]
fn int(values: &[Value]) -> Result<Value> {
    let found = match &values[0] {
        Value::Int(number) => Some(*number),
        Value::Uint(number) => i64::try_from(*number).ok(),
        Value::Double(number) if number.abs() < 9.2e18 => Some(number.trunc() as i64),
        Value::String(text) => text.parse().ok(),
        Value::Timestamp(time) => Some(time.as_second()),
        Value::Double(_) => None,
        _ => return no_overload(),
    };
    found.map_or_else(
        || no_number(&values[0], "int"),
        |number| Ok(Value::Int(number)),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is looked at before"
)]
fn uint(values: &[Value]) -> Result<Value> {
    let found = match &values[0] {
        Value::Uint(number) => Some(*number),
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::Double(number) if (0.0..1.8e19).contains(number) => Some(number.trunc() as u64),
        Value::String(text) => text.parse().ok(),
        Value::Double(_) => None,
        _ => return no_overload(),
    };
    found.map_or_else(
        || no_number(&values[0], "uint"),
        |number| Ok(Value::Uint(number)),
    )
}

#[expect(clippy::cast_precision_loss, reason = "CEL converts so")]
fn double(values: &[Value]) -> Result<Value> {
    let found = match &values[0] {
        Value::Double(number) => Some(*number),
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::String(text) => text.parse().ok(),
        _ => return no_overload(),
    };
    found.map_or_else(
        || no_number(&values[0], "double"),
        |number| Ok(Value::Double(number)),
    )
}
