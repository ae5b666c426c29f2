//! The rules of a structural schema, held against an object, in the words of Kubernetes' validation.

use regex::Regex;
use serde_json::Value;

use crate::errors::FieldError;
use crate::json::Json;

/// Checks `value`, which stands at `path`.
pub fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.flag("/nullable") {
        return;
    }
    if !of_type(schema, value) {
        let want = schema.text("/type");
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path} in body must be of type {want}: {value}"),
        ));
        return;
    }
    let allowed = schema.items("/enum");
    if !allowed.is_empty() && !allowed.contains(value) {
        let words: Vec<String> = allowed.iter().map(plain).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        errors.push(FieldError::not_listed(path, value.clone(), &words));
    }
    match value {
        Value::Object(map) => {
            for name in schema.items("/required").iter().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    errors.push(FieldError::required(join(path, name), ""));
                }
            }
            count(
                schema,
                map.len(),
                "Properties",
                "properties",
                path,
                value,
                errors,
            );
            let extra = &schema["additionalProperties"];
            for (name, value) in map {
                match schema.object("/properties").and_then(|p| p.get(name)) {
                    Some(schema) => check(schema, value, &join(path, name), errors),
                    None if extra.is_object() => check(extra, value, &join(path, name), errors),
                    None => {}
                }
            }
        }
        Value::Array(items) => check_list(schema, items, path, value, errors),
        Value::String(text) => check_text(schema, text, path, errors),
        Value::Number(number) => {
            check_number(schema, number.as_f64().unwrap_or(0.0), path, value, errors)
        }
        _ => {}
    }
    check_combined(schema, value, path, errors);
}

pub(super) fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn of_type(schema: &Value, value: &Value) -> bool {
    if schema.flag("/x-kubernetes-int-or-string") {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema.text("/type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => true,
    }
}

/// `minX` and `maxX` of a number of things.
fn count(
    schema: &Value,
    is: usize,
    keyword: &str,
    things: &str,
    path: &str,
    value: &Value,
    errors: &mut Vec<FieldError>,
) {
    let limit = |word: &str| {
        let limit = schema.integer(&format!("/{word}{keyword}"));
        limit.and_then(|n| usize::try_from(n).ok())
    };
    if let Some(min) = limit("min").filter(|min| is < *min) {
        let why = format!("{path} in body should have at least {min} {things}");
        errors.push(FieldError::invalid(path, value.clone(), why));
    }
    if let Some(max) = limit("max").filter(|max| is > *max) {
        errors.push(FieldError::too_many(path, is, max));
    }
}

fn check_list(
    schema: &Value,
    items: &[Value],
    path: &str,
    value: &Value,
    errors: &mut Vec<FieldError>,
) {
    count(schema, items.len(), "Items", "items", path, value, errors);
    let keys = schema.items("/x-kubernetes-list-map-keys");
    let unique = match schema.text("/x-kubernetes-list-type") {
        "set" | "map" => true,
        _ => schema.flag("/uniqueItems"),
    };
    let identity = |item: &Value| -> Vec<Value> {
        if keys.is_empty() {
            return vec![item.clone()];
        }
        let keys = keys.iter().filter_map(Value::as_str);
        keys.map(|key| item.get(key).cloned().unwrap_or_default())
            .collect()
    };
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let same = |other: &Value| identity(other) == identity(item);
        if unique && items[..at].iter().any(same) {
            errors.push(FieldError::duplicate(path.clone(), item.clone()));
        }
        check(&schema["items"], item, &path, errors);
    }
}

fn check_text(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count();
    let limit = |name: &str| schema.integer(name).and_then(|n| usize::try_from(n).ok());
    if let Some(min) = limit("/minLength").filter(|min| length < *min) {
        let why = format!("{path} in body should be at least {min} chars long");
        errors.push(FieldError::invalid(path, text, why));
    }
    if let Some(max) = limit("/maxLength").filter(|max| length > *max) {
        errors.push(FieldError::too_long(path, max));
    }
    let pattern = schema.text("/pattern");
    if !pattern.is_empty() && !Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)) {
        let why = format!("{path} in body should match '{pattern}'");
        errors.push(FieldError::invalid(path, text, why));
    }
    let ok = match schema.text("/format") {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        _ => true,
    };
    if !ok {
        let format = schema.text("/format");
        let why = format!("{path} in body must be of type {format}: {text:?}");
        errors.push(FieldError::invalid(path, text, why));
    }
}

