//! LimitRanges and ResourceQuotas, held against what is written: the admission plugins LimitRanger and ResourceQuota of
//! Kubernetes.
//!
//! A quota's `status.used` is written in the transaction of the object that takes of it, on the condition that nobody else
//! wrote it: so two that come together cannot both have the last piece, whichever servers they come to. What is given
//! back the quota controller finds out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use control_plane_quota::quota::{self, Demand};
use control_plane_quota::usage::Resource;
use control_plane_quota::{limits, list};
use control_plane_store::{Compare, Op};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::commit::encode;
use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::{self, Kind, Subresource};
use crate::registry::Registry;

/// Who writes in a namespace whose quotas are written too: one at a time, or most would try in vain.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// What a write takes of its namespace's quotas.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    pub guards: Vec<Compare>,
    pub writes: Vec<Op>,
    /// Held until readers see the transaction.
    turn: Option<OwnedMutexGuard<()>>,
}

/// A write that may be charged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing<'a> {
    pub kind: &'static Kind,
    pub subresource: Option<Subresource>,
    pub namespace: &'a str,
    pub old: Option<&'a Value>,
    pub new: &'a Value,
}

impl Turns {
    async fn take(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(namespace.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

impl Charge {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl Registry {
    /// Gives a new pod what its namespace's LimitRanges say, where it says nothing itself.
    pub(crate) fn limit(&self, kind: &Kind, object: &mut Value) {
        if kind.group.is_empty() && kind.kind == "Pod" {
            let ranges = self.of_namespace("limitranges", object.text("/metadata/namespace"));
            if !ranges.is_empty() {
                limits::default(&ranges, object);
            }
        }
    }

    /// Refuses what is out of the bounds of its namespace's LimitRanges, and works out what it takes of the quotas.
    ///
    /// # Errors
    /// 403, in Kubernetes' words.
    pub(crate) async fn charge(&self, writing: &Writing<'_>) -> Result<Charge> {
        let Writing {
            kind,
            namespace,
            new,
            ..
        } = *writing;
        if !kind.namespaced || !counts(writing) {
            return Ok(Charge::default());
        }
        let refuse = |why: &str| ApiError::forbidden(kind, new.text("/metadata/name"), why);
        if bounded(writing) {
            let ranges = self.of_namespace("limitranges", namespace);
            let faults = limits::check(&ranges, resource(kind), new);
            match faults.as_slice() {
                [] => {}
                [one] => return Err(refuse(one)),
                many => return Err(refuse(&format!("[{}]", many.join(", ")))),
            }
        }
        if self.cache().count(quotas(), namespace) == 0 {
            return Ok(Charge::default());
        }
        let turn = self.turns().take(namespace).await;
        let mut charged = self.charged(writing);
        if charged.is_err() {
            // The refusal must be of the latest state; what is let through the transaction compares.
            self.settle(None).await?;
            charged = self.charged(writing);
        }
        let mut charge = charged.map_err(|why| refuse(&why))??;
        charge.turn = (!charge.is_empty()).then_some(turn);
        Ok(charge)
    }

    /// Lets the next one in, once readers see this write.
    pub(crate) async fn charged_at(&self, charge: Charge, revision: u64) -> Result<()> {
        if !charge.is_empty() {
            self.cache().wait(revision).await?;
        }
        Ok(())
    }

    fn charged(&self, writing: &Writing<'_>) -> Result<Result<Charge>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let demand = Demand {
            resource: resource(writing.kind),
            object: writing.new,
            old: writing.old,
            now: i64::try_from(now).unwrap_or(i64::MAX),
        };
        let mut charge = Charge::default();
        let scope = format!("{}/", writing.namespace);
        let (all, _) = self.cache().list(quotas(), &scope, "");
        for quota in all {
            let mut value = quota.value();
            let Some(used) = quota::charge(&value, &demand)? else {
                continue;
            };
            value.put("/status/used", list(&used));
            value.take_at("/metadata/resourceVersion");
            let key = quotas().key(&quota.namespace, &quota.name);
            let bytes = match encode(&value) {
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            charge
                .guards
                .push(Compare::unchanged(key.clone(), quota.revision));
            charge.writes.push(Op::put(key, bytes));
        }
        Ok(Ok(charge))
    }

    fn of_namespace(&self, plural: &str, namespace: &str) -> Vec<Value> {
        let kind = row(plural);
        if self.cache().count(kind, namespace) == 0 {
            return Vec::new();
        }
        let (all, _) = self.cache().list(kind, &format!("{namespace}/"), "");
        all.iter().map(|object| object.value()).collect()
    }
}

fn row(plural: &str) -> &'static Kind {
    kinds::find("", "v1", plural).expect("the table of kinds has LimitRanges and ResourceQuotas")
}

fn quotas() -> &'static Kind {
    row("resourcequotas")
}

fn resource(kind: &Kind) -> Resource<'static> {
    Resource {
        group: kind.group,
        plural: kind.plural,
    }
}

/// Whether a write is one that Kubernetes charges for. Events cost nothing, and what a pod asks for changes by its resize
/// only.
fn counts(writing: &Writing<'_>) -> bool {
    let Writing {
        kind,
        subresource,
        old,
        ..
    } = *writing;
    let core = kind.group.is_empty();
    match (kind.plural, subresource) {
        ("events", _) => false,
        ("pods", Some(Subresource::Resize)) => core,
        (_, Some(_)) => false,
        (_, None) if old.is_none() => true,
        (plural, None) => core && matches!(plural, "services" | "persistentvolumeclaims"),
    }
}

/// Whether LimitRanges are asked.
fn bounded(writing: &Writing<'_>) -> bool {
    writing.kind.group.is_empty()
        && matches!(writing.kind.plural, "pods" | "persistentvolumeclaims")
}
