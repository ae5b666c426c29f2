//! One thing that validation found, in the words of `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::{Value, json};

/// One thing that validation found (`field.Error`).
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The path of the field, as in `spec.ports[0].port`.
    pub field: String,
    pub kind: FieldErrorKind,
    /// The offending value; what has none, or too much of one, is not shown.
    pub value: Option<Value>,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    Duplicate,
    Forbidden,
    Invalid,
    NotFound,
    NotSupported,
    Required,
    TooLong,
    TooMany,
}

impl FieldError {
    fn new(
        field: impl Into<String>,
        kind: FieldErrorKind,
        value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            kind,
            value,
            detail: detail.into(),
        }
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, FieldErrorKind::Required, None, detail)
    }

    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(field, FieldErrorKind::Invalid, Some(value.into()), detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::Duplicate, Some(value.into()), "")
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::NotFound, Some(value.into()), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Forbidden, None, detail)
    }

    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let mut sorted = supported.to_vec();
        sorted.sort_unstable();
        Self::not_listed(field, value, &sorted)
    }

    /// As [`Self::not_supported`], with the values in their own order: that of a custom resource's schema.
    pub fn not_listed(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        Self::new(
            field,
            FieldErrorKind::NotSupported,
            Some(value.into()),
            detail,
        )
    }

    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let detail = format!("may not be more than {max} bytes");
        Self::new(field, FieldErrorKind::TooLong, None, detail)
    }

    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        Self::new(field, FieldErrorKind::TooMany, Some(count.into()), detail)
    }

    /// The text without the field's path.
    fn body(&self) -> String {
        use FieldErrorKind as K;
        let name = match self.kind {
            K::Duplicate => "Duplicate value",
            K::Forbidden => "Forbidden",
            K::Invalid => "Invalid value",
            K::NotFound => "Not found",
            K::NotSupported => "Unsupported value",
            K::Required => "Required value",
            K::TooLong => "Too long",
            K::TooMany => "Too many",
        };
        let mut body = match &self.value {
            None => name.to_owned(),
            Some(value) => format!("{name}: {value}"),
        };
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }

    /// As one of the `causes` of a `Status`.
    #[must_use]
    pub fn cause(&self) -> Value {
        json!({
            "reason": format!("FieldValue{:?}", self.kind),
            "message": self.body(),
            "field": self.field,
        })
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
