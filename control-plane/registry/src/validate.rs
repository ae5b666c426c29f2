//! The rules that many kinds share: names, labels, quantities, addresses, in Kubernetes' words.
//!
//! Each function answers why its argument is not acceptable, or `None`. Texts and limits follow
//! `k8s.io/apimachinery/pkg/util/validation`.

use std::net::IpAddr;

use serde_json::Value;

use crate::errors::FieldError;
use crate::json::Json;
use crate::schema::{Shape, Type};

/// Lower case letters, digits, `-` and `.`; at most 253 characters (RFC 1123).
#[must_use]
pub fn subdomain(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    (!name.split('.').all(is_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".into()
    })
}

/// Lower case letters, digits and `-`; at most 63 characters (RFC 1123).
#[must_use]
pub fn label(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!is_label(name)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".into()
    })
}

/// As [`label`], and beginning with a letter (RFC 1035): the names of custom kinds.
#[must_use]
pub fn label_1035(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
    (!letter || !is_label(name)).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".into()
    })
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(inner) && name.ends_with(inner) && name.chars().all(|c| inner(c) || c == '-')
}

/// A name that may stand as one step of a path: Endpoints.
#[must_use]
pub fn path_segment(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some(format!("may not be '{name}'"));
    }
    let bad = ['/', '%'].into_iter().find(|c| name.contains(*c))?;
    Some(format!("may not contain '{bad}'"))
}

/// The key of a label: an optional prefix and a slash, then a name.
#[must_use]
pub fn qualified_name(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.contains('/') {
        return Some("a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".into());
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".into());
        }
        if let Some(why) = subdomain(prefix) {
            return Some(format!("prefix part {why}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters".into());
    }
    (!is_word(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".into()
    })
}

/// The value of a label.
#[must_use]
pub fn label_value(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!value.is_empty() && !is_word(value)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".into()
    })
}

fn is_word(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(inner)
        && text.ends_with(inner)
        && text.chars().all(|c| inner(c) || "-_.".contains(c))
}

/// The name of a port (RFC 6335): at most 15 characters, at least one letter, no two dashes together.
#[must_use]
pub fn port_name(name: &str) -> Option<String> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters".into());
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        || name.is_empty()
    {
        return Some(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into(),
        );
    }
    if !name.contains(|c: char| c.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens".into());
    }
    (name.starts_with('-') || name.ends_with('-'))
        .then(|| "must not begin or end with a hyphen".into())
}

/// The key of an entry of a ConfigMap or Secret.
#[must_use]
pub fn config_key(key: &str) -> Option<String> {
    let ok = !key.is_empty()
        && key.len() <= 253
        && key != "."
        && !key.starts_with("..")
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    (!ok).then(|| {
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into()
    })
}

/// A port number.
#[must_use]
pub fn port(number: i64) -> Option<String> {
    (!(1..=65535).contains(&number)).then(|| "must be between 1 and 65535, inclusive".into())
}

/// An IP address; the message of Kubernetes when it is none.
pub fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into())
}

/// A quantity (`100m`, `1Gi`, `2e3`) as a number; `None` when it is none.
/// See <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
#[must_use]
pub fn quantity(text: &str) -> Option<f64> {
    let end = text
        .char_indices()
        .find(|&(at, c)| !(c.is_ascii_digit() || c == '.' || (at == 0 && "+-".contains(c))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let power = |base: f64, n: i32| Some(number * base.powi(n));
    match suffix {
        "" => Some(number),
        "n" => power(10.0, -9),
        "u" => power(10.0, -6),
        "m" => power(10.0, -3),
        "k" => power(10.0, 3),
        "M" => power(10.0, 6),
        "G" => power(10.0, 9),
        "T" => power(10.0, 12),
        "P" => power(10.0, 15),
        "E" => power(10.0, 18),
        "Ki" => power(1024.0, 1),
        "Mi" => power(1024.0, 2),
        "Gi" => power(1024.0, 3),
        "Ti" => power(1024.0, 4),
        "Pi" => power(1024.0, 5),
        "Ei" => power(1024.0, 6),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            power(10.0, digits.parse().ok()?)
        }
    }
}

/// The rules for `metadata` of every object.
pub fn metadata(
    value: &Value,
    namespaced: bool,
    name_rule: fn(&str) -> Option<String>,
    errors: &mut Vec<FieldError>,
) {
    let generated = value.text("/metadata/generateName");
    let name = value.text("/metadata/name");
    // A generated name ends in random characters, so its prefix may end with a dash.
    if let Some(why) = (!generated.is_empty())
        .then(|| name_rule(&format!("{generated}x")))
        .flatten()
    {
        errors.push(FieldError::invalid("metadata.generateName", generated, why));
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if let Some(why) = name_rule(name) {
        errors.push(FieldError::invalid("metadata.name", name, why));
    }
    let namespace = value.text("/metadata/namespace");
    if namespaced && let Some(why) = label(namespace) {
        errors.push(FieldError::invalid("metadata.namespace", namespace, why));
    }
    labels(value, "/metadata/labels", "metadata.labels", errors);
    annotations(value, errors);
    for (at, finalizer) in value.items("/metadata/finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        if let Some(why) = qualified_name(finalizer) {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{at}]"),
                finalizer,
                why,
            ));
        }
    }
    owners(value, errors);
}

