//! What a Job needs next, from its pods as they are. Pure.
//!
//! Pods that have ended are counted as long as they exist, and a count never goes back. Kubernetes holds them by a finalizer
//! until they are counted; here who deletes a finished pod before the Job has ended may see its work done again.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::workload::{is_active, is_ready, phase};

/// The label and annotation of an Indexed Job's pods.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The delay before a pod is made after one has failed; it doubles with each in a row.
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(10);
const LAST_DELAY: SignedDuration = SignedDuration::from_secs(600);

/// What is to be done, and what the Job then says of itself.
#[derive(Debug)]
pub(super) struct Plan {
    pub status: JobStatus,
    /// How many pods to make, and of an Indexed Job of which indexes.
    pub make: usize,
    pub indexes: Vec<i32>,
    /// Pods to delete, by their places in the list.
    pub delete: Vec<usize>,
    /// When to look again, if nothing happens before.
    pub again: Option<SignedDuration>,
    /// The Job has ended so long ago that it is to go.
    pub expired: bool,
}

/// An end of a Job.
enum End {
    Complete,
    Failed(&'static str, &'static str),
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn finished_at(job: &Job) -> Option<Timestamp> {
    let conditions = job
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut ends = conditions.filter(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    });
    let end = ends.next()?;
    Some(
        end.last_transition_time
            .as_ref()
            .map_or(Timestamp::MIN, |time| time.0),
    )
}

pub(super) fn plan(job: &Job, pods: &[Pod], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let mut plan = Plan {
        status: job.status.clone().unwrap_or_default(),
        make: 0,
        indexes: Vec::new(),
        delete: Vec::new(),
        again: None,
        expired: false,
    };
    let active: Vec<usize> = (0..pods.len()).filter(|at| is_active(&pods[*at])).collect();
    if let Some(ended) = finished_at(job) {
        plan.delete = active;
        if let Some(ttl) = spec.ttl_seconds_after_finished {
            let left = SignedDuration::from_secs(ttl.into()) - now.duration_since(ended);
            plan.expired = !left.is_positive();
            plan.again = Some(left).filter(|left| left.is_positive());
        }
        return plan;
    }
    count(&mut plan.status, &spec, pods);
    let suspended = spec.suspend == Some(true);
    set_suspended(&mut plan.status, suspended, now);
    if suspended {
        plan.status.start_time = None;
        plan.delete = active;
        return plan;
    }
    let started = plan.status.start_time.get_or_insert(Time(now)).0;
    if let Some(end) = end(&spec, &plan.status, pods, active.len(), started, now) {
        finish(&mut plan.status, &end, now);
        plan.delete = active;
        plan.again = spec
            .ttl_seconds_after_finished
            .map(|ttl| SignedDuration::from_secs(ttl.into()));
        return plan;
    }
    if let Some(deadline) = spec.active_deadline_seconds {
        plan.again = Some(SignedDuration::from_secs(deadline) - now.duration_since(started));
    }
    let wanted = wanted_active(&spec, &plan.status, active.len());
    if active.len() > wanted {
        plan.delete = active[wanted..].to_vec();
    } else if active.len() < wanted {
        let wait = delay(pods, now);
        if wait.is_positive() {
            plan.again = Some(plan.again.map_or(wait, |again| again.min(wait)));
        } else {
            plan.make = wanted - active.len();
            if is_indexed(&spec) {
                plan.indexes = free_indexes(&spec, pods, plan.make);
                plan.make = plan.indexes.len();
            }
        }
    }
    plan
}

