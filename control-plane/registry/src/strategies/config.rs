//! ConfigMaps, Secrets and ServiceAccounts: data under keys.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Strategy;
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate;

pub const CONFIG_MAP: Strategy = Strategy {
    validate: |map, errors| {
        validate_data(map, &["data", "binaryData"], errors);
        for key in map
            .object("/binaryData")
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
        {
            if map
                .object("/data")
                .is_some_and(|data| data.contains_key(key))
            {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
        }
        validate_base64(map, "binaryData", errors);
    },
    validate_update: |new, old, errors| immutable(new, old, &["data", "binaryData"], errors),
    ..Strategy::PLAIN
};

pub const SECRET: Strategy = Strategy {
    default: |secret| {
        secret.put_default("/type", "Opaque");
        // stringData is for writing only.
        if let Some(Value::Object(strings)) = secret.take_at("/stringData") {
            for (key, text) in strings {
                let text = text.as_str().unwrap_or_default();
                secret["data"][key] = STANDARD.encode(text).into();
            }
        }
    },
    validate: |secret, errors| {
        validate_data(secret, &["data"], errors);
        validate_base64(secret, "data", errors);
    },
    validate_update: |new, old, errors| {
        if new["type"] != old["type"] {
            let value = new["type"].clone();
            errors.push(FieldError::invalid("type", value, "field is immutable"));
        }
        immutable(new, old, &["data"], errors);
    },
    ..Strategy::PLAIN
};

pub const SERVICE_ACCOUNT: Strategy = Strategy {
    returns_deleted: true,
    ..Strategy::PLAIN
};

/// Of all keys and values of one object.
const MAX_SIZE: usize = 1024 * 1024;

fn validate_data(object: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for field in fields {
        for (key, value) in object.object(&format!("/{field}")).into_iter().flatten() {
            if let Some(why) = validate::config_key(key) {
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    key.as_str(),
                    why,
                ));
            }
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > MAX_SIZE {
        errors.push(FieldError::too_long("", MAX_SIZE));
    }
}

fn validate_base64(object: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in object.object(&format!("/{field}")).into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        if let Err(why) = STANDARD.decode(text) {
            let why = format!("must be base64: {why}");
            errors.push(FieldError::invalid(format!("{field}[{key}]"), text, why));
        }
    }
}

/// `immutable: true` holds for good.
fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if !old.flag("/immutable") {
        return;
    }
    const WHY: &str = "field is immutable when `immutable` is set";
    if !new.flag("/immutable") {
        errors.push(FieldError::forbidden("immutable", WHY));
    }
    for field in fields {
        if !same(&new[field], &old[field]) {
            errors.push(FieldError::forbidden(*field, WHY));
        }
    }
}
