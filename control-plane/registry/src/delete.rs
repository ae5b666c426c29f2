//! Delete: at once, with grace, or after the finalizers; one object or many.

use std::sync::Arc;

use serde_json::Value;

use crate::commit::{Change, Outcome};
use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::Kind;
use crate::list::List;
use crate::meta;
use crate::object::Object;
use crate::options::{DeleteOptions, ListOptions, Propagation};
use crate::registry::Registry;
use crate::strategies::Plan;

const TRIES: usize = 8;

/// What became of the object.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// It stays for a while (grace, finalizers), or its kind answers with the object in any case.
    Object(Arc<Object>),
    /// It is gone; this was it.
    Gone(Arc<Object>),
}

/// What a delete makes of an object.
enum Step {
    /// Nothing holds it.
    Remove,
    /// It is marked and waits.
    Mark(Value),
    /// It waits already.
    Pending,
}

impl Registry {
    /// Deletes an object, or begins to: one with grace or finalizers gets its `deletionTimestamp` and stays.
    ///
    /// # Errors
    /// 404, 409 when a precondition does not hold, 403 for what the cluster needs.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        for _ in 0..TRIES {
            let current = self.get(kind, namespace, name, None).await?;
            check_preconditions(kind, &current, options)?;
            if let Some(why) = (kind.strategy.keep)(name) {
                return Err(ApiError::forbidden(kind, name, why));
            }
            let old = current.value();
            let mut marked = old.clone();
            propagate(&mut marked, options.propagation);
            let step = step(kind, &marked, options.grace_period_seconds);
            let (value, plan) = match &step {
                Step::Pending if marked != old => (Some(&marked), Plan::default()),
                Step::Pending => return Ok(Deleted::Object(current)),
                Step::Mark(value) => (Some(value), Plan::default()),
                Step::Remove => (None, self.give_back(kind, &old)?),
            };
            if options.dry_run {
                return Ok(answer(kind, &step, current));
            }
            let change = Change::replace(kind, &current, value, plan);
            match self.commit(change).await? {
                Outcome::Done(revision, _) => {
                    tracing::debug!(
                        kind = kind.kind,
                        namespace,
                        name,
                        uid = &*current.uid,
                        revision,
                        "deleted"
                    );
                    let value = value.cloned().unwrap_or(old);
                    let object = Arc::new(Object::new(kind, value, revision));
                    if kind.kind == "CustomResourceDefinition" {
                        self.cache().wait(revision).await?;
                        Box::pin(self.clean_up(&object)).await?;
                    }
                    return Ok(answer(kind, &step, object));
                }
                Outcome::Stale(revision) | Outcome::Again(revision) => {
                    self.cache().wait(revision).await?;
                }
                Outcome::Refused(why) => return Err(ApiError::invalid(kind, name, &[why])),
            }
        }
        Err(ApiError::modified(kind, name))
    }

    /// Deletes every object that the options select; answers them as they were.
    ///
    /// # Errors
    /// The first object's that could not be deleted.
    pub async fn delete_collection(
        &self,
        kind: &'static Kind,
        namespace: &str,
        which: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List> {
        let list = self.list(kind, namespace, which).await?;
        for object in &list.items {
            match self
                .delete(kind, &object.namespace, &object.name, options)
                .await
            {
                Ok(_) => {}
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    fn give_back(&self, kind: &Kind, old: &Value) -> Result<Plan> {
        match kind.strategy.claim {
            Some(claim) => claim(self.claims(), Some(old), None)
                .map_err(|errors| ApiError::invalid(kind, old.text("/metadata/name"), &errors)),
            None => Ok(Plan::default()),
        }
    }
}

/// Tells the garbage collector what to do first, by the finalizers that it takes away when it has done it.
fn propagate(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let own = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some("foregroundDeletion"),
        Propagation::Orphan => Some("orphan"),
    };
    let before = object.items("/metadata/finalizers");
    let others = before
        .iter()
        .filter(|f| *f != "foregroundDeletion" && *f != "orphan");
    let after: Vec<Value> = others.cloned().chain(own.map(Value::from)).collect();
    if !after.is_empty() || !before.is_empty() {
        object.put("/metadata/finalizers", after);
    }
}

fn answer(kind: &Kind, step: &Step, object: Arc<Object>) -> Deleted {
    match step {
        Step::Remove if !kind.strategy.returns_deleted => Deleted::Gone(object),
        _ => Deleted::Object(object),
    }
}

fn step(kind: &Kind, old: &Value, asked: Option<i64>) -> Step {
    let grace = (kind.strategy.grace)(old, asked);
    let held = meta::held(kind, old);
    if grace == 0 && !held {
        return Step::Remove;
    }
    let mut new = old.clone();
    if let Ok(began) = old
        .text("/metadata/deletionTimestamp")
        .parse::<jiff::Timestamp>()
    {
        // A deletion that is under way can only be made shorter.
        let given = old
            .integer("/metadata/deletionGracePeriodSeconds")
            .unwrap_or(0);
        if grace >= given || (asked.is_none() && grace != 0) {
            return Step::Pending;
        }
        // A time without bounds counts from now.
        let ends = began
            .checked_add(jiff::SignedDuration::from_secs(grace - given))
            .unwrap_or_else(|_| from_now(grace));
        new.put("/metadata/deletionTimestamp", meta::time(ends));
    } else {
        let ends = from_now(grace);
        new.put("/metadata/deletionTimestamp", meta::time(ends));
        (kind.strategy.terminate)(&mut new);
        if let Some(generation) = old.integer("/metadata/generation") {
            new.put("/metadata/generation", generation + 1);
        }
    }
    new.put("/metadata/deletionGracePeriodSeconds", grace);
    Step::Mark(new)
}

/// In that many seconds, or at the end of all time: what clients ask for has no bounds.
fn from_now(seconds: i64) -> jiff::Timestamp {
    let later = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds));
    later.unwrap_or(jiff::Timestamp::MAX)
}

