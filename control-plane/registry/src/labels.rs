//! `meta/v1` `LabelSelector`: what it selects, how it is written as text, and what is wrong with it.

use serde_json::{Map, Value};

use crate::errors::FieldError;
use crate::json::Json;
use crate::validate;

/// Whether a `LabelSelector` selects an object with these labels. An empty selector selects everything.
#[must_use]
pub fn selects(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let pairs = selector.object("/matchLabels");
    let same = |(key, value): (&String, &Value)| label(key) == value.as_str();
    pairs.into_iter().flatten().all(same)
        && selector.items("/matchExpressions").iter().all(|e| {
            let value = label(e.text("/key"));
            let listed = || e.items("/values").iter().any(|v| v.as_str() == value);
            match e.text("/operator") {
                "In" => value.is_some() && listed(),
                "NotIn" => value.is_none() || !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// As label selectors are written in a query: `a=b,c in (d,e),!f`; a plain map of labels is a selector too.
#[must_use]
pub fn text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let of_type = selector.has("/matchLabels") || selector.has("/matchExpressions");
    let pairs = if of_type {
        selector.object("/matchLabels")
    } else {
        selector.as_object()
    };
    let mut parts: Vec<(String, String)> = pairs
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            (key.clone(), format!("{key}={value}"))
        })
        .collect();
    for e in selector.items("/matchExpressions") {
        let key = e.text("/key");
        let mut values: Vec<&str> = e
            .items("/values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match e.text("/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), part));
    }
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(_, part)| part).collect();
    parts.join(",")
}

/// Checks the `LabelSelector` at `path`.
pub fn validate(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    validate::labels(
        selector,
        "/matchLabels",
        &format!("{path}.matchLabels"),
        errors,
    );
    for (at, e) in selector.items("/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let (key, operator) = (e.text("/key"), e.text("/operator"));
        let values = e.items("/values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        if let Some(why) = validate::qualified_name(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), key, why));
        }
        for (at, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            if let Some(why) = validate::label_value(value) {
                errors.push(FieldError::invalid(
                    format!("{path}.values[{at}]"),
                    value,
                    why,
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions_select_and_are_written_as_in_a_query() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["b", "a"]},
            {"key": "old", "operator": "DoesNotExist"}]});
        assert_eq!(text(&selector), "app=web,!old,tier in (a,b)");
        let labels = |v: Value| v.as_object().cloned();
        let good = labels(json!({"app": "web", "tier": "a"}));
        assert!(selects(&selector, good.as_ref()));
        let old = labels(json!({"app": "web", "tier": "a", "old": ""}));
        assert!(!selects(&selector, old.as_ref()));
        assert!(!selects(&selector, None));
        assert!(selects(&json!({}), None));
        assert_eq!(text(&json!({"app": "web"})), "app=web");
        let mut errors = Vec::new();
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "?"}]});
        validate(&bad, "spec.selector", &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].operator: Invalid value: \"?\": not a valid selector operator",
            ]
        );
    }
}
