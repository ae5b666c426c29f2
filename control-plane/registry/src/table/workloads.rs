//! The columns of what runs pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Column, NAME, Printer, age, column, count, duration, labels, name, or_none, since, wide,
};
use crate::json::Json;
use crate::labels::text;

const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide(
    "Images",
    "Images referenced by each container in the template.",
);
const SELECTOR: Column = wide("Selector", "The labels of the pods that belong to it.");

pub const DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Number of the pod with ready state."),
        count("Up-to-date", "Pods of the newest template."),
        count(
            "Available",
            "Pods that have been ready for minReadySeconds.",
        ),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |deployment, now| {
        vec![
            name(deployment),
            ready(deployment),
            number(deployment, "/status/updatedReplicas"),
            number(deployment, "/status/availableReplicas"),
            age(deployment, now),
            containers(deployment, "/spec/template", "name"),
            containers(deployment, "/spec/template", "image"),
            selector(deployment),
        ]
    },
    ..super::PLAIN
};

pub const REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        count("Desired", "The number of pods that are wanted."),
        count("Current", "The number of pods that there are."),
        count("Ready", "The number of pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |set, now| {
        vec![
            name(set),
            number(set, "/spec/replicas"),
            number(set, "/status/replicas"),
            number(set, "/status/readyReplicas"),
            age(set, now),
            containers(set, "/spec/template", "name"),
            containers(set, "/spec/template", "image"),
            selector(set),
        ]
    },
    ..super::PLAIN
};

pub const REPLICATION_CONTROLLER: Printer = REPLICA_SET;

pub const STATEFUL_SET: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Number of the pod with ready state."),
        AGE,
        CONTAINERS,
        IMAGES,
    ],
    row: |set, now| {
        vec![
            name(set),
            ready(set),
            age(set, now),
            containers(set, "/spec/template", "name"),
            containers(set, "/spec/template", "image"),
        ]
    },
    ..super::PLAIN
};

pub const DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        count("Desired", "The number of nodes that should run a pod."),
        count("Current", "The number of nodes that run one."),
        count("Ready", "The number of nodes whose pod is ready."),
        count(
            "Up-to-date",
            "The number of nodes with a pod of the newest template.",
        ),
        count("Available", "The number of nodes with an available pod."),
        column("Node Selector", "The labels of the nodes."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |set, now| {
        vec![
            name(set),
            number(set, "/status/desiredNumberScheduled"),
            number(set, "/status/currentNumberScheduled"),
            number(set, "/status/numberReady"),
            number(set, "/status/updatedNumberScheduled"),
            number(set, "/status/numberAvailable"),
            labels(set, "/spec/template/spec/nodeSelector"),
            age(set, now),
            containers(set, "/spec/template", "name"),
            containers(set, "/spec/template", "image"),
            selector(set),
        ]
    },
    ..super::PLAIN
};

pub const CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Whose revision it is."),
        count("Revision", "The number of the revision."),
        AGE,
    ],
    row: |revision, now| {
        let owners = revision.items("/metadata/ownerReferences");
        let owner = owners.iter().find(|o| o.flag("/controller"));
        let owner = owner.map_or(String::new(), |o| {
            let group = o.text("/apiVersion").split_once('/').map_or("", |(g, _)| g);
            let kind = o.text("/kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", o.text("/name"))
        });
        vec![
            name(revision),
            or_none(&owner),
            revision["revision"].clone(),
            age(revision, now),
        ]
    },
    ..super::PLAIN
};

pub const POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        column("Containers", "Names of each container in the template."),
        column(
            "Images",
            "Images referenced by each container in the template.",
        ),
        column("Pod Labels", "The labels of the template."),
    ],
    row: |template, _| {
        vec![
            name(template),
            containers(template, "/template", "name"),
            containers(template, "/template", "image"),
            labels(template, "/template/metadata/labels"),
        ]
    },
    ..super::PLAIN
};

