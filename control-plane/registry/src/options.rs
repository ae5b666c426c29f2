//! What a client may ask for beside the object: the option types of `meta/v1`.

use std::sync::Arc;

use serde_json::Value;

use crate::admission::Admission;

use crate::errors::{ApiError, FieldError, Result};
use crate::object::Object;
use crate::selector::{FieldSelector, LabelSelector};

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but store.
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Who writes, for `metadata.managedFields`; empty: nobody is remembered.
    pub manager: String,
    /// For server-side apply: whether fields are taken from other managers.
    pub apply: Option<bool>,
    /// Who is asked about the object on its way; `None`: nobody.
    pub admission: Option<Arc<dyn Admission>>,
}

/// The format of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// [RFC 6902](https://www.rfc-editor.org/rfc/rfc6902).
    Json,
    /// [RFC 7386](https://www.rfc-editor.org/rfc/rfc7386).
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
}

/// How `resourceVersion` is meant (`resourceVersionMatch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// Options of list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// At most so many objects; 0: all.
    pub limit: usize,
    pub continue_token: String,
    /// `None`: the most recent state; `Some(0)`: any.
    pub resource_version: Option<u64>,
    pub version_match: Option<VersionMatch>,
    pub send_initial_events: Option<bool>,
}

/// Options of watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Changes after this; `None` or `Some(0)`: the present state first.
    pub resource_version: Option<u64>,
    pub version_match: Option<VersionMatch>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// Options of delete: a client sends them as body, as query parameters, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
    /// What becomes of the objects that it owns; `None`: what its finalizers say, else Background.
    pub propagation: Option<Propagation>,
}

/// `propagationPolicy`: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#cascading-deletion>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes, and what it owns after it.
    Background,
    /// What it owns goes first.
    Foreground,
    /// What it owns stays.
    Orphan,
}

impl FieldValidation {
    /// # Errors
    /// 422 for an unknown word.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(option_error(
                "CreateOptions",
                FieldError::not_supported("fieldValidation", other, &["Ignore", "Warn", "Strict"]),
            )),
        }
    }
}

impl WriteOptions {
    /// The rules of `fieldManager` and `force`; `given` is what the client itself said.
    ///
    /// # Errors
    /// 422, as `ValidatePatchOptions` of Kubernetes.
    pub fn validate(&self, given: &str, force: bool) -> Result<()> {
        const MANAGER_MAX: usize = 128;
        let error = if given.len() > MANAGER_MAX {
            FieldError::too_long("fieldManager", MANAGER_MAX)
        } else if given.chars().any(|c| c.is_control()) {
            FieldError::invalid(
                "fieldManager",
                given,
                "should only contain printable characters",
            )
        } else if self.apply.is_some() && given.is_empty() {
            FieldError::required("fieldManager", "is required for apply patch")
        } else if self.apply.is_none() && force {
            FieldError::forbidden("force", "may not be specified for non-apply patch")
        } else {
            return Ok(());
        };
        Err(option_error("PatchOptions", error))
    }
}

impl VersionMatch {
    /// # Errors
    /// 422 for an unknown word.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        match text {
            "" => Ok(None),
            "Exact" => Ok(Some(Self::Exact)),
            "NotOlderThan" => Ok(Some(Self::NotOlderThan)),
            other => Err(option_error(
                "ListOptions",
                FieldError::not_supported(
                    "resourceVersionMatch",
                    other,
                    &["Exact", "NotOlderThan", ""],
                ),
            )),
        }
    }
}

impl Propagation {
    /// # Errors
    /// 422 for an unknown word.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        match text {
            "" => Ok(None),
            "Background" => Ok(Some(Self::Background)),
            "Foreground" => Ok(Some(Self::Foreground)),
            "Orphan" => Ok(Some(Self::Orphan)),
            other => Err(option_error(
                "DeleteOptions",
                FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Background", "Foreground", "Orphan"],
                ),
            )),
        }
    }
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` body.
    ///
    /// # Errors
    /// 422 for values that no delete takes.
    pub fn from_body(body: &Value) -> Result<Self> {
        let policy = body["propagationPolicy"].as_str().unwrap_or_default();
        let mut propagation = Propagation::parse(policy)?;
        // The older form of the question.
        if let (None, Some(orphan)) = (propagation, body["orphanDependents"].as_bool()) {
            propagation = Some(match orphan {
                true => Propagation::Orphan,
                false => Propagation::Background,
            });
        }
        let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(ToOwned::to_owned);
        Ok(Self {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: dry_run(
                body["dryRun"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str),
            )?,
            propagation,
        })
    }
}

/// Whether the values of `dryRun` ask for one.
///
/// # Errors
/// 422 for anything but `All`.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let mut wanted = false;
    for value in values {
        if value != "All" {
            return Err(option_error(
                "CreateOptions",
                FieldError::not_supported("dryRun", value, &["All"]),
            ));
        }
        wanted = true;
    }
    Ok(wanted)
}

impl ListOptions {
    /// Whether the selectors select the object.
    #[must_use]
    pub fn selects(&self, object: &Object) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// The rules of `resourceVersionMatch` and `continue`.
    ///
    /// # Errors
    /// 422, as `ValidateListOptions` of Kubernetes.
    pub fn validate(&self) -> Result<()> {
        let forbidden = |field: &str, why: &str| {
            Err(option_error(
                "ListOptions",
                FieldError::forbidden(field, why),
            ))
        };
        if self.send_initial_events.is_some() {
            return forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            );
        }
        match self.version_match {
            Some(_) if self.resource_version.is_none() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            Some(_) if !self.continue_token.is_empty() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ),
            Some(VersionMatch::Exact) if self.resource_version == Some(0) => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            _ => Ok(()),
        }
    }
}

impl WatchOptions {
    /// The rules of `sendInitialEvents`.
    ///
    /// # Errors
    /// 422, as `ValidateListOptions` of Kubernetes.
    pub fn validate(&self) -> Result<()> {
        let forbidden = |field: &str, why: &str| {
            Err(option_error(
                "ListOptions",
                FieldError::forbidden(field, why),
            ))
        };
        match (self.send_initial_events, self.version_match) {
            (Some(_), None) => forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (Some(_), Some(VersionMatch::Exact)) => Err(option_error(
                "ListOptions",
                FieldError::not_supported("resourceVersionMatch", "Exact", &["NotOlderThan"]),
            )),
            (None, Some(_)) => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            _ => Ok(()),
        }
    }
}

fn option_error(kind: &str, error: FieldError) -> ApiError {
    ApiError::invalid_of("meta.k8s.io", kind, "", &[error])
}
