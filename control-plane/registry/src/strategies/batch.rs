//! Jobs and CronJobs.
//!
//! Follows `pkg/apis/batch/v1/defaults.go`, `pkg/apis/batch/validation` and `pkg/registry/batch/job` of Kubernetes.

use serde_json::{Value, json};

use super::template::{self, immutable, not_negative};
use super::{Strategy, defaults};
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

pub const JOB: Strategy = Strategy {
    default: |job| {
        default_job(job);
        label(job);
    },
    prepare_create: |job| {
        own_pods(job);
        label(job);
        job.put("/status", json!({}));
    },
    prepare_update: |new, old| {
        for field in ["/spec/selector", "/spec/template/metadata/labels"] {
            if let (false, Some(value)) = (new.has(field), old.pointer(field)) {
                new.put(field, value.clone());
            }
        }
        label(new);
    },
    validate: |job, errors| {
        validate_job(job, "/spec", errors);
        if !job.has("/spec/selector") {
            errors.push(FieldError::required("spec.selector", ""));
        }
    },
    validate_update: |new, old, errors| {
        let mut fixed = vec!["/spec/selector", "/spec/template", "/spec/completionMode"];
        if new.text("/spec/completionMode") != "Indexed" {
            fixed.push("/spec/completions");
        }
        immutable(new, old, &fixed, errors);
    },
    generation: true,
    ..Strategy::PLAIN
};

pub const CRON_JOB: Strategy = Strategy {
    // The jobs' names are this one's and eleven more characters.
    name: |name| {
        validate::subdomain(name)
            .or_else(|| (name.len() > 52).then(|| "must be no more than 52 characters".to_owned()))
    },
    default: |cron| {
        defaults(
            cron,
            [
                ("/spec/concurrencyPolicy", json!("Allow")),
                ("/spec/suspend", json!(false)),
                ("/spec/successfulJobsHistoryLimit", json!(3)),
                ("/spec/failedJobsHistoryLimit", json!(1)),
            ],
        );
        // What else a Job has by default its Jobs get when they are made.
        let spec = "/spec/jobTemplate/spec";
        if cron.has(spec) {
            default_conditions(cron, spec);
            template::default(cron, &format!("{spec}/template"));
        }
    },
    prepare_create: |cron| cron.put("/status", json!({})),
    validate: validate_cron_job,
    generation: true,
    ..Strategy::PLAIN
};

fn default_job(job: &mut Value) {
    if !job.has("/spec/completions") && !job.has("/spec/parallelism") {
        job.put("/spec/completions", 1);
    }
    // Where each index may fail so often by itself, all of them together have no limit.
    let retries = match job.has("/spec/backoffLimitPerIndex") {
        true => i32::MAX,
        false => 6,
    };
    // A pod that still ends has no phase yet for a rule about failures to look at.
    let replacement = match job.has("/spec/podFailurePolicy") {
        true => "Failed",
        false => "TerminatingOrFailed",
    };
    defaults(
        job,
        [
            ("/spec/parallelism", json!(1)),
            ("/spec/backoffLimit", json!(retries)),
            ("/spec/completionMode", json!("NonIndexed")),
            ("/spec/suspend", json!(false)),
            ("/spec/podReplacementPolicy", json!(replacement)),
            ("/spec/manualSelector", json!(false)),
        ],
    );
    default_conditions(job, "/spec");
    template::default(job, "/spec/template");
}

/// The conditions that the failure policy of the `JobSpec` at `spec` looks for are those that hold.
fn default_conditions(object: &mut Value, spec: &str) {
    let rules = object.items_mut(&format!("{spec}/podFailurePolicy/rules"));
    for rule in rules.into_iter().flatten() {
        for condition in rule.items_mut("/onPodConditions").into_iter().flatten() {
            condition.put_default("/status", "True");
        }
    }
}

/// A Job without labels has those of its pods, once they have those that select them.
fn label(job: &mut Value) {
    let own = "/spec/template/metadata/labels";
    let Some(labels) = job.object(own) else {
        return;
    };
    let said = |key: &str| labels.get(key).and_then(Value::as_str);
    let selected = match job.flag("/spec/manualSelector") {
        true => said(JOB_NAME).is_some(),
        false => said(CONTROLLER_UID) == Some(job.text("/metadata/uid")),
    };
    let has = job.object("/metadata/labels");
    if selected && has.is_none_or(serde_json::Map::is_empty) {
        let labels = Value::Object(labels.clone());
        job.put("/metadata/labels", labels);
    }
}