pub const JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "What has become of the job."),
        column("Completions", "How many pods have succeeded, of how many."),
        column("Duration", "How long the job ran."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |job, now| {
        vec![
            name(job),
            job_status(job).into(),
            completions(job).into(),
            job_duration(job, now).into(),
            age(job, now),
            containers(job, "/spec/template", "name"),
            containers(job, "/spec/template", "image"),
            selector(job),
        ]
    },
    ..super::PLAIN
};

pub const CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Schedule", "When it starts a job."),
        column("Timezone", "The time zone of the schedule."),
        column("Suspend", "Whether it starts none for now."),
        count("Active", "The number of its jobs that run."),
        column("Last Schedule", "How long ago it started a job."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |cron, now| {
        let last = cron.text("/status/lastScheduleTime");
        let last = if last.is_empty() {
            "<none>".to_owned()
        } else {
            since(last, now)
        };
        let template = "/spec/jobTemplate/spec/template";
        vec![
            name(cron),
            cron["spec"]["schedule"].clone(),
            or_none(cron.text("/spec/timeZone")),
            json!(if cron.flag("/spec/suspend") {
                "True"
            } else {
                "False"
            }),
            json!(cron.items("/status/active").len()),
            last.into(),
            age(cron, now),
            containers(cron, template, "name"),
            containers(cron, template, "image"),
            or_none(&text(&cron["spec"]["jobTemplate"]["spec"]["selector"])),
        ]
    },
    ..super::PLAIN
};

pub const AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        column("Reference", "What is scaled."),
        column("Targets", "What is measured, and what it should be."),
        column("MinPods", "The smallest number of pods."),
        count("MaxPods", "The largest number of pods."),
        count("Replicas", "The number of pods that there are."),
        AGE,
    ],
    row: |autoscaler, now| {
        let current = autoscaler.items("/status/currentMetrics");
        let targets: Vec<String> = autoscaler
            .items("/spec/metrics")
            .iter()
            .enumerate()
            .map(|(at, metric)| target(metric, current.get(at)))
            .collect();
        scaled(autoscaler, &or_none(&targets.join(", ")), now)
    },
    ..super::PLAIN
};

pub const AUTOSCALER_V1: Printer = Printer {
    row: |autoscaler, now| {
        let shown = |pointer: &str| {
            autoscaler
                .integer(pointer)
                .map_or("<unknown>".to_owned(), |n| format!("{n}%"))
        };
        let targets = format!(
            "cpu: {}/{}",
            shown("/status/currentCPUUtilizationPercentage"),
            shown("/spec/targetCPUUtilizationPercentage")
        );
        scaled(autoscaler, &targets.into(), now)
    },
    ..AUTOSCALER
};

pub const DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        column(
            "Min Available",
            "The number of pods that must be available.",
        ),
        column(
            "Max Unavailable",
            "The number of pods that may be unavailable.",
        ),
        count(
            "Allowed Disruptions",
            "The number of pods that may be evicted now.",
        ),
        AGE,
    ],
    row: |budget, now| {
        let share = |field: &str| match &budget["spec"][field] {
            Value::Null => json!("N/A"),
            Value::String(text) => json!(text),
            number => json!(number.to_string()),
        };
        vec![
            name(budget),
            share("minAvailable"),
            share("maxUnavailable"),
            number(budget, "/status/disruptionsAllowed"),
            age(budget, now),
        ]
    },
    ..super::PLAIN
};

pub const SCALE: Printer = Printer {
    columns: &[
        NAME,
        count("Desired", "The number of pods that are wanted."),
        count("Available", "The number of pods that there are."),
        AGE,
    ],
    row: |scale, now| {
        vec![
            name(scale),
            number(scale, "/spec/replicas"),
            number(scale, "/status/replicas"),
            age(scale, now),
        ]
    },
    ..super::PLAIN
};

fn number(object: &Value, pointer: &str) -> Value {
    object.integer(pointer).unwrap_or(0).into()
}

