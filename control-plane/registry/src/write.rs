//! Create, update and patch: from a client's object to a stored one.

use std::sync::Arc;

use bytes::Bytes;
use control_plane_store::{Compare, Op, Txn};
use serde_json::{Value, json};

use crate::decode::{self, Body};
use crate::errors::{ApiError, FieldError, Result};
use crate::json::{Json, same};
use crate::kinds::{self, Kind, Subresource};
use crate::merge;
use crate::meta;
use crate::object::Object;
use crate::options::{FieldValidation, PatchType, WriteOptions};
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

/// One change of one object, with what it takes and gives back.
pub(crate) struct Change<'a> {
    pub kind: &'static Kind,
    pub key: String,
    /// The revision of the object that the change was made from; 0: there is none.
    pub expect: u64,
    /// The new object; `None` deletes it.
    pub value: Option<&'a Value>,
    pub plan: Plan,
    /// What else must not have changed.
    pub guards: Vec<Compare>,
}

/// How a transaction ended.
pub(crate) enum Outcome {
    Done(u64),
    /// The object is not what it was; the revision of the store that says so.
    Stale(u64),
    /// Somebody has a value that the user asked for.
    Refused(FieldError),
    /// Somebody has a value that was only a guess, or a guard has changed: work it out again.
    Again(u64),
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
        let warnings = decode::conform(kind, &mut object, body.found, options.field_validation)?;
        place(kind, namespace, &mut object)?;
        if !object.text("/metadata/resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let named = !object.text("/metadata/name").is_empty();
        for _ in 0..TRIES {
            let mut new = object.clone();
            let plan = self.prepare_new(kind, &mut new)?;
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

    fn prepare_new(&self, kind: &'static Kind, new: &mut Value) -> Result<Plan> {
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
        (strategy.default)(new);
        (strategy.prepare_create)(new);
        let mut errors = Vec::new();
        validate::metadata(new, kind.namespaced, strategy.name, &mut errors);
        (strategy.validate)(new, &mut errors);
        let name = new.text("/metadata/name").to_owned();
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, &name, &errors));
        }
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
        let warnings = decode::conform(kind, &mut object, body.found, options.field_validation)?;
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
        self.modify(kind, subresource, namespace, name, options.dry_run, change)
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
            let mut findings = decode::check(kind.schema, &mut new);
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
            Ok((new, found))
        };
        self.modify(kind, subresource, namespace, name, options.dry_run, change)
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
    async fn modify(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: impl Fn(&Value) -> Result<(Value, Vec<String>)>,
    ) -> Result<Written> {
        for _ in 0..TRIES {
            let current = self.get(kind, namespace, name, None).await?;
            let old = current.value();
            let (mut new, warnings) = change(&old)?;
            check_version(kind, &new, &old)?;
            let plan = self.prepare_changed(kind, subresource, &mut new, &old)?;
            if new == old {
                return Ok(Written {
                    object: current,
                    warnings,
                });
            }
            if dry_run {
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

    fn prepare_changed(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        new: &mut Value,
        old: &Value,
    ) -> Result<Plan> {
        let strategy = &kind.strategy;
        meta::carry(new, old);
        let finalizers = new.pointer("/spec/finalizers").cloned();
        keep_other_parts(kind, subresource, new, old);
        (strategy.default)(new);
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
        let mut errors = Vec::new();
        validate::metadata(new, kind.namespaced, strategy.name, &mut errors);
        (strategy.validate)(new, &mut errors);
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

    /// Writes one change, with what it takes and gives back, in one transaction.
    pub(crate) async fn commit(&self, change: Change<'_>) -> Result<Outcome> {
        let mut compares = vec![Compare::unchanged(change.key.clone(), change.expect)];
        compares.extend(change.guards);
        let mut then = vec![match change.value {
            Some(value) => Op::put(change.key.clone(), encode(value)?),
            None => Op::delete(change.key.clone()),
        }];
        let mut else_get = vec![change.key.as_str().into()];
        for taking in &change.plan.take {
            compares.push(Compare::absent(taking.key.clone()));
            then.push(Op::put(taking.key.clone(), encode(&taking.value)?));
            else_get.push(taking.key.as_str().into());
        }
        then.extend(change.plan.give_back.into_iter().map(Op::delete));
        let answer = self
            .store()
            .txn(Txn {
                compares,
                then,
                else_get,
            })
            .await
            .inspect_err(|error| self.note_failure(error))?;
        if answer.succeeded {
            return Ok(Outcome::Done(answer.revision));
        }
        let mut found = answer.else_kvs.into_iter();
        let now = found.next().flatten().map_or(0, |kv| kv.mod_revision);
        if now != change.expect {
            return Ok(Outcome::Stale(answer.revision));
        }
        for (taking, holder) in change.plan.take.into_iter().zip(found) {
            match (holder, taking.refusal) {
                (Some(_), Some(why)) => return Ok(Outcome::Refused(why)),
                (Some(_), None) => self.claims().note_taken(&taking.key),
                (None, _) => {}
            }
        }
        tracing::debug!(
            kind = change.kind.kind,
            key = change.key,
            "a guess was taken or a guard has changed"
        );
        Ok(Outcome::Again(answer.revision))
    }
}

impl<'a> Change<'a> {
    /// A change of an object that was read.
    pub fn replace(
        kind: &'static Kind,
        current: &Object,
        value: Option<&'a Value>,
        plan: Plan,
    ) -> Self {
        Self {
            kind,
            key: kind.key(&current.namespace, &current.name),
            expect: current.revision,
            value,
            plan,
            guards: Vec::new(),
        }
    }
}

impl Written {
    fn new(kind: &'static Kind, value: Value, revision: u64, warnings: Vec<String>) -> Self {
        Self {
            object: Arc::new(Object::new(kind, value, revision)),
            warnings,
        }
    }
}

/// The stored form: without the revision, which the store itself knows.
fn encode(value: &Value) -> Result<Bytes> {
    let mut value = value.clone();
    value.take_at("/metadata/resourceVersion");
    serde_json::to_vec(&value)
        .map(Bytes::from)
        .map_err(|e| ApiError::internal(&e))
}

/// The body must be of the kind that the URL names; it may leave that out.
fn identify(kind: &Kind, object: &mut Value) -> Result<()> {
    if !object.is_object() {
        return Err(ApiError::bad_request(format!(
            "the body must be an object of kind {}",
            kind.kind
        )));
    }
    let api_version = kind.api_version();
    let given = object.text("/apiVersion");
    if !given.is_empty() && given != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({api_version})"
        )));
    }
    let given = object.text("/kind");
    if !given.is_empty() && given != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{given} in version \"{}\" cannot be handled as a {}: converting ({given}) to ({}): unknown conversion",
            kind.version, kind.kind, kind.kind
        )));
    }
    object.put("/apiVersion", api_version);
    object.put("/kind", kind.kind);
    Ok(())
}

