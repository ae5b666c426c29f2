//! Create, update and patch: from a client's object to a stored one.

use std::sync::Arc;

use control_plane_store::Compare;
use serde_json::{Value, json};

use crate::commit::{Change, Outcome};
use crate::decode::{self, Body};
use crate::errors::{ApiError, FieldError, Result};
use crate::json::Json;
use crate::kinds::{self, Kind, Subresource};
use crate::managed::{self, Writer};
use crate::merge;
use crate::meta;
use crate::object::Object;
use crate::options::{FieldValidation, PatchType, WriteOptions};
use crate::parts::{check_version, identify, keep_other_parts, place, same_specification};
use crate::registry::Registry;
use crate::strategies::{self, Plan};
use crate::validate;

/// How often a write is tried again when somebody else writes the same object, or takes the same value.
const TRIES: usize = 8;

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
        if let Some(review) = kind.strategy.review {
            check(kind, &object)?;
            review(&mut object);
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
            let plan = self.prepare_new(kind, &mut new, options)?;
            let name = new.text("/metadata/name").to_owned();
            let guards = self.check_namespace(kind, namespace, &name).await?;
            if options.dry_run {
                if self.cached(kind, namespace, &name).is_some() {
                    return Err(ApiError::already_exists(kind, &name));
                }
                return Ok(Written::new(kind, new, 0, warnings));
            }
            let change = Change {
                kind,
                key: kind.key(namespace, &name),
                expect: 0,
                value: Some(&new),
                plan,
                guards,
            };
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    tracing::debug!(
                        kind = kind.kind,
                        namespace,
                        name,
                        uid = new.text("/metadata/uid"),
                        revision,
                        "created"
                    );
                    self.serve_at_once(kind, revision).await?;
                    return Ok(Written::new(kind, new, revision, warnings));
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

    fn prepare_new(
        &self,
        kind: &'static Kind,
        new: &mut Value,
        options: &WriteOptions,
    ) -> Result<Plan> {
        let strategy = &kind.strategy;
        if new.text("/metadata/name").is_empty()
            && let prefix = new.text("/metadata/generateName")
            && !prefix.is_empty()
        {
            let name = meta::generate(prefix);
            new.put("/metadata/name", name);
        }
        meta::create(kind, new);
        if kind.has(Subresource::Status) && !strategy.keeps_status {
            new.take_at("/status");
        }
        self.admit(kind, new)?;
        default(kind, new);
        if options.apply.is_none() {
            new.take_at("/metadata/managedFields");
            note_owner(kind, None, new, options, None);
        }
        (strategy.prepare_create)(new);
        check(kind, new)?;
        let name = new.text("/metadata/name").to_owned();
        match strategy.claim {
            Some(claim) => claim(self.claims(), None, Some(new))
                .map_err(|errors| ApiError::invalid(kind, &name, &errors)),
            None => Ok(Plan::default()),
        }
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
        self.settle(None).await?;
        let found = self
            .cached(namespaces, "", namespace)
            .ok_or_else(|| ApiError::not_found(namespaces, namespace))?;
        if found.value().has("/metadata/deletionTimestamp") {
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
            let mut new = merge::apply(kind, name, old, &patch.value, patch_type)?;
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
                Outcome::Done(_) => return Ok(()),
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, name, &[why])),
            }
        }
        Err(ApiError::modified(kind, name))
    }

    /// Reads, changes and writes back, again if somebody else was faster and the client did not insist on a version.
    pub(crate) async fn modify(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        change: impl Fn(&Value) -> Result<(Value, Vec<String>)>,
    ) -> Result<Written> {
        for _ in 0..TRIES {
            let current = self.get(kind, namespace, name, None).await?;
            let old = current.value();
            let (mut new, warnings) = change(&old)?;
            check_version(kind, &new, &old)?;
            let plan = self.prepare_changed(kind, subresource, &mut new, &old, options)?;
            if new == old {
                return Ok(Written {
                    object: current,
                    warnings,
                });
            }
            if options.dry_run {
                return Ok(Written::new(kind, new, current.revision, warnings));
            }
            // The last finalizer that goes takes the object with it.
            let ends = meta::ended(kind, &new);
            let plan = match (ends, kind.strategy.claim) {
                (true, Some(claim)) => claim(self.claims(), Some(&old), None)
                    .map_err(|errors| ApiError::invalid(kind, name, &errors))?,
                _ => plan,
            };
            let value = (!ends).then_some(&new);
            match self
                .commit(Change::replace(kind, &current, value, plan))
                .await?
            {
                Outcome::Done(revision) => {
                    tracing::debug!(
                        kind = kind.kind,
                        namespace,
                        name,
                        uid = current.uid,
                        revision,
                        "updated"
                    );
                    self.serve_at_once(kind, revision).await?;
                    return Ok(Written::new(kind, new, revision, warnings));
                }
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, name, &[why])),
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
            }
        }
        Err(ApiError::modified(kind, name))
    }

    /// Who has defined a kind may use it right after the answer.
    async fn serve_at_once(&self, kind: &Kind, revision: u64) -> Result<()> {
        if kind.kind == "CustomResourceDefinition" {
            self.cache().wait(revision).await?;
        }
        Ok(())
    }

    fn prepare_changed(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        new: &mut Value,
        old: &Value,
        options: &WriteOptions,
    ) -> Result<Plan> {
        let strategy = &kind.strategy;
        // A scale is one field of the specification.
        let writer = subresource;
        let subresource = subresource.filter(|s| *s != Subresource::Scale);
        meta::carry(new, old);
        let finalizers = new.pointer("/spec/finalizers").cloned();
        keep_other_parts(kind, subresource, new, old);
        default(kind, new);
        if subresource.is_none() {
            (strategy.prepare_update)(new, old);
        }
        if subresource == Some(Subresource::Finalize) {
            new.put("/spec/finalizers", finalizers.unwrap_or_else(|| json!([])));
        }
        if strategy.generation && subresource.is_none() && !same_specification(new, old) {
            let generation = old.integer("/metadata/generation").unwrap_or(0);
            new.put("/metadata/generation", generation + 1);
        }
        if options.apply.is_none() {
            note_owner(kind, Some(old), new, options, writer);
        }
        let mut errors = faults(kind, new);
        if subresource.is_none() {
            (strategy.validate_update)(new, old, &mut errors);
        }
        let name = old.text("/metadata/name");
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, name, &errors));
        }
        match strategy.claim {
            Some(claim) => claim(self.claims(), Some(old), Some(new))
                .map_err(|errors| ApiError::invalid(kind, name, &errors)),
            None => Ok(Plan::default()),
        }
    }
}