fn check_preconditions(kind: &Kind, current: &Object, options: &DeleteOptions) -> Result<()> {
    let refuse = |what: &str, asked: &str, is: &str, then: &str| {
        let mut error = ApiError::conflict(kind, &current.name, "");
        error.message = format!(
            "Operation cannot be fulfilled on {} \"{}\": the {what} in the precondition ({asked}) does not match the {what} in record ({is}). The object might have been {then}",
            kind.kind, current.name
        );
        Err(error)
    };
    if let Some(uid) = &options.uid
        && **uid != *current.uid
    {
        return refuse("UID", uid, &current.uid, "deleted and then recreated");
    }
    if let Some(version) = &options.resource_version
        && *version != current.revision.to_string()
    {
        let is = current.revision.to_string();
        return refuse("ResourceVersion", version, &is, "modified");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    #[test]
    fn a_deletion_under_way_only_gets_shorter() {
        let kind = kinds::find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n"}});
        let Step::Mark(marked) = step(kind, &pod, None) else {
            panic!("a bound pod is given time");
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert!(matches!(step(kind, &marked, None), Step::Pending));
        assert!(matches!(step(kind, &marked, Some(60)), Step::Pending));
        let Step::Mark(shorter) = step(kind, &marked, Some(10)) else {
            panic!("it can be shortened");
        };
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 10);
        assert_eq!(shorter["metadata"]["generation"], 2);
        assert!(matches!(step(kind, &shorter, Some(0)), Step::Remove));
    }

    #[test]
    fn what_is_owned_goes_first_or_stays() {
        let mut map = json!({"metadata": {"name": "m", "finalizers": ["example.com/x", "orphan"]}});
        propagate(&mut map, Some(Propagation::Foreground));
        assert_eq!(
            map["metadata"]["finalizers"],
            json!(["example.com/x", "foregroundDeletion"])
        );
        propagate(&mut map, Some(Propagation::Orphan));
        assert_eq!(
            map["metadata"]["finalizers"],
            json!(["example.com/x", "orphan"])
        );
        let kept = map.clone();
        propagate(&mut map, None);
        assert_eq!(map, kept);
        propagate(&mut map, Some(Propagation::Background));
        assert_eq!(map["metadata"]["finalizers"], json!(["example.com/x"]));
        let mut plain = json!({"metadata": {"name": "m"}});
        propagate(&mut plain, Some(Propagation::Background));
        assert_eq!(plain, json!({"metadata": {"name": "m"}}));
    }

    #[test]
    fn finalizers_hold_an_object() {
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let map = json!({"metadata": {"name": "m", "finalizers": ["example.com/x"]}});
        let Step::Mark(marked) = step(kind, &map, Some(0)) else {
            panic!("the finalizer holds it");
        };
        assert!(matches!(step(kind, &marked, Some(0)), Step::Pending));
        assert!(!meta::ended(kind, &marked));
        let mut free = marked;
        free.put("/metadata/finalizers", json!([]));
        assert!(meta::ended(kind, &free));
    }
}
