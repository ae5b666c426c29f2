//! Create, update and patch: from a client's object to a stored one.

use std::sync::Arc;

use bytes::Bytes;
use control_plane_store::Compare;
use serde_json::{Value, json};

use crate::admission::{Operation, Proposed};
use crate::commit::{Change, Outcome};
use crate::decode::{self, Body};
use crate::errors::{ApiError, FieldError, Result};
use crate::json::Json;
use crate::kinds::{self, Kind, Subresource};
use crate::merge;
use crate::object::Object;
use crate::options::{FieldValidation, PatchType, WriteOptions};
use crate::parts::{identify, place};
use crate::prepare::{caveat, check, mutate, validate};
use crate::quota::Writing;
use crate::registry::Registry;
use crate::strategies::{self, Plan};

/// How often a write is tried again when somebody else writes the same object, or takes the same value.
pub(crate) const TRIES: usize = 8;

/// What a write made.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: Arc<Object>,
    /// Texts for the client's user: unknown and duplicate fields.
    pub warnings: Vec<String>,
}

impl Registry {
    /// Creates an object in `namespace` (empty for cluster-scoped kinds).
    ///
    /// # Errors
    /// 400 and 422 for a bad object, 404 for a namespace that does not exist, 403 for one that is going, 409 when the
    /// name is taken.
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        body: Body,
        options: &WriteOptions,
    ) -> Result<Written> {
        let mut object = body.value;
        identify(kind, &mut object)?;
        let mut warnings =
            decode::conform(kind, &mut object, body.found, options.field_validation)?;
        warnings.extend(caveat(kind, &object));
        place(kind, namespace, &mut object)?;
        if kind.strategy.review {
            check(kind, &object)?;
            return Ok(Written::new(kind, object, 0, warnings));
        }
        if !object.text("/metadata/resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let named = !object.text("/metadata/name").is_empty();
        for _ in 0..TRIES {
            let mut new = object.clone();
            self.complete_new(kind, &mut new)?;
            let name = new.text("/metadata/name").to_owned();
            let proposed = Proposed {
                kind,
                subresource: None,
                namespace,
                name: &name,
                operation: Operation::Create,
                old: None,
                dry_run: options.dry_run,
            };
            mutate(&proposed, &mut new, options).await?;
            let plan = self.prepare_new(kind, &mut new, options)?;
            validate(&proposed, &new, options).await?;
            let mut guards = self.check_namespace(kind, namespace, &name).await?;
            let writing = Writing {
                kind,
                subresource: None,
                namespace,
                old: None,
                new: &new,
            };
            let mut charge = self.charge(&writing).await?;
            if options.dry_run {
                self.settle(None).await?;
                if self.cached(kind, namespace, &name).is_some() {
                    return Err(ApiError::already_exists(kind, &name));
                }
                return Ok(Written::new(kind, new, 0, warnings));
            }
            guards.append(&mut charge.guards);
            let change = Change {
                kind,
                key: kind.key(namespace, &name),
                expect: 0,
                value: Some(&new),
                plan,
                guards,
                also: charge.writes.clone(),
            };
            match self.commit(change).await? {
                Outcome::Done(revision, stored) => {
                    tracing::debug!(
                        kind = kind.kind,
                        namespace,
                        name,
                        uid = new.text("/metadata/uid"),
                        revision,
                        "created"
                    );
                    self.charged_at(charge, revision).await?;
                    self.serve_at_once(kind, revision).await?;
                    return Ok(Written::stored(kind, new, &stored, revision, warnings));
                }
                Outcome::Stale(_) if named => return Err(ApiError::already_exists(kind, &name)),
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, &name, &[why])),
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
            }
        }
        Err(ApiError::conflict(
            kind,
            object.text("/metadata/name"),
            "too many others create the same at this moment; please try again",
        ))
    }

    /// Only a living namespace takes new objects; the answer guards the transaction against its end.
    async fn check_namespace(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<Compare>> {
        if !kind.namespaced {
            return Ok(Vec::new());
        }
        let namespaces = kinds::find("", "v1", "namespaces")
            .expect("the table of kinds has a row for namespaces");
        let look = || self.cached(namespaces, "", namespace);
        let ends = |found: &Object| found.value().has("/metadata/deletionTimestamp");
        let mut found = look();
        // The guard tells whether this is the latest state; a refusal has none.
        if found.as_deref().is_none_or(ends) {
            self.settle(None).await?;
            found = look();
        }
        let found = found.ok_or_else(|| ApiError::not_found(namespaces, namespace))?;
        if ends(&found) {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut error = ApiError::forbidden(kind, name, &why);
            error.details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
            return Err(error);
        }
        let key = namespaces.key("", namespace);
        Ok(vec![Compare::unchanged(key, found.revision)])
    }

    /// Replaces an object, or its part that `subresource` names.
    ///
    /// # Errors
    /// 404, 409 when the object is not the version that the client changed, 400 and 422 for a bad object.
    pub async fn update(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        body: Body,
        options: &WriteOptions,
    ) -> Result<Written> {
        let mut object = body.value;
        identify(kind, &mut object)?;
        let mut warnings =
            decode::conform(kind, &mut object, body.found, options.field_validation)?;
        warnings.extend(caveat(kind, &object));
        place(kind, namespace, &mut object)?;
        let given = object.text("/metadata/name");
        if given.is_empty() {
            object.put("/metadata/name", name);
        } else if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        let change = |_: &Value| Ok((object.clone(), warnings.clone()));
        self.modify(kind, subresource, namespace, name, options, change)
            .await
    }

    /// Changes an object, or its part that `subresource` names, by a patch.
    ///
    /// # Errors
    /// As update; 422 also when the patch does not fit the object.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the parts of the request's URL and body"
    )]
    pub async fn patch(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        patch: &Body,
        patch_type: PatchType,
        options: &WriteOptions,
    ) -> Result<Written> {
        let change = |old: &Value| {
            let mut new = merge::apply(kind, old, &patch.value, patch_type)?;
            identify(kind, &mut new)?;
            place(kind, namespace, &mut new)?;
            if new.text("/metadata/name") != name {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    new.text("/metadata/name")
                )));
            }
            let mut findings = decode::check(kind.object_type(), &mut new);
            let mut found = patch.found.clone();
            found.append(&mut findings.strict);
            let refusal = match findings.mismatch {
                Some(mismatch) => Some(mismatch),
                None if options.field_validation == FieldValidation::Strict
                    && !found.is_empty() =>
                {
                    Some(decode::strict_error(&found))
                }
                None => None,
            };
            if let Some(why) = refusal {
                let shown = FieldError::invalid("patch", patch.value.to_string(), why);
                return Err(ApiError::invalid_of("", "", "", &[shown]));
            }
            if options.field_validation == FieldValidation::Ignore {
                found.clear();
            }
            found.extend(caveat(kind, &new));
            Ok((new, found))
        };
        self.modify(kind, subresource, namespace, name, options, change)
            .await
    }

    /// Assigns a pod to a node: `pods/binding`.
    ///
    /// # Errors
    /// 404, 409 when it has a node or is being deleted, 422 for a binding without a node.
    pub async fn bind(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        binding: &Value,
        dry_run: bool,
    ) -> Result<()> {
        let given = binding.text("/metadata/name");
        if !given.is_empty() && given != name {
            return Err(ApiError::bad_request(
                "name in URL does not match name in Binding object",
            ));
        }
        for _ in 0..TRIES {
            let current = self.get(kind, namespace, name, None).await?;
            let mut pod = current.value();
            strategies::bind(kind, &mut pod, binding)?;
            if dry_run {
                return Ok(());
            }
            let change = Change::replace(kind, &current, Some(&pod), Plan::default());
            match self.commit(change).await? {
                Outcome::Done(..) => return Ok(()),
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, name, &[why])),
            }
        }
        Err(ApiError::modified(kind, name))
    }

    /// What other requests are served by counts right after the answer: a kind that was defined, a role that was bound.
    pub(crate) async fn serve_at_once(&self, kind: &Kind, revision: u64) -> Result<()> {
        const GROUPS: [&str; 4] = [
            "admissionregistration.k8s.io",
            "apiextensions.k8s.io",
            "flowcontrol.apiserver.k8s.io",
            "rbac.authorization.k8s.io",
        ];
        let bounds = kind.group.is_empty() && matches!(kind.kind, "LimitRange" | "ResourceQuota");
        if bounds || GROUPS.contains(&kind.group) {
            self.cache().wait(revision).await?;
        }
        Ok(())
    }
}

impl Written {
    /// What now stands in the store as `stored`: `value`, but perhaps in another version.
    pub(crate) fn stored(
        kind: &'static Kind,
        value: Value,
        stored: &Bytes,
        revision: u64,
        warnings: Vec<String>,
    ) -> Self {
        let object = Object::of_stored(kind, stored, revision);
        Self {
            object: Arc::new(object.unwrap_or_else(|| Object::new(kind, value, revision))),
            warnings,
        }
    }

    pub(crate) fn new(
        kind: &'static Kind,
        value: Value,
        revision: u64,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            object: Arc::new(Object::new(kind, value, revision)),
            warnings,
        }
    }
}