fn count(status: &mut JobStatus, spec: &JobSpec, pods: &[Pod]) {
    let of_phase = |wanted: &str| pods.iter().filter(|pod| phase(pod) == wanted).count();
    let active = || pods.iter().filter(|pod| is_active(pod));
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    // Zero is written as nothing, as Kubernetes does.
    let some = |number: i32| (number > 0).then_some(number);
    let mut succeeded = number(of_phase("Succeeded"));
    if is_indexed(spec) {
        // An index counts once, however many of its pods have succeeded.
        let indexes = succeeded_indexes(spec, pods);
        succeeded = number(indexes.len());
        status.completed_indexes = (!indexes.is_empty()).then(|| ranges(&indexes));
    }
    status.succeeded = some(succeeded.max(status.succeeded.unwrap_or(0)));
    status.failed = some(number(of_phase("Failed")).max(status.failed.unwrap_or(0)));
    status.active = some(number(active().count()));
    status.ready = Some(number(active().filter(|pod| is_ready(pod)).count()));
    let going = |pod: &&Pod| pod.metadata.deletion_timestamp.is_some() && !is_finished(pod);
    status.terminating = Some(number(pods.iter().filter(going).count()));
}

fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn end(
    spec: &JobSpec,
    status: &JobStatus,
    pods: &[Pod],
    active: usize,
    started: Timestamp,
    now: Timestamp,
) -> Option<End> {
    let limit = spec.backoff_limit.unwrap_or(6);
    let on_failure = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        == Some("OnFailure");
    let restarts: i32 = pods.iter().filter(|pod| is_active(pod)).map(restarts).sum();
    let too_often =
        status.failed.unwrap_or(0) > limit || (on_failure && restarts > 0 && restarts >= limit);
    if too_often {
        return Some(End::Failed(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ));
    }
    let deadline = spec.active_deadline_seconds.map(SignedDuration::from_secs);
    if deadline.is_some_and(|deadline| now.duration_since(started) >= deadline) {
        return Some(End::Failed(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ));
    }
    let succeeded = status.succeeded.unwrap_or(0);
    let complete = match spec.completions {
        Some(completions) => succeeded >= completions,
        // A work queue: the first that ends well says that there is no more, and the others end by themselves.
        None => succeeded > 0 && active == 0,
    };
    complete.then_some(End::Complete)
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.iter();
    let all = status.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    all.map(|status| status.restart_count).sum()
}

fn wanted_active(spec: &JobSpec, status: &JobStatus, active: usize) -> usize {
    let number = |number: i32| usize::try_from(number).unwrap_or(0);
    let parallelism = number(spec.parallelism.unwrap_or(1));
    let succeeded = status.succeeded.unwrap_or(0);
    match spec.completions {
        Some(completions) => parallelism.min(number(completions - succeeded)),
        None if succeeded > 0 => active.min(parallelism),
        None => parallelism,
    }
}

/// How long to wait for the next pod: the longer, the more have failed since one succeeded.
fn delay(pods: &[Pod], now: Timestamp) -> SignedDuration {
    let ended = |wanted: &'static str| {
        pods.iter()
            .filter(move |pod| phase(pod) == wanted)
            .filter_map(ended_at)
    };
    let success = ended("Succeeded").max();
    let failures = ended("Failed").filter(|at| success.is_none_or(|success| *at > success));
    let failures: Vec<Timestamp> = failures.collect();
    let Some(last) = failures.iter().max() else {
        return SignedDuration::ZERO;
    };
    let doubled = u32::try_from(failures.len() - 1)
        .unwrap_or(u32::MAX)
        .min(10);
    let delay = FIRST_DELAY
        .checked_mul(1 << doubled)
        .unwrap_or(LAST_DELAY)
        .min(LAST_DELAY);
    delay - now.duration_since(*last)
}

/// When the last of its containers ended.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|status| {
        let state = status.state.as_ref()?.terminated.as_ref()?;
        state.finished_at.as_ref().map(|time| time.0)
    });
    ends.max()
        .or_else(|| pod.creation_timestamp().map(|time| time.0))
}

fn index_of(pod: &Pod) -> Option<i32> {
    let index = pod.annotations().get(INDEX)?;
    index.parse().ok()
}

fn succeeded_indexes(spec: &JobSpec, pods: &[Pod]) -> BTreeSet<i32> {
    let succeeded = pods.iter().filter(|pod| phase(pod) == "Succeeded");
    let all = 0..spec.completions.unwrap_or(0);
    succeeded
        .filter_map(index_of)
        .filter(|index| all.contains(index))
        .collect()
}

