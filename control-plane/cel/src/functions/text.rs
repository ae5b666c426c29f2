//! Functions of texts, and patterns in the syntax of RE2, which the crate `regex` reads too.

use regex::{Regex, RegexBuilder};

use super::basic::count;
use super::{Function, member, no_overload, plain};
use crate::eval::{Result, failed};
use crate::value::Value;

/// As much memory as a compiled pattern may take, in bytes.
const PATTERN: usize = 1 << 20;
/// Longer texts are not made, in bytes.
const LONGEST: usize = 4 << 20;

pub const ALL: &[Function] = &[
    member("contains", &[1], |v| {
        of_two(v, |a, b| Value::Bool(a.contains(b)))
    }),
    member("startsWith", &[1], |v| {
        of_two(v, |a, b| Value::Bool(a.starts_with(b)))
    }),
    member("endsWith", &[1], |v| {
        of_two(v, |a, b| Value::Bool(a.ends_with(b)))
    }),
    member("matches", &[1], matches),
    plain("matches", &[2], matches),
    member("find", &[1], |v| {
        let (text, pattern) = (one(v, 0)?, pattern(v)?);
        Ok(Value::text(
            pattern.find(text).map_or("", |found| found.as_str()),
        ))
    }),
    member("findAll", &[1, 2], |v| {
        let (text, pattern) = (one(v, 0)?, pattern(v)?);
        let most = match v.get(2) {
            Some(Value::Int(most)) => usize::try_from(*most).unwrap_or(usize::MAX),
            None => usize::MAX,
            Some(_) => return no_overload(),
        };
        let found = pattern.find_iter(text).take(most);
        Ok(Value::list(
            found.map(|found| Value::text(found.as_str())).collect(),
        ))
    }),
    member("lowerAscii", &[0], |v| {
        Ok(Value::text(&one(v, 0)?.to_ascii_lowercase()))
    }),
    member("upperAscii", &[0], |v| {
        Ok(Value::text(&one(v, 0)?.to_ascii_uppercase()))
    }),
    member("trim", &[0], |v| Ok(Value::text(one(v, 0)?.trim()))),
    member("charAt", &[1], |v| {
        let (text, at) = (one(v, 0)?, number(v, 1)?);
        match (text.chars().nth(at), text.chars().count() == at) {
            (Some(found), _) => Ok(Value::text(&found.to_string())),
            (None, true) => Ok(Value::text("")),
            (None, false) => failed(format!("index out of range: {at}")),
        }
    }),
    member("indexOf", &[1, 2], index_of),
    member("lastIndexOf", &[1], last_index_of),
    member("replace", &[2, 3], replace),
    member("split", &[1, 2], split),
    member("substring", &[1, 2], substring),
    member("join", &[0, 1], join),
    member("reverse", &[0], |v| {
        Ok(Value::text(&one(v, 0)?.chars().rev().collect::<String>()))
    }),
];

fn one(values: &[Value], at: usize) -> Result<&str> {
    match values.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => no_overload(),
    }
}

fn number(values: &[Value], at: usize) -> Result<usize> {
    match values.get(at) {
        Some(Value::Int(number)) => usize::try_from(*number)
            .map_or_else(|_| failed(format!("index out of range: {number}")), Ok),
        _ => no_overload(),
    }
}

fn of_two(values: &[Value], f: fn(&str, &str) -> Value) -> Result<Value> {
    Ok(f(one(values, 0)?, one(values, 1)?))
}

fn pattern(values: &[Value]) -> Result<Regex> {
    let pattern = RegexBuilder::new(one(values, 1)?)
        .size_limit(PATTERN)
        .build();
    pattern.or_else(|error| failed(format!("error parsing regexp: {error}")))
}

fn matches(values: &[Value]) -> Result<Value> {
    let text = one(values, 0)?;
    Ok(Value::Bool(pattern(values)?.is_match(text)))
}

/// Characters before a byte.
fn characters(text: &str, byte: usize) -> Value {
    count(text[..byte].chars().count())
}

fn index_of(values: &[Value]) -> Result<Value> {
    if matches!(values[0], Value::List(_)) {
        return super::lists::index_of(values);
    }
    let (text, sought) = (one(values, 0)?, one(values, 1)?);
    let from = if values.len() > 2 {
        number(values, 2)?
    } else {
        0
    };
    let start = text
        .char_indices()
        .nth(from)
        .map_or(text.len(), |(at, _)| at);
    Ok(match text[start..].find(sought) {
        Some(at) => characters(text, start + at),
        None => Value::Int(-1),
    })
}

fn last_index_of(values: &[Value]) -> Result<Value> {
    if matches!(values[0], Value::List(_)) {
        return super::lists::last_index_of(values);
    }
    let (text, sought) = (one(values, 0)?, one(values, 1)?);
    Ok(text
        .rfind(sought)
        .map_or(Value::Int(-1), |at| characters(text, at)))
}

fn replace(values: &[Value]) -> Result<Value> {
    let (text, from, to) = (one(values, 0)?, one(values, 1)?, one(values, 2)?);
    let most = match values.get(3) {
        Some(Value::Int(most)) => usize::try_from(*most).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let places = if from.is_empty() {
        text.len() + 1
    } else {
        text.matches(from).count()
    };
    if text.len() + places.min(most).saturating_mul(to.len()) > LONGEST {
        return failed("the text would be too long");
    }
    Ok(Value::text(&text.replacen(from, to, most)))
}

fn split(values: &[Value]) -> Result<Value> {
    let (text, by) = (one(values, 0)?, one(values, 1)?);
    let most = match values.get(2) {
        Some(Value::Int(most)) => usize::try_from(*most).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    // Between nothing and nothing there are the characters alone.
    let parts: Vec<Value> = match by {
        "" => text.chars().map(|c| Value::text(&c.to_string())).collect(),
        by => text.splitn(most, by).map(Value::text).collect(),
    };
    Ok(Value::list(if most == 0 { Vec::new() } else { parts }))
}

fn substring(values: &[Value]) -> Result<Value> {
    let (text, start) = (one(values, 0)?, number(values, 1)?);
    let length = text.chars().count();
    let end = if values.len() > 2 {
        number(values, 2)?
    } else {
        length
    };
    if start > end || end > length {
        return failed(format!(
            "invalid substring range. start: {start}, end: {end}"
        ));
    }
    Ok(Value::text(
        &text
            .chars()
            .skip(start)
            .take(end - start)
            .collect::<String>(),
    ))
}

fn join(values: &[Value]) -> Result<Value> {
    let Value::List(items) = &values[0] else {
        return no_overload();
    };
    let between = if values.len() > 1 {
        one(values, 1)?
    } else {
        ""
    };
    let parts = items.iter().map(|item| match item {
        Value::String(text) => Ok(&**text),
        _ => no_overload(),
    });
    let parts = parts.collect::<Result<Vec<&str>>>()?;
    if parts.len().saturating_mul(between.len()) > LONGEST {
        return failed("the text would be too long");
    }
    Ok(Value::text(&parts.join(between)))
}