fn ready(object: &Value) -> Value {
    let is = object.integer("/status/readyReplicas").unwrap_or(0);
    let want = object.integer("/spec/replicas").unwrap_or(0);
    format!("{is}/{want}").into()
}

fn containers(object: &Value, template: &str, field: &str) -> Value {
    let all = object.items(&format!("{template}/spec/containers"));
    let texts: Vec<&str> = all
        .iter()
        .map(|c| c[field].as_str().unwrap_or(""))
        .collect();
    texts.join(",").into()
}

fn selector(object: &Value) -> Value {
    or_none(&text(&object["spec"]["selector"]))
}

fn scaled(autoscaler: &Value, targets: &Value, now: Timestamp) -> Vec<Value> {
    let target = &autoscaler["spec"]["scaleTargetRef"];
    let min = autoscaler.integer("/spec/minReplicas");
    vec![
        name(autoscaler),
        format!("{}/{}", target.text("/kind"), target.text("/name")).into(),
        targets.clone(),
        min.map_or("<unset>".to_owned(), |n| n.to_string()).into(),
        autoscaler["spec"]["maxReplicas"].clone(),
        number(autoscaler, "/status/currentReplicas"),
        age(autoscaler, now),
    ]
}

/// One metric as `cpu: 50%/80%`.
fn target(metric: &Value, current: Option<&Value>) -> String {
    let word = metric.text("/type");
    let source = match word {
        "" => return "<unknown type>".into(),
        "ContainerResource" => "containerResource".to_owned(),
        word => word[..1].to_lowercase() + &word[1..],
    };
    let now = |field: &str| current.and_then(|c| c.pointer(&format!("/{source}/current/{field}")));
    let plain = |v: &Value| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned);
    let wanted = |field: &str| metric.pointer(&format!("/{source}/target/{field}"));
    for (field, unit) in [
        ("averageUtilization", "%"),
        ("averageValue", ""),
        ("value", ""),
    ] {
        if let Some(want) = wanted(field) {
            let is = now(field).map_or("<unknown>".into(), |v| plain(v) + unit);
            let what = metric.text(&format!("/{source}/name"));
            let what = if what.is_empty() {
                String::new()
            } else {
                format!("{what}: ")
            };
            return format!("{what}{is}/{}{unit}", plain(want));
        }
    }
    "<unknown>/<auto>".into()
}

fn job_status(job: &Value) -> &'static str {
    let is = |kind: &str| {
        let conditions = job.items("/status/conditions").iter();
        conditions
            .clone()
            .any(|c| c.text("/type") == kind && c.text("/status") == "True")
    };
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if job.has("/metadata/deletionTimestamp") => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> String {
    let succeeded = job.integer("/status/succeeded").unwrap_or(0);
    match (
        job.integer("/spec/completions"),
        job.integer("/spec/parallelism").unwrap_or(0),
    ) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Ok(began) = job.text("/status/startTime").parse::<Timestamp>() else {
        return String::new();
    };
    let ended = job.text("/status/completionTime").parse().unwrap_or(now);
    duration(ended.duration_since(began).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_autoscalers() {
        let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 3}, "status": {"succeeded": 1,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:03:20Z",
            "conditions": [{"type": "Failed", "status": "True"}]}});
        let cells = (JOB.row)(&job, Timestamp::now());
        assert_eq!(cells[1..4], ["Failed", "1/3", "3m20s"]);
        let autoscaler = json!({"metadata": {"name": "a"}, "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 5, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
            {"type": "Pods", "pods": {"metric": {"name": "x"}, "target": {"averageValue": "10"}}}]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 50}}}]}});
        let cells = (AUTOSCALER.row)(&autoscaler, Timestamp::now());
        assert_eq!(
            cells[1..4],
            ["Deployment/web", "cpu: 50%/80%, <unknown>/10", "<unset>"]
        );
    }
}