/// Labels the pods of a new Job with its uid, and selects them by it.
fn own_pods(job: &mut Value) {
    let uid = job.text("/metadata/uid").to_owned();
    let name = job.text("/metadata/name").to_owned();
    if !job.has("/spec/template/metadata/labels") {
        job.put("/spec/template/metadata/labels", json!({}));
    }
    let manual = job.flag("/spec/manualSelector");
    let names = [("job-name", &name), (JOB_NAME, &name)];
    let uids = [("controller-uid", &uid), (CONTROLLER_UID, &uid)];
    let labels = if manual { &uids[..0] } else { &uids[..] };
    if let Some(map) = job.pointer_mut("/spec/template/metadata/labels") {
        for (key, value) in names.iter().chain(labels) {
            map[*key] = value.as_str().into();
        }
    }
    if !manual {
        job.put_default("/spec/selector/matchLabels", json!({}));
        job["spec"]["selector"]["matchLabels"][CONTROLLER_UID] = uid.into();
    }
}

fn validate_job(object: &Value, spec: &str, errors: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{spec}/{field}");
    let path = |field: &str| at(field).trim_start_matches('/').replace('/', ".");
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ];
    let pointers = counts.map(at);
    not_negative(object, &pointers.each_ref().map(String::as_str), errors);
    let modes = ["Indexed", "NonIndexed"];
    one_of(
        object,
        &at("completionMode"),
        path("completionMode"),
        &modes,
        errors,
    );
    if object.text(&at("completionMode")) == "Indexed" && !object.has(&at("completions")) {
        errors.push(FieldError::required(
            path("completions"),
            "when completion mode is Indexed",
        ));
    }
    template::validate(object, &at("template"), errors);
    template::restart_policy(object, &at("template"), &["Never", "OnFailure"], errors);
}

