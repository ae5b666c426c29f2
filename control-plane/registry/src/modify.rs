//! Changing what is there: read, changed and written back in one step, as if nobody else wrote.

use serde_json::Value;

use crate::admission::{Operation, Proposed};
use crate::commit::{Change, Outcome};
use crate::errors::{ApiError, Result};
use crate::kinds::{Kind, Subresource};
use crate::meta;
use crate::object::Object;
use crate::options::WriteOptions;
use crate::parts::check_version;
use crate::prepare::{mutate, validate};
use crate::quota::{Charge, Writing};
use crate::registry::Registry;
use crate::strategies::Plan;
use crate::write::{TRIES, Written};

/// A change that is worked out but not written.
struct Draft {
    new: Value,
    changed: bool,
    /// It is the object's end.
    ends: bool,
    plan: Plan,
    charge: Charge,
    warnings: Vec<String>,
}

impl Registry {
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
        // The transaction tells whether the object was the latest; only an answer without one needs that before.
        let mut latest = options.dry_run;
        let mut tries = 0;
        while tries < TRIES {
            if latest {
                self.settle(None).await?;
            }
            let found = self.cached(kind, namespace, name);
            let seen = found.as_ref().map(|current| current.revision);
            let draft = match found {
                Some(current) => self
                    .draft(kind, subresource, &current, options, &change)
                    .await
                    .map(|draft| (current, draft)),
                None => Err(ApiError::not_found(kind, name)),
            };
            if !latest && !matches!(&draft, Ok((_, draft)) if draft.changed) {
                latest = true;
                self.settle(None).await?;
                let now = self.cached(kind, namespace, name);
                // Webhooks are not asked again about what is the latest already; values that are claimed are others'.
                if kind.strategy.claim.is_some() || now.map(|current| current.revision) != seen {
                    continue;
                }
            }
            tries += 1;
            let (current, draft) = draft?;
            let (new, warnings) = (draft.new, draft.warnings);
            if !draft.changed {
                return Ok(Written {
                    object: current,
                    warnings,
                });
            }
            if options.dry_run {
                return Ok(Written::new(kind, new, current.revision, warnings));
            }
            let value = (!draft.ends).then_some(&new);
            let mut change = Change::replace(kind, &current, value, draft.plan);
            change.guards = draft.charge.guards.clone();
            change.also.clone_from(&draft.charge.writes);
            match self.commit(change).await? {
                Outcome::Done(revision, stored) => {
                    tracing::debug!(
                        kind = kind.kind,
                        namespace,
                        name,
                        uid = &*current.uid,
                        revision,
                        "updated"
                    );
                    self.charged_at(draft.charge, revision).await?;
                    self.serve_at_once(kind, revision).await?;
                    return Ok(Written::stored(kind, new, &stored, revision, warnings));
                }
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, name, &[why])),
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
            }
        }
        Err(ApiError::modified(kind, name))
    }

    /// What `change`, and those who may change it further, make of an object, and what that takes.
    async fn draft(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        current: &Object,
        options: &WriteOptions,
        change: &impl Fn(&Value) -> Result<(Value, Vec<String>)>,
    ) -> Result<Draft> {
        let old = current.value();
        let (mut new, warnings) = change(&old)?;
        check_version(kind, &new, &old)?;
        let proposed = Proposed {
            kind,
            subresource,
            namespace: &current.namespace,
            name: &current.name,
            operation: Operation::Update,
            old: Some(&old),
            dry_run: options.dry_run,
        };
        mutate(&proposed, &mut new, options).await?;
        let mut plan = self.prepare_changed(kind, subresource, &mut new, &old, options)?;
        validate(&proposed, &new, options).await?;
        let changed = new != old;
        let writing = Writing {
            kind,
            subresource,
            namespace: &current.namespace,
            old: Some(&old),
            new: &new,
        };
        let charge = match changed {
            true => self.charge(&writing).await?,
            false => Charge::default(),
        };
        // The last finalizer that goes takes the object with it.
        let ends = changed && meta::ended(kind, &new);
        if let (true, Some(claim)) = (ends, kind.strategy.claim) {
            plan = claim(self.claims(), Some(&old), None)
                .map_err(|errors| ApiError::invalid(kind, &current.name, &errors))?;
        }
        Ok(Draft {
            new,
            changed,
            ends,
            plan,
            charge,
            warnings,
        })
    }
}
