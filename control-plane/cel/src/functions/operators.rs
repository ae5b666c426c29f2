//! Arithmetic and comparisons.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Function, no_overload, plain};
use crate::eval::{Result, failed};
use crate::value::Value;

pub const ALL: &[Function] = &[
    plain("_+_", &[2], |v| add(v.to_vec())),
    plain("_-_", &[2], subtract),
    plain("_*_", &[2], multiply),
    plain("_/_", &[2], divide),
    plain("_%_", &[2], remainder),
    plain("_==_", &[2], |v| Ok(Value::Bool(v[0].equals(&v[1])))),
    plain("_!=_", &[2], |v| Ok(Value::Bool(!v[0].equals(&v[1])))),
    plain("_<_", &[2], |v| ordered(v, Ordering::is_lt)),
    plain("_<=_", &[2], |v| ordered(v, Ordering::is_le)),
    plain("_>_", &[2], |v| ordered(v, Ordering::is_gt)),
    plain("_>=_", &[2], |v| ordered(v, Ordering::is_ge)),
    plain("!_", &[1], |v| match v[0] {
        Value::Bool(flag) => Ok(Value::Bool(!flag)),
        _ => no_overload(),
    }),
    plain("-_", &[1], |v| match v[0] {
        Value::Int(number) => checked(number.checked_neg().map(Value::Int)),
        Value::Double(number) => Ok(Value::Double(-number)),
        Value::Duration(span) => checked(span.checked_neg().map(Value::Duration)),
        _ => no_overload(),
    }),
    plain("@in", &[2], |v| match &v[1] {
        Value::List(items) => Ok(Value::Bool(items.iter().any(|item| item.equals(&v[0])))),
        Value::Map(_) => Ok(Value::Bool(v[1].get(&v[0]).is_some())),
        _ => no_overload(),
    }),
];

fn checked(value: Option<Value>) -> Result<Value> {
    value.map_or_else(|| failed("integer overflow"), Ok)
}

fn ordered(values: &[Value], is: fn(Ordering) -> bool) -> Result<Value> {
    match values[0].compare(&values[1]) {
        Some(order) => Ok(Value::Bool(is(order))),
        // Numbers that are none compare to nothing.
        None if matches!(
            (&values[0], &values[1]),
            (Value::Double(_), _) | (_, Value::Double(_))
        ) =>
        {
            Ok(Value::Bool(false))
        }
        None => no_overload(),
    }
}

/// Takes its operands, so that a list that nobody else has grows in place.
pub fn add(mut values: Vec<Value>) -> Result<Value> {
    let (Some(b), Some(a)) = (values.pop(), values.pop()) else {
        return no_overload();
    };
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_add(b).map(Value::Int)),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_add(b).map(Value::Uint)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => Ok(Value::text(&format!("{a}{b}"))),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&*a, &*b].concat().into())),
        (Value::List(mut a), Value::List(b)) => {
            Arc::make_mut(&mut a).extend(b.iter().cloned());
            Ok(Value::List(a))
        }
        (Value::Duration(a), Value::Duration(b)) => checked(a.checked_add(b).map(Value::Duration)),
        (Value::Timestamp(a), Value::Duration(b)) | (Value::Duration(b), Value::Timestamp(a)) => {
            checked(a.checked_add(b).ok().map(Value::Timestamp))
        }
        _ => no_overload(),
    }
}

fn subtract(values: &[Value]) -> Result<Value> {
    match (&values[0], &values[1]) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_sub(*b).map(Value::Int)),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_sub(*b).map(Value::Uint)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => checked(a.checked_sub(*b).map(Value::Duration)),
        (Value::Timestamp(a), Value::Duration(b)) => {
            checked(a.checked_sub(*b).ok().map(Value::Timestamp))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(*b))),
        _ => no_overload(),
    }
}

fn multiply(values: &[Value]) -> Result<Value> {
    match (&values[0], &values[1]) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_mul(*b).map(Value::Int)),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_mul(*b).map(Value::Uint)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

fn divide(values: &[Value]) -> Result<Value> {
    match (&values[0], &values[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            failed("division by zero")
        }
        (Value::Int(a), Value::Int(b)) => checked(a.checked_div(*b).map(Value::Int)),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_div(*b).map(Value::Uint)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

fn remainder(values: &[Value]) -> Result<Value> {
    match (&values[0], &values[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            failed("modulus by zero")
        }
        (Value::Int(a), Value::Int(b)) => checked(a.checked_rem(*b).map(Value::Int)),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_rem(*b).map(Value::Uint)),
        _ => no_overload(),
    }
}
