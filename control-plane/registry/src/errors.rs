//! What can be wrong with a request, in Kubernetes' words: the `Status` of `meta/v1` and its causes.
//!
//! Texts and shapes follow `k8s.io/apimachinery/pkg/api/errors` and `pkg/util/validation/field`.

use control_plane_store::StoreError;
use serde_json::{Value, json};

use crate::kinds::Kind;

pub use crate::field::{FieldError, FieldErrorKind};

/// A refused request: everything that its `Status` body says.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code, which is a field of `Status`.
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    /// `details` of the `Status`; `Null` for none.
    pub details: Value,
    /// Seconds after which the client may try again; 0: do not say.
    pub retry_after: u32,
    /// A token with which an expired list can go on, without consistency.
    pub continue_token: Option<String>,
}

/// `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    AlreadyExists,
    BadRequest,
    Conflict,
    Expired,
    Forbidden,
    InternalError,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
    Timeout,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            retry_after: 0,
            continue_token: None,
        }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = details(kind.group, kind.plural, name);
        self
    }

    #[must_use]
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.resource());
        Self::new(404, Reason::NotFound, message).about(kind, name)
    }

    #[must_use]
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.resource());
        Self::new(409, Reason::AlreadyExists, message).about(kind, name)
    }

    /// The operation was refused because of what the object is now; `why` says what to do.
    #[must_use]
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.resource()
        );
        Self::new(409, Reason::Conflict, message).about(kind, name)
    }

    /// Somebody else changed the object since the client read it.
    #[must_use]
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    #[must_use]
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", kind.resource());
        Self::new(403, Reason::Forbidden, message).about(kind, name)
    }

    /// Somebody who was asked about a write refuses it.
    #[must_use]
    pub fn denied(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => Reason::BadRequest,
            401 => Reason::Unauthorized,
            404 => Reason::NotFound,
            409 => Reason::Conflict,
            422 => Reason::Invalid,
            429 => Reason::TooManyRequests,
            500.. => Reason::InternalError,
            _ => Reason::Forbidden,
        };
        Self::new(code, reason, message)
    }

    /// Somebody may not do this to a resource; `why` says who and what.
    #[must_use]
    pub fn forbidden_action(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let of = match group {
            "" => resource.to_owned(),
            group => format!("{resource}.{group}"),
        };
        let named = match name {
            "" => String::new(),
            name => format!(" \"{name}\""),
        };
        let mut error = Self::new(
            403,
            Reason::Forbidden,
            format!("{of}{named} is forbidden: {why}"),
        );
        error.details = details(group, resource, name);
        error
    }

    /// Somebody may not ask for a path that is no resource.
    #[must_use]
    pub fn forbidden_path(why: &str) -> Self {
        let mut error = Self::new(403, Reason::Forbidden, format!("forbidden: {why}"));
        error.details = json!({});
        error
    }

    #[must_use]
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_of(kind.group, kind.kind, name, errors)
    }

    /// As [`ApiError::invalid`], for things that are no object of a served kind (`ListOptions`, a patch).
    #[must_use]
    pub fn invalid_of(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind_text = match (kind, group) {
            ("", _) => String::new(),
            (kind, "") => kind.to_owned(),
            (kind, group) => format!("{kind}.{group}"),
        };
        let message = format!("{kind_text} \"{name}\" is invalid: {list}");
        let mut error = Self::new(422, Reason::Invalid, message);
        error.details = details(group, kind, name);
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        error.details["causes"] = causes.into();
        error
    }

    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// The change that a patch asks for cannot be made. Kubernetes says only the first half and names no object; so does
    /// this, or kubectl would show neither.
    #[must_use]
    pub fn patch_failed(why: &str) -> Self {
        let message =
            format!("the server rejected our request due to an error in our request: {why}");
        Self::new(422, Reason::Invalid, message)
    }

    /// HTTP 410: what the client asks about is no longer known; it should list again.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    /// The client has seen a revision that this server has not (yet).
    #[must_use]
    pub fn future_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut error = Self::new(504, Reason::Timeout, message);
        error.details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        error.retry_after = 1;
        error
    }

    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        )
    }

    #[must_use]
    pub fn unknown_resource() -> Self {
        let mut error = Self::new(
            404,
            Reason::NotFound,
            "the server could not find the requested resource",
        );
        error.details = json!({});
        error
    }

    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, Reason::UnsupportedMediaType, message)
    }

    #[must_use]
    pub fn not_acceptable(available: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            available.join(", ")
        );
        Self::new(406, Reason::NotAcceptable, message)
    }

    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// HTTP 413: a JSON patch that would keep the server busy.
    #[must_use]
    pub fn too_many_operations(limit: usize, count: usize) -> Self {
        Self::new(
            413,
            Reason::RequestEntityTooLarge,
            format!("The allowed maximum operations in a JSON patch is {limit}, got {count}"),
        )
    }

    /// The path and query are longer than `limit` bytes.
    #[must_use]
    pub fn uri_too_long(limit: usize) -> Self {
        Self::new(
            414,
            Reason::RequestEntityTooLarge,
            format!("Request URI too long: limit is {limit}"),
        )
    }

    /// The headers have more than `limit` bytes.
    #[must_use]
    pub fn headers_too_large(limit: usize) -> Self {
        Self::new(
            431,
            Reason::RequestEntityTooLarge,
            format!("Request header fields too large: limit is {limit}"),
        )
    }

    /// The request was given up after the time that it may take; it is not known whether it was done.
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(
            504,
            Reason::Timeout,
            "Timeout: request did not complete within the allotted timeout",
        )
    }

    /// The server has more to do than it may; `retry_after` in seconds.
    #[must_use]
    pub fn too_many_requests(retry_after: u32) -> Self {
        let message = "Too many requests, please try again later.";
        let mut error = Self::new(429, Reason::TooManyRequests, message);
        error.details = json!({"retryAfterSeconds": retry_after});
        error.retry_after = retry_after;
        error
    }

    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(503, Reason::ServiceUnavailable, message);
        error.retry_after = 1;
        error
    }

    /// Others own fields that an apply would change: who, and the path.
    #[must_use]
    pub fn apply_conflict(fields: &[(String, String)]) -> Self {
        let mut by_owner: Vec<(&str, Vec<&str>)> = Vec::new();
        for (owner, path) in fields {
            match by_owner.iter_mut().find(|(o, _)| o == owner) {
                Some((_, paths)) => paths.push(path),
                None => by_owner.push((owner, vec![path])),
            }
        }
        by_owner.sort();
        let message = match fields {
            [(owner, path)] => {
                format!("Apply failed with 1 conflict: conflict with {owner}: {path}")
            }
            many => {
                let lines: Vec<String> = by_owner
                    .iter()
                    .map(|(owner, paths)| {
                        format!("conflicts with {owner}:\n- {}", paths.join("\n- "))
                    })
                    .collect();
                format!(
                    "Apply failed with {} conflicts: {}",
                    many.len(),
                    lines.join("\n")
                )
            }
        };
        let mut error = Self::new(409, Reason::Conflict, message);
        let causes: Vec<Value> = fields
            .iter()
            .map(|(owner, path)| {
                json!({
                    "reason": "FieldManagerConflict",
                    "message": format!("conflict with {owner}"),
                    "field": path,
                })
            })
            .collect();
        error.details = json!({"causes": causes});
        error
    }

    /// A budget forbids an eviction; `why` says which.
    #[must_use]
    pub fn too_many_disruptions(why: &str) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut error = Self::new(429, Reason::TooManyRequests, message);
        error.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
        error
    }

    /// A request that this server cannot work out.
    #[must_use]
    pub fn internal_text(message: impl Into<String>) -> Self {
        Self::new(500, Reason::InternalError, message)
    }

    /// A fault of ours or of the store, not of the request.
    #[must_use]
    pub fn internal(cause: &dyn std::error::Error) -> Self {
        let mut text = cause.to_string();
        let mut next = cause.source();
        while let Some(inner) = next {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            next = inner.source();
        }
        Self::new(
            500,
            Reason::InternalError,
            format!("Internal error occurred: {text}"),
        )
    }

    /// The body that the client gets.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": format!("{:?}", self.reason),
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { limit, .. } => Self::too_large(limit),
            StoreError::Unreachable { .. } => Self::unavailable(error.to_string()),
            // Without Retry-After: clients that see one send the same write again, which may double it.
            StoreError::Unanswered { .. } => {
                Self::new(504, Reason::Timeout, format!("Timeout: {error}"))
            }
            other => Self::internal(&other),
        }
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({});
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details[key] = value.into();
        }
    }
    details
}
