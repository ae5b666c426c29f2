//! What a Deployment says of itself: counts and conditions, as `kubectl rollout status` and `wait` read them. Pure.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::rollout::{Limits, Set};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// A deadline that is none.
const NO_DEADLINE: i32 = i32::MAX;

/// What has just been done about the newest ReplicaSet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Newest<'a> {
    Created(&'a ReplicaSet),
    Found(&'a ReplicaSet),
    /// There is none yet: the Deployment is paused.
    None,
}

/// The status after a look at the Deployment's `sets`, and when to look again if nothing happens before.
pub(super) fn status(
    deployment: &Deployment,
    sets: &[ReplicaSet],
    newest: Newest<'_>,
    now: Timestamp,
) -> (DeploymentStatus, Option<SignedDuration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(count).sum::<i32>();
    let of = |count: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        sum(&|set| set.status.as_ref().and_then(count).unwrap_or(0))
    };
    let available = of(|status| status.available_replicas);
    let wanted = sum(&|set| Set::of(0, set).wanted);
    let updated = match newest {
        Newest::Created(set) | Newest::Found(set) => Set::of(0, set).has,
        Newest::None => 0,
    };
    // Zero is written as nothing, as Kubernetes does.
    let some = |number: i32| (number > 0).then_some(number);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(of(|status| Some(status.replicas))),
        updated_replicas: some(updated),
        ready_replicas: some(of(|status| status.ready_replicas)),
        available_replicas: some(available),
        unavailable_replicas: some(wanted - available),
        terminating_replicas: None,
        collision_count: old.collision_count,
        conditions: None,
    };
    let limits = Limits::of(deployment);
    let (progressing, again) = progressing(deployment, &old, &status, limits, newest, now);
    let enough = available >= limits.replicas - limits.max_unavailable;
    let conditions = [
        Some(if enough {
            condition(
                AVAILABLE,
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
            )
        } else {
            condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        }),
        progressing,
        failure(sets),
    ];
    let known = old.conditions.unwrap_or_default();
    let conditions = conditions.into_iter().flatten();
    let conditions: Vec<_> = conditions.map(|new| stamped(new, &known, now)).collect();
    status.conditions = Some(conditions);
    (status, again)
}

fn progressing(
    deployment: &Deployment,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    limits: Limits,
    newest: Newest<'_>,
    now: Timestamp,
) -> (Option<DeploymentCondition>, Option<SignedDuration>) {
    let deadline = deployment
        .spec
        .progress_deadline_seconds
        .unwrap_or(NO_DEADLINE);
    if deadline == NO_DEADLINE {
        return (None, None);
    }
    let known = old
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_.as_deref() == Some(PROGRESSING));
    let reason = known
        .and_then(|known| known.reason.as_deref())
        .unwrap_or_default();
    let say = |status, reason, message: &str| Some(condition(PROGRESSING, status, reason, message));
    if deployment.spec.paused == Some(true) {
        return (
            say("Unknown", "DeploymentPaused", "Deployment is paused"),
            None,
        );
    }
    let (set, created) = match newest {
        Newest::Created(set) => (set.name_any(), true),
        Newest::Found(set) => (set.name_any(), false),
        Newest::None => return (known.cloned(), None),
    };
    if created {
        let message = format!("Created new replica set {set:?}");
        return (say("True", "NewReplicaSetCreated", &message), None);
    }
    let count = |number: Option<i32>| number.unwrap_or(0);
    let all = [new.updated_replicas, new.replicas, new.available_replicas];
    if all
        .into_iter()
        .all(|number| count(number) == limits.replicas)
    {
        let message = format!("ReplicaSet {set:?} has successfully progressed.");
        return (say("True", "NewReplicaSetAvailable", &message), None);
    }
    // A rollout that has ended does not fail later when a pod does.
    if reason == "NewReplicaSetAvailable" && new.replicas == new.updated_replicas {
        return (known.cloned(), None);
    }
    let outdated =
        |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    let moved = count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas);
    let message = format!("ReplicaSet {set:?} is progressing.");
    let stale = matches!(reason, "" | "DeploymentPaused" | "NewReplicaSetAvailable");
    if moved || stale {
        let mut condition = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message);
        condition.last_update_time = Some(Time(now));
        return (
            Some(condition),
            Some(SignedDuration::from_secs(deadline.into())),
        );
    }
    let since = known
        .and_then(|known| known.last_update_time.as_ref())
        .map_or(now, |time| time.0);
    let left = SignedDuration::from_secs(deadline.into()) - now.duration_since(since);
    if left.is_positive() {
        return (known.cloned(), Some(left));
    }
    let message = format!("ReplicaSet {set:?} has timed out progressing.");
    (say("False", "ProgressDeadlineExceeded", &message), None)
}