/// Remembers who wrote what.
fn note_owner(
    kind: &'static Kind,
    old: Option<&Value>,
    new: &mut Value,
    options: &WriteOptions,
    subresource: Option<Subresource>,
) {
    let manager = options.manager.as_str();
    if !manager.is_empty() {
        let writer = Writer {
            manager,
            subresource,
        };
        managed::update(kind, old, new, writer);
    }
}

/// Fills in what the client left out.
fn default(kind: &Kind, object: &mut Value) {
    (kind.strategy.default)(object);
    if let Some(custom) = kind.custom {
        custom.default(object);
    }
}

/// Refuses an object with faults.
fn check(kind: &Kind, object: &Value) -> Result<()> {
    let faults = faults(kind, object);
    if faults.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        kind,
        object.text("/metadata/name"),
        &faults,
    ))
}

/// What is wrong with an object by itself.
fn faults(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let strategy = &kind.strategy;
    let mut errors = Vec::new();
    // What is only answered needs no name.
    if strategy.review.is_none() {
        validate::metadata(object, kind.namespaced, strategy.name, &mut errors);
    }
    if let (true, Some(of)) = (strategy.required, kind.object_type()) {
        validate::required(of, object, "", &mut errors);
    }
    (strategy.validate)(object, &mut errors);
    if let Some(custom) = kind.custom {
        custom.check(object, &mut errors);
    }
    errors
}

/// What a user must know who takes the object for more than a note.
fn caveat(kind: &Kind, object: &Value) -> Option<String> {
    let own = (kind.strategy.caveat)(object);
    let always = (!kind.caveat.is_empty()).then_some(kind.caveat);
    own.or(always).map(ToOwned::to_owned)
}

impl Written {
    fn new(kind: &'static Kind, value: Value, revision: u64, warnings: Vec<String>) -> Self {
        Self {
            object: Arc::new(Object::new(kind, value, revision)),
            warnings,
        }
    }
}