fn validate_cron_job(cron: &Value, errors: &mut Vec<FieldError>) {
    let schedule = cron.text("/spec/schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if let Some(why) = schedule_fault(schedule) {
        errors.push(FieldError::invalid("spec.schedule", schedule, why));
    }
    let zone = cron.text("/spec/timeZone");
    if !zone.is_empty() && jiff::tz::TimeZone::get(zone).is_err() {
        errors.push(FieldError::invalid(
            "spec.timeZone",
            zone,
            format!("unknown time zone {zone}"),
        ));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    let path = "spec.concurrencyPolicy".to_owned();
    one_of(cron, "/spec/concurrencyPolicy", path, &policies, errors);
    let counts = [
        "/spec/startingDeadlineSeconds",
        "/spec/successfulJobsHistoryLimit",
        "/spec/failedJobsHistoryLimit",
    ];
    not_negative(cron, &counts, errors);
    validate_job(cron, "/spec/jobTemplate/spec", errors);
}

/// What is wrong with a schedule of five fields (<https://en.wikipedia.org/wiki/Cron>) or of one word.
fn schedule_fault(schedule: &str) -> Option<String> {
    const WORDS: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if schedule.contains("TZ=") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".into());
    }
    if WORDS.contains(&schedule) || schedule.starts_with("@every ") {
        return None;
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        let shown = fields.join(" ");
        let count = fields.len();
        return Some(format!(
            "expected exactly 5 fields, found {count}: [{shown}]"
        ));
    }
    const NAMES: [&str; 19] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun",
        "mon", "tue", "wed", "thu", "fri", "sat",
    ];
    let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    for (field, (low, high)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            let (range, step) = part.split_once('/').unwrap_or((part, "1"));
            if step.parse::<u32>().is_ok_and(|s| s == 0) {
                return Some(format!("step of range should be a positive number: {part}"));
            }
            if step.parse::<u32>().is_err() {
                return Some(format!("failed to parse int from {step}"));
            }
            if matches!(range, "*" | "?") {
                continue;
            }
            for end in range.splitn(2, '-') {
                match end.parse::<u32>() {
                    Ok(n) if n < low => {
                        return Some(format!(
                            "beginning of range ({n}) below minimum ({low}): {part}"
                        ));
                    }
                    Ok(n) if n > high => {
                        return Some(format!("end of range ({n}) above maximum ({high}): {part}"));
                    }
                    Ok(_) => {}
                    Err(_) if NAMES.contains(&end.to_lowercase().as_str()) => {}
                    Err(_) => return Some(format!("failed to parse int from {end}")),
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_its_own_pods_only() {
        let mut job =
            json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        own_pods(&mut job);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {CONTROLLER_UID: "u"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"job-name": "j", JOB_NAME: "j", "controller-uid": "u", CONTROLLER_UID: "u"})
        );
    }

    /// As it is stored: with the defaults, and what a create makes.
    fn made(mut job: Value) -> Value {
        (JOB.default)(&mut job);
        (JOB.prepare_create)(&mut job);
        job
    }

    #[test]
    fn a_job_without_labels_has_those_of_its_pods() {
        let metadata = json!({"name": "j", "uid": "u"});
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {}});
        let job = made(json!({"metadata": metadata, "spec": {"template": template}}));
        let of_pods = job["spec"]["template"]["metadata"]["labels"].clone();
        assert_eq!(of_pods["app"], "a");
        assert_eq!(of_pods[CONTROLLER_UID], "u");
        assert_eq!(job["metadata"]["labels"], of_pods);
        // They come back when somebody takes them away.
        let mut bare = job;
        bare["metadata"]["labels"] = json!({});
        (JOB.default)(&mut bare);
        assert_eq!(bare["metadata"]["labels"], of_pods);

        let own = json!({"name": "j", "uid": "u", "labels": {"app": "a"}});
        let job = made(json!({"metadata": own, "spec": {"template": template}}));
        assert_eq!(job["metadata"]["labels"], json!({"app": "a"}));

        let manual = json!({"manualSelector": true, "selector": {"matchLabels": {"app": "a"}}, "template": template});
        let job = made(json!({"metadata": metadata, "spec": manual}));
        assert_eq!(
            job["metadata"]["labels"],
            json!({"app": "a", "job-name": "j", JOB_NAME: "j"})
        );
    }

    #[test]
    fn the_jobs_of_a_cron_job_get_their_defaults_when_they_are_made() {
        let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
        let spec = json!({"podFailurePolicy": policy, "backoffLimitPerIndex": 2, "template": {"spec": {}}});
        let mut cron = json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": spec}}});
        (CRON_JOB.default)(&mut cron);
        let mut of_cron = cron["spec"]["jobTemplate"]["spec"].clone();
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec});
        (JOB.default)(&mut job);
        let mut of_job = job["spec"].clone();
        assert_eq!(
            of_cron["template"]["spec"]["schedulerName"],
            "default-scheduler"
        );
        for of in [&mut of_cron, &mut of_job] {
            let conditions = of.pointer("/podFailurePolicy/rules/0/onPodConditions");
            assert_eq!(
                conditions,
                Some(&json!([{"type": "DisruptionTarget", "status": "True"}]))
            );
            of.take_at("/podFailurePolicy");
            of.take_at("/template");
        }
        assert_eq!(of_cron, json!({"backoffLimitPerIndex": 2}));
        assert_eq!(
            of_job,
            json!({
                "completions": 1, "parallelism": 1, "completionMode": "NonIndexed", "suspend": false,
                "backoffLimit": i32::MAX, "backoffLimitPerIndex": 2, "podReplacementPolicy": "Failed",
                "manualSelector": false,
            })
        );
    }

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1,15 * mon-fri", "@hourly", "@every 1h"] {
            assert_eq!(schedule_fault(good), None, "{good}");
        }
        for (bad, why) in [
            ("x", "expected exactly 5 fields, found 1: [x]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "* * * * */0",
                "step of range should be a positive number: */0",
            ),
            ("a * * * *", "failed to parse int from a"),
        ] {
            assert_eq!(schedule_fault(bad).as_deref(), Some(why), "{bad}");
        }
    }
}