/// That a ReplicaSet cannot make its pods is the Deployment's trouble too.
fn failure(sets: &[ReplicaSet]) -> Option<DeploymentCondition> {
    let conditions = sets
        .iter()
        .filter_map(|set| set.status.as_ref()?.conditions.as_ref());
    let mut conditions = conditions.flatten();
    let found = conditions.find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(condition(
        REPLICA_FAILURE,
        &text(&found.status),
        &text(&found.reason),
        &text(&found.message),
    ))
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..DeploymentCondition::default()
    }
}

/// With its times: those of the same condition as it is known, as far as they still hold.
fn stamped(
    new: DeploymentCondition,
    known: &[DeploymentCondition],
    now: Timestamp,
) -> DeploymentCondition {
    let now = Some(Time(now));
    let known = known.iter().find(|known| known.type_ == new.type_);
    let same_status = known.filter(|known| known.status == new.status);
    let same =
        same_status.filter(|known| known.reason == new.reason && known.message == new.message);
    let updated = new.last_update_time.clone();
    DeploymentCondition {
        last_transition_time: same_status
            .and_then(|known| known.last_transition_time.clone())
            .or(now.clone()),
        last_update_time: updated
            .or_else(|| same.and_then(|known| known.last_update_time.clone()))
            .or(now),
        ..new
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const START: &str = "2026-01-01T00:00:00Z";

    fn at(seconds: i64) -> Timestamp {
        let start: Timestamp = START.parse().unwrap();
        start + SignedDuration::from_secs(seconds)
    }

    fn deployment(status: Option<DeploymentStatus>) -> Deployment {
        let mut deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 60, "selector": {}, "template": {}},
        }))
        .unwrap();
        deployment.status = status;
        deployment
    }

    fn set(name: &str, wanted: i32, has: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"replicas": wanted, "selector": {}},
            "status": {"replicas": has, "readyReplicas": available, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn reason(status: &DeploymentStatus, type_: &str) -> String {
        let mut conditions = status.conditions.iter().flatten();
        let found = conditions.find(|condition| condition.type_.as_deref() == Some(type_));
        found
            .and_then(|found| found.reason.clone())
            .unwrap_or_default()
    }

    #[test]
    fn a_rollout_is_told_from_its_begin_to_its_end() {
        let new = set("web-2", 2, 0, 0);
        let sets = [new.clone(), set("web-1", 2, 2, 2)];
        let (first, _) = status(&deployment(None), &sets, Newest::Created(&new), at(0));
        assert_eq!(reason(&first, "Progressing"), "NewReplicaSetCreated");
        assert_eq!(reason(&first, "Available"), "MinimumReplicasAvailable");
        assert_eq!(first.observed_generation, Some(2));
        assert_eq!((first.replicas, first.updated_replicas), (Some(2), None));
        let new = set("web-2", 2, 2, 1);
        let sets = [new.clone(), set("web-1", 1, 1, 1)];
        let (second, again) = status(&deployment(Some(first)), &sets, Newest::Found(&new), at(5));
        assert_eq!(reason(&second, "Progressing"), "ReplicaSetUpdated");
        assert_eq!(again, Some(SignedDuration::from_secs(60)));
        let new = set("web-2", 2, 2, 2);
        let sets = [new.clone(), set("web-1", 0, 0, 0)];
        let (third, _) = status(&deployment(Some(second)), &sets, Newest::Found(&new), at(9));
        assert_eq!(reason(&third, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(third.unavailable_replicas, None);
        // The same world says the same.
        let (again, _) = status(
            &deployment(Some(third.clone())),
            &sets,
            Newest::Found(&new),
            at(99),
        );
        assert_eq!(again, third);
    }

    #[test]
    fn a_rollout_that_does_not_move_times_out_and_one_that_ended_does_not() {
        let new = set("web-2", 2, 1, 0);
        let sets = [new.clone(), set("web-1", 2, 2, 2)];
        let (first, _) = status(&deployment(None), &sets, Newest::Found(&new), at(0));
        let (second, again) = status(&deployment(Some(first)), &sets, Newest::Found(&new), at(40));
        assert_eq!(again, Some(SignedDuration::from_secs(20)));
        let (third, _) = status(
            &deployment(Some(second)),
            &sets,
            Newest::Found(&new),
            at(60),
        );
        assert_eq!(reason(&third, "Progressing"), "ProgressDeadlineExceeded");
        let new = set("web-2", 2, 2, 2);
        let (done, _) = status(
            &deployment(None),
            std::slice::from_ref(&new),
            Newest::Found(&new),
            at(0),
        );
        let new = set("web-2", 2, 2, 0);
        let (later, _) = status(
            &deployment(Some(done)),
            std::slice::from_ref(&new),
            Newest::Found(&new),
            at(999),
        );
        assert_eq!(reason(&later, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(reason(&later, "Available"), "MinimumReplicasUnavailable");
    }
}