/// A map of labels at `pointer`, called `path` in messages.
pub fn labels(value: &Value, pointer: &str, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in value.object(pointer).into_iter().flatten() {
        if let Some(why) = qualified_name(key) {
            errors.push(FieldError::invalid(path, key.as_str(), why));
        }
        let value = value.as_str().unwrap_or_default();
        if let Some(why) = label_value(value) {
            errors.push(FieldError::invalid(path, value, why));
        }
    }
}

fn annotations(value: &Value, errors: &mut Vec<FieldError>) {
    /// Of all keys and values together.
    const MAX: usize = 256 * 1024;
    let mut size = 0;
    for (key, value) in value.object("/metadata/annotations").into_iter().flatten() {
        if let Some(why) = qualified_name(&key.to_ascii_lowercase()) {
            errors.push(FieldError::invalid(
                "metadata.annotations",
                key.as_str(),
                why,
            ));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX {
        errors.push(FieldError::too_long("metadata.annotations", MAX));
    }
}

fn owners(value: &Value, errors: &mut Vec<FieldError>) {
    for (at, owner) in value.items("/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner.text(&format!("/{field}")).is_empty() {
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{at}].{field}"),
                    "",
                    format!("{field} must not be empty"),
                ));
            }
        }
    }
}

/// That a string field, when given, is one of `known`.
pub fn one_of(
    value: &Value,
    pointer: &str,
    path: impl Into<String>,
    known: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let text = value.text(pointer);
    if !text.is_empty() && !known.contains(&text) {
        errors.push(FieldError::not_supported(path, text, known));
    }
}

/// The `protocol` of a port at `path`, when given.
pub fn transport_protocol(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let known = ["SCTP", "TCP", "UDP"];
    one_of(
        port,
        "/protocol",
        format!("{path}.protocol"),
        &known,
        errors,
    );
}

/// What the schema requires of `value`, an object of type `of`, outside of metadata, status and the pods' own
/// specification (which has rules of its own).
pub fn required(of: &Type, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let join = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    for name in &of.required {
        let there = match value.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        if !there {
            errors.push(FieldError::required(join(name), ""));
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let skip = path.is_empty() && matches!(name.as_str(), "metadata" | "status");
        let Some(field) = of.fields.get(name) else {
            continue;
        };
        let Some(of) = field.object_type() else {
            continue;
        };
        if skip || of.name == "PodSpec" {
            continue;
        }
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    required(of, item, &format!("{}[{at}]", join(name)), errors);
                }
            }
            Value::Object(map) if matches!(field.shape, Shape::Map(_)) => {
                for (key, item) in map {
                    required(of, item, &format!("{}[{key}]", join(name)), errors);
                }
            }
            Value::Object(_) => required(of, value, &join(name), errors),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(subdomain("a.b-c.1"), None);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", &"a".repeat(254)] {
            assert!(subdomain(bad).is_some(), "{bad}");
        }
        assert!(label_1035("1a").is_some() && label("1a").is_none());
        assert!(port_name("http").is_none() && port_name("80").is_some());
        assert!(qualified_name("example.com/Role_1").is_none());
        for bad in ["", "/a", "a/", "a/b/c", "-a", "A_b/x"] {
            assert!(qualified_name(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn quantities() {
        for (text, want) in [
            ("1", 1.0),
            ("100m", 0.1),
            ("1Ki", 1024.0),
            ("-2e3", -2000.0),
            (".5", 0.5),
        ] {
            assert_eq!(quantity(text), Some(want), "{text}");
        }
        for bad in ["", "x", "1x", "1 Gi", "--1", "1.2.3"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }
}
