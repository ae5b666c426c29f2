//! Functions of lists and of sets.

use std::cmp::Ordering;

use super::basic::count;
use super::operators::add;
use super::{Function, member, no_overload, plain};
use crate::eval::{Result, failed};
use crate::value::Value;

pub const ALL: &[Function] = &[
    member("isSorted", &[0], |v| {
        let pairs = items(v, 0)?.windows(2);
        let sorted = pairs.map(|pair| {
            pair[0]
                .compare(&pair[1])
                .map_or_else(no_overload, |order| Ok(order.is_le()))
        });
        let sorted = sorted.collect::<Result<Vec<bool>>>()?;
        Ok(Value::Bool(sorted.into_iter().all(|sorted| sorted)))
    }),
    member("sum", &[0], |v| {
        let mut all = items(v, 0)?.iter().cloned();
        let Some(first) = all.next() else {
            return Ok(Value::Int(0));
        };
        all.try_fold(first, |sum, item| add(vec![sum, item]))
    }),
    member("min", &[0], |v| extreme(v, Ordering::Less)),
    member("max", &[0], |v| extreme(v, Ordering::Greater)),
    member("slice", &[2], |v| {
        let (all, from, to) = (items(v, 0)?, index(v, 1)?, index(v, 2)?);
        match all.get(from..to) {
            Some(part) => Ok(Value::list(part.to_vec())),
            None => failed(format!(
                "cannot slice({from}, {to}), list length is {}",
                all.len()
            )),
        }
    }),
    member("flatten", &[0], |v| {
        let all = items(v, 0)?.iter().flat_map(|item| match item {
            Value::List(inner) => inner.to_vec(),
            other => vec![other.clone()],
        });
        Ok(Value::list(all.collect()))
    }),
    member("distinct", &[0], |v| {
        let mut seen: Vec<Value> = Vec::new();
        for item in items(v, 0)? {
            if !has(&seen, item) {
                seen.push(item.clone());
            }
        }
        Ok(Value::list(seen))
    }),
    plain("sets.contains", &[2], |v| {
        let (all, part) = (items(v, 0)?, items(v, 1)?);
        Ok(Value::Bool(part.iter().all(|item| has(all, item))))
    }),
    plain("sets.equivalent", &[2], |v| {
        let (a, b) = (items(v, 0)?, items(v, 1)?);
        let same = a.iter().all(|item| has(b, item)) && b.iter().all(|item| has(a, item));
        Ok(Value::Bool(same))
    }),
    plain("sets.intersects", &[2], |v| {
        let (a, b) = (items(v, 0)?, items(v, 1)?);
        Ok(Value::Bool(a.iter().any(|item| has(b, item))))
    }),
];

fn items(values: &[Value], at: usize) -> Result<&[Value]> {
    match values.get(at) {
        Some(Value::List(items)) => Ok(items),
        _ => no_overload(),
    }
}

fn index(values: &[Value], at: usize) -> Result<usize> {
    match values.get(at) {
        Some(Value::Int(number)) => usize::try_from(*number)
            .map_or_else(|_| failed(format!("index out of bounds: {number}")), Ok),
        _ => no_overload(),
    }
}

fn has(items: &[Value], wanted: &Value) -> bool {
    items.iter().any(|item| item.equals(wanted))
}

fn extreme(values: &[Value], wins: Ordering) -> Result<Value> {
    let mut all = items(values, 0)?.iter();
    let Some(mut best) = all.next() else {
        return failed(format!(
            "{} called on empty list",
            if wins.is_lt() { "min" } else { "max" }
        ));
    };
    for item in all {
        match item.compare(best) {
            Some(order) if order == wins => best = item,
            Some(_) => {}
            None => return no_overload(),
        }
    }
    Ok(best.clone())
}

pub fn index_of(values: &[Value]) -> Result<Value> {
    let found = items(values, 0)?
        .iter()
        .position(|item| item.equals(&values[1]));
    Ok(found.map_or(Value::Int(-1), count))
}

pub fn last_index_of(values: &[Value]) -> Result<Value> {
    let found = items(values, 0)?
        .iter()
        .rposition(|item| item.equals(&values[1]));
    Ok(found.map_or(Value::Int(-1), count))
}
