//! What becomes of an object between a client's words and the transaction: completed, changed by those who may,
//! defaulted, validated, and given what it claims.

use serde_json::{Value, json};

use crate::admission::Proposed;
use crate::errors::{ApiError, FieldError, Result};
use crate::json::Json;
use crate::kinds::{Kind, Subresource};
use crate::managed::{self, Writer};
use crate::meta;
use crate::options::WriteOptions;
use crate::parts::{keep_other_parts, same_specification};
use crate::registry::Registry;
use crate::strategies::Plan;
use crate::validate as rules;

impl Registry {
    /// Fills in what a new object has before anybody looks at it.
    pub(crate) fn complete_new(&self, kind: &'static Kind, new: &mut Value) -> Result<()> {
        if new.text("/metadata/name").is_empty()
            && let prefix = new.text("/metadata/generateName")
            && !prefix.is_empty()
        {
            let name = meta::generate(prefix);
            new.put("/metadata/name", name);
        }
        meta::create(kind, new);
        if kind.has(Subresource::Status) && !kind.strategy.keeps_status {
            new.take_at("/status");
        }
        self.admit(kind, new)?;
        default(kind, new);
        self.limit(kind, new);
        Ok(())
    }

    pub(crate) fn prepare_new(
        &self,
        kind: &'static Kind,
        new: &mut Value,
        options: &WriteOptions,
    ) -> Result<Plan> {
        let strategy = &kind.strategy;
        if options.apply.is_none() {
            new.take_at("/metadata/managedFields");
            note_owner(kind, None, new, options, None);
        }
        (strategy.prepare_create)(new);
        check(kind, new)?;
        let name = new.text("/metadata/name").to_owned();
        let mut errors = Vec::new();
        if let Some(custom) = kind.custom {
            custom.hold(new, None, &mut errors);
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, &name, &errors));
        }
        match strategy.claim {
            Some(claim) => claim(self.claims(), None, Some(new))
                .map_err(|errors| ApiError::invalid(kind, &name, &errors)),
            None => Ok(Plan::default()),
        }
    }

    pub(crate) fn prepare_changed(
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
        let specifies = !matches!(
            subresource,
            Some(Subresource::Status | Subresource::Finalize)
        );
        if strategy.generation && specifies && !same_specification(new, old) {
            let generation = old.integer("/metadata/generation").unwrap_or(0);
            new.put("/metadata/generation", generation + 1);
        }
        if options.apply.is_none() {
            note_owner(kind, Some(old), new, options, writer);
        }
        // Nobody comes to own what the server counts.
        (strategy.count)(new, old);
        let mut errors = faults(kind, new);
        match subresource {
            None => (strategy.validate_update)(new, old, &mut errors),
            Some(part) => (strategy.validate_part)(part, new, old, &mut errors),
        }
        if let (Some(custom), true) = (kind.custom, errors.is_empty()) {
            custom.hold(new, Some(old), &mut errors);
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

/// Lets those change the object who may, and fills in what they left out.
pub(crate) async fn mutate(
    proposed: &Proposed<'_>,
    object: &mut Value,
    options: &WriteOptions,
) -> Result<()> {
    if let Some(admission) = &options.admission {
        admission.mutate(proposed, object).await?;
        default(proposed.kind, object);
    }
    Ok(())
}

pub(crate) async fn validate(
    proposed: &Proposed<'_>,
    object: &Value,
    options: &WriteOptions,
) -> Result<()> {
    match &options.admission {
        Some(admission) => admission.validate(proposed, Some(object)).await,
        None => Ok(()),
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
pub(crate) fn check(kind: &Kind, object: &Value) -> Result<()> {
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
    if !strategy.review {
        rules::metadata(object, kind.namespaced, strategy.name, &mut errors);
    }
    if let (true, Some(of)) = (strategy.required, kind.object_type()) {
        rules::required(of, object, "", &mut errors);
    }
    (strategy.validate)(object, &mut errors);
    if let Some(custom) = kind.custom {
        custom.check(object, &mut errors);
    }
    errors
}

/// What a user must know who takes the object for more than a note.
pub(crate) fn caveat(kind: &Kind, object: &Value) -> Option<String> {
    let own = (kind.strategy.caveat)(object);
    let always = (!kind.caveat.is_empty()).then_some(kind.caveat);
    own.or(always).map(ToOwned::to_owned)
}
