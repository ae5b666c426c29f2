//! One change of one object in one transaction of the store, with the shared values that it takes and gives back.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use control_plane_store::{Compare, Op, Txn};
use serde_json::Value;

use crate::errors::{ApiError, FieldError, Result};
use crate::json::Json;
use crate::kinds::Kind;
use crate::object::Object;
use crate::registry::Registry;
use crate::strategies::Plan;

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
    /// What else is written.
    pub also: Vec<Op>,
}

/// How a transaction ended.
pub(crate) enum Outcome {
    /// At this revision, with the bytes that now stand under the key (none after a deletion).
    Done(u64, Bytes),
    /// The object is not what it was; the revision of the store that says so.
    Stale(u64),
    /// Somebody has a value that the user asked for.
    Refused(FieldError),
    /// Somebody has a value that was only a guess, or a guard has changed: work it out again.
    Again(u64),
}

impl Registry {
    /// Writes one change, with what it takes and gives back, in one transaction.
    pub(crate) async fn commit(&self, change: Change<'_>) -> Result<Outcome> {
        let mut compares = vec![Compare::unchanged(change.key.clone(), change.expect)];
        compares.extend(change.guards);
        let stored = match change.value {
            Some(value) => encode(&stored(change.kind, value))?,
            None => Bytes::new(),
        };
        let mut then = vec![match change.value {
            Some(_) => Op::put(change.key.clone(), stored.clone()),
            None => Op::delete(change.key.clone()),
        }];
        let mut else_get = vec![change.key.as_str().into()];
        for taking in &change.plan.take {
            compares.push(Compare::absent(taking.key.clone()));
            then.push(Op::put(taking.key.clone(), encode(&taking.value)?));
            else_get.push(taking.key.as_str().into());
        }
        then.extend(change.plan.give_back.into_iter().map(Op::delete));
        then.extend(change.also);
        let operation = match (change.expect, change.value) {
            (0, _) => "create",
            (_, Some(_)) => "update",
            (_, None) => "delete",
        };
        let began = Instant::now();
        let answer = self
            .store()
            .txn(Txn {
                compares,
                then,
                else_get,
            })
            .await
            .inspect_err(|error| self.note_failure(error))?;
        self.observed(operation, change.kind, began);
        if answer.succeeded {
            return Ok(Outcome::Done(answer.revision, stored));
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
            also: Vec::new(),
        }
    }
}

/// The object in the version that is stored, without the revision, which the store itself knows.
fn stored<'a>(kind: &Kind, value: &'a Value) -> Cow<'a, Value> {
    const VERSION: &str = "/metadata/resourceVersion";
    if kind.conversion.is_none() && kind.custom.is_none() && value.pointer(VERSION).is_none() {
        return Cow::Borrowed(value);
    }
    let mut value = value.clone();
    value.take_at(VERSION);
    if let Some(conversion) = kind.conversion {
        (conversion.to_stored)(&mut value);
    }
    if let Some(custom) = kind.custom {
        value["apiVersion"] = custom.stored.as_str().into();
    }
    Cow::Owned(value)
}

pub(crate) fn encode(value: &Value) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|e| ApiError::internal(&e))
}