/// The object stands in the namespace of the URL.
fn place(kind: &Kind, namespace: &str, object: &mut Value) -> Result<()> {
    if !object.has("/metadata") {
        object.put("/metadata", json!({}));
    }
    if !kind.namespaced {
        object.take_at("/metadata/namespace");
        return Ok(());
    }
    let given = object.text("/metadata/namespace");
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.put("/metadata/namespace", namespace);
    Ok(())
}

fn check_version(kind: &Kind, new: &Value, old: &Value) -> Result<()> {
    let name = old.text("/metadata/name");
    let (uid, has) = (new.text("/metadata/uid"), old.text("/metadata/uid"));
    if !uid.is_empty() && uid != has {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {has}");
        return Err(ApiError::conflict(kind, name, &why));
    }
    let version = new.text("/metadata/resourceVersion");
    if matches!(version, "" | "0") || version == old.text("/metadata/resourceVersion") {
        return Ok(());
    }
    if version.parse::<u64>().is_err() {
        let why = "must be a resourceVersion that this server gave out";
        let error = FieldError::invalid("metadata.resourceVersion", version, why);
        return Err(ApiError::invalid(kind, name, &[error]));
    }
    Err(ApiError::modified(kind, name))
}

/// A write to the object leaves its status alone, a write to the status everything else.
fn keep_other_parts(kind: &Kind, subresource: Option<Subresource>, new: &mut Value, old: &Value) {
    let take_from_old = |new: &mut Value, field: &str| match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            new.take_at(&format!("/{field}"));
        }
    };
    match subresource {
        None if kind.has(Subresource::Status) => take_from_old(new, "status"),
        None => {}
        Some(Subresource::Status) => {
            let owners = old.pointer("/metadata/ownerReferences").cloned();
            if let Some(owners) = owners {
                new.put("/metadata/ownerReferences", owners);
            }
            let status = new.get("status").cloned();
            let metadata = new["metadata"].take();
            *new = old.clone();
            new["metadata"] = metadata;
            match status {
                Some(status) => new["status"] = status,
                None => {
                    new.take_at("/status");
                }
            }
        }
        Some(_) => *new = old.clone(),
    }
}

/// Whether nothing but metadata and status differs.
fn same_specification(new: &Value, old: &Value) -> bool {
    let rest = |v: &Value| {
        let mut v = v.clone();
        v.take_at("/metadata");
        v.take_at("/status");
        v
    };
    same(&rest(new), &rest(old))
}