fn check_number(schema: &Value, is: f64, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let at = |name: &str| schema.get(name).and_then(Value::as_f64);
    let mut refuse = |why: String| {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path} in body should be {why}"),
        ));
    };
    if let Some(min) = at("minimum") {
        match schema.flag("/exclusiveMinimum") {
            true if is <= min => refuse(format!("greater than {min}")),
            false if is < min => refuse(format!("greater than or equal to {min}")),
            _ => {}
        }
    }
    if let Some(max) = at("maximum") {
        match schema.flag("/exclusiveMaximum") {
            true if is >= max => refuse(format!("less than {max}")),
            false if is > max => refuse(format!("less than or equal to {max}")),
            _ => {}
        }
    }
    if let Some(of) = at("multipleOf").filter(|of| *of != 0.0 && (is / of).fract() != 0.0) {
        refuse(format!("a multiple of {of}"));
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn check_combined(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let holds = |schema: &Value| {
        let mut own = Vec::new();
        check(schema, value, path, &mut own);
        own.is_empty()
    };
    for part in schema.items("/allOf") {
        check(part, value, path, errors);
    }
    let mut refuse = |how: &str| {
        let why = format!("{path:?} must {how}");
        errors.push(FieldError::invalid(path, value.clone(), why));
    };
    let any = schema.items("/anyOf");
    if !any.is_empty() && !any.iter().any(holds) {
        refuse("validate at least one schema (anyOf)");
    }
    let one = schema.items("/oneOf");
    if !one.is_empty() && one.iter().filter(|s| holds(s)).count() != 1 {
        refuse("validate one and only one schema (oneOf)");
    }
    if schema.get("not").is_some_and(holds) {
        refuse("not validate the schema (not)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_rule_has_its_words() {
        let cases = [
            (
                json!({"type": "integer"}),
                json!("x"),
                "spec: Invalid value: \"x\": spec in body must be of type integer: \"x\"",
            ),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "number", "maximum": 1, "exclusiveMaximum": true}),
                json!(1),
                "spec: Invalid value: 1: spec in body should be less than 1",
            ),
            (
                json!({"type": "integer", "multipleOf": 5}),
                json!(7),
                "spec: Invalid value: 7: spec in body should be a multiple of 5",
            ),
            (
                json!({"type": "string", "minLength": 3}),
                json!("ab"),
                "spec: Invalid value: \"ab\": spec in body should be at least 3 chars long",
            ),
            (
                json!({"type": "string", "maxLength": 1}),
                json!("ab"),
                "spec: Too long: may not be more than 1 bytes",
            ),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should match '^a+$'",
            ),
            (
                json!({"type": "array", "maxItems": 1, "items": {}}),
                json!([1, 2]),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {}}),
                json!([1, 1]),
                "spec[1]: Duplicate value: 1",
            ),
            (
                json!({"type": "object", "required": ["a"]}),
                json!({}),
                "spec.a: Required value",
            ),
            (
                json!({"type": "string", "format": "date-time"}),
                json!("x"),
                "spec: Invalid value: \"x\": spec in body must be of type date-time: \"x\"",
            ),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "boolean"}]}),
                json!(1),
                "spec: Invalid value: 1: \"spec\" must validate at least one schema (anyOf)",
            ),
            (
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1, "b": 1}),
                "spec: Invalid value: {\"a\":1,\"b\":1}: \"spec\" must validate one and only one schema (oneOf)",
            ),
            (
                json!({"not": {"required": ["a"]}}),
                json!({"a": 1}),
                "spec: Invalid value: {\"a\":1}: \"spec\" must not validate the schema (not)",
            ),
        ];
        for (schema, value, want) in cases {
            let mut errors = Vec::new();
            check(&schema, &value, "spec", &mut errors);
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, [want], "{schema}");
        }
        let mut errors = Vec::new();
        let either = json!({"x-kubernetes-int-or-string": true});
        check(&either, &json!("50%"), "spec", &mut errors);
        check(&either, &json!(5), "spec", &mut errors);
        check(
            &json!({"type": "string", "nullable": true}),
            &Value::Null,
            "spec",
            &mut errors,
        );
        assert_eq!(errors, []);
    }
}