/// The lowest indexes that neither have succeeded nor are at work.
fn free_indexes(spec: &JobSpec, pods: &[Pod], count: usize) -> Vec<i32> {
    let mut taken = succeeded_indexes(spec, pods);
    // One that is about to go may still be at work.
    let at_work = pods.iter().filter(|pod| !is_finished(pod));
    taken.extend(at_work.filter_map(index_of));
    let all = 0..spec.completions.unwrap_or(0);
    all.filter(|index| !taken.contains(index))
        .take(count)
        .collect()
}

/// `0-2,5`.
fn ranges(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let texts = ranges.into_iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    texts.collect::<Vec<_>>().join(",")
}

fn set_suspended(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    const TYPE: &str = "Suspended";
    let known = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == TYPE);
    let said = known.map(|known| known.status == "True");
    if said == Some(suspended) || (said.is_none() && !suspended) {
        return;
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != TYPE);
    conditions.push(if suspended {
        condition(TYPE, "True", "JobSuspended", "Job suspended", now)
    } else {
        condition(TYPE, "False", "JobResumed", "Job resumed", now)
    });
}

fn finish(status: &mut JobStatus, end: &End, now: Timestamp) {
    status.active = None;
    status.ready = Some(0);
    let conditions = status.conditions.get_or_insert_default();
    match end {
        End::Complete => {
            let message = "Reached expected number of succeeded pods";
            for type_ in ["SuccessCriteriaMet", "Complete"] {
                conditions.push(condition(type_, "True", "CompletionsReached", message, now));
            }
            status.completion_time = Some(Time(now));
        }
        End::Failed(reason, message) => {
            for type_ in ["FailureTarget", "Failed"] {
                conditions.push(condition(type_, "True", reason, message, now));
            }
        }
    }
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const START: &str = "2026-01-01T00:00:00Z";

    fn at(seconds: i64) -> Timestamp {
        START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    fn job(spec: Value) -> Job {
        let mut job = json!({"metadata": {"name": "j"}, "spec": spec});
        job["spec"]["template"] = json!({"spec": {"containers": [], "restartPolicy": "Never"}});
        serde_json::from_value(job).unwrap()
    }

    fn pod(phase: &str, seconds: i64) -> Pod {
        let ended = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "finishedAt": at(seconds)}}}]);
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "status": {"phase": phase, "containerStatuses": ended},
        }))
        .unwrap()
    }

    fn indexed(phase: &str, index: i32) -> Pod {
        let mut pod = pod(phase, 0);
        pod.annotations_mut()
            .insert(INDEX.to_owned(), index.to_string());
        pod
    }

    fn ended(plan: &Plan) -> Option<&str> {
        let last = plan.status.conditions.as_ref()?.last()?;
        matches!(last.type_.as_str(), "Complete" | "Failed")
            .then(|| last.reason.as_deref().unwrap_or_default())
    }

    #[test]
    fn as_many_pods_run_as_may_and_no_more_than_are_still_needed() {
        let five = job(json!({"completions": 5, "parallelism": 3}));
        assert_eq!(plan(&five, &[], at(0)).make, 3);
        let run = [
            pod("Succeeded", 1),
            pod("Succeeded", 1),
            pod("Succeeded", 1),
            pod("Running", 0),
        ];
        let next = plan(&five, &run, at(2));
        assert_eq!(
            (next.make, next.status.succeeded, next.status.active),
            (1, Some(3), Some(1))
        );
        let mut fewer = five.clone();
        fewer.spec.as_mut().unwrap().parallelism = Some(0);
        assert_eq!(plan(&fewer, &run, at(2)).delete, [3]);
        let all: Vec<Pod> = (0..5).map(|_| pod("Succeeded", 1)).collect();
        let done = plan(&five, &all, at(3));
        assert_eq!(ended(&done), Some("CompletionsReached"));
        assert!(done.status.completion_time.is_some());
        // It stays done when its pods are removed.
        let mut done_job = five;
        done_job.status = Some(done.status);
        let later = plan(&done_job, &[], at(9));
        assert_eq!((later.make, later.status), (0, done_job.status.unwrap()));
    }

    #[test]
    fn failures_delay_the_next_pod_and_too_many_end_the_job() {
        let one = job(json!({"completions": 1, "backoffLimit": 2}));
        let once = [pod("Failed", 0)];
        let waiting = plan(&one, &once, at(4));
        assert_eq!(
            (waiting.make, waiting.again),
            (0, Some(SignedDuration::from_secs(6)))
        );
        assert_eq!(plan(&one, &once, at(10)).make, 1);
        let twice = [pod("Failed", 0), pod("Failed", 10)];
        assert_eq!(plan(&one, &twice, at(29)).make, 0);
        assert_eq!(plan(&one, &twice, at(30)).make, 1);
        let thrice = [
            pod("Failed", 0),
            pod("Failed", 10),
            pod("Failed", 30),
            pod("Running", 0),
        ];
        let failed = plan(&one, &thrice, at(31));
        assert_eq!(ended(&failed), Some("BackoffLimitExceeded"));
        assert_eq!(failed.delete, [3]);
    }

    #[test]
    fn a_deadline_ends_a_job_and_a_ttl_removes_it() {
        let mut late = job(
            json!({"completions": 1, "activeDeadlineSeconds": 5, "ttlSecondsAfterFinished": 7}),
        );
        late.status = Some(plan(&late, &[], at(0)).status);
        let run = [pod("Running", 0)];
        assert_eq!(
            plan(&late, &run, at(2)).again,
            Some(SignedDuration::from_secs(3))
        );
        let over = plan(&late, &run, at(5));
        assert_eq!(ended(&over), Some("DeadlineExceeded"));
        late.status = Some(over.status);
        assert!(!plan(&late, &[], at(11)).expired);
        assert!(plan(&late, &[], at(12)).expired);
    }

    #[test]
    fn a_suspended_job_has_no_pods_until_it_is_resumed() {
        let mut held = job(json!({"completions": 1, "suspend": true}));
        let idle = plan(&held, &[pod("Running", 0)], at(0));
        assert_eq!(
            (
                idle.make,
                idle.delete.len(),
                idle.status.start_time.is_none()
            ),
            (0, 1, true)
        );
        held.status = Some(idle.status);
        held.spec.as_mut().unwrap().suspend = Some(false);
        let resumed = plan(&held, &[], at(9));
        assert_eq!(resumed.make, 1);
        assert_eq!(
            resumed.status.conditions.unwrap()[0].reason.as_deref(),
            Some("JobResumed")
        );
    }

    #[test]
    fn each_index_is_worked_on_by_one_pod_until_it_has_succeeded() {
        let six = job(json!({"completions": 6, "parallelism": 4, "completionMode": "Indexed"}));
        let run = [
            indexed("Succeeded", 0),
            indexed("Succeeded", 2),
            indexed("Succeeded", 1),
            indexed("Running", 4),
        ];
        let next = plan(&six, &run, at(1));
        assert_eq!(next.status.completed_indexes.as_deref(), Some("0-2"));
        assert_eq!(next.indexes, [3, 5]);
    }

    #[test]
    fn a_work_queue_ends_with_its_last_worker() {
        let queue = job(json!({"parallelism": 2}));
        assert_eq!(plan(&queue, &[], at(0)).make, 2);
        let one_done = [pod("Succeeded", 1), pod("Running", 0)];
        let next = plan(&queue, &one_done, at(1));
        assert_eq!((next.make, ended(&next)), (0, None));
        let all_done = [pod("Succeeded", 1), pod("Succeeded", 2)];
        assert_eq!(
            ended(&plan(&queue, &all_done, at(2))),
            Some("CompletionsReached")
        );
    }
}
