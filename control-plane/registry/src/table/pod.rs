//! The columns of pods, and above all the computed status by which people judge a pod: `printPod` of Kubernetes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, Printer, age, column, duration, name, or_none, wide};
use crate::json::Json;

pub const POD: Printer = Printer {
    columns: &[
        NAME,
        column(
            "Ready",
            "The aggregate readiness state of this pod for accepting traffic.",
        ),
        column(
            "Status",
            "The aggregate status of the containers in this pod.",
        ),
        column(
            "Restarts",
            "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        ),
        AGE,
        wide("IP", "The primary IP address allocated to the pod."),
        wide("Node", "The node that the pod is scheduled onto."),
        wide(
            "Nominated Node",
            "The node that resources are being freed on for this pod.",
        ),
        wide(
            "Readiness Gates",
            "The conditions that the pod needs to be ready.",
        ),
    ],
    row,
    ..super::PLAIN
};

/// What the containers' states add up to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            let ago = duration(now.duration_since(at).as_secs());
            format!("{} ({ago} ago)", summary.restarts)
        }
        _ => summary.restarts.to_string(),
    };
    let gates = pod.items("/spec/readinessGates");
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates.iter().filter(|gate| {
            let kind = gate.text("/conditionType");
            condition(pod, kind).is_some_and(|c| c.text("/status") == "True")
        });
        format!("{}/{}", met.count(), gates.len())
    };
    let ip = match pod.text("/status/podIPs/0/ip") {
        "" => pod.text("/status/podIP"),
        ip => ip,
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        age(pod, now),
        or_none(ip),
        or_none(pod.text("/spec/nodeName")),
        or_none(pod.text("/status/nominatedNodeName")),
        json!(gates),
    ]
}

fn summarize(pod: &Value) -> Summary {
    let phase = pod.text("/status/phase");
    let mut reason = match pod.text("/status/reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = |c: &Value| c.text("/reason") == "SchedulingGated";
    if condition(pod, "PodScheduled").is_some_and(gated) {
        "SchedulingGated".clone_into(&mut reason);
    }
    let sidecars = pod.items("/spec/initContainers").iter();
    let sidecars = sidecars.filter(|c| c.text("/restartPolicy") == "Always");
    let mut summary = Summary {
        reason,
        ready: 0,
        total: pod.items("/spec/containers").len() + sidecars.count(),
        restarts: 0,
        last_restart: None,
    };
    let initializing = init_containers(pod, &mut summary);
    let initialized = condition(pod, "Initialized").is_some_and(|c| c.text("/status") == "True");
    if !initializing || initialized {
        containers(pod, &mut summary);
    }
    if pod.has("/metadata/deletionTimestamp") {
        if pod.text("/status/reason") == "NodeLost" {
            "Unknown".clone_into(&mut summary.reason);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut summary.reason);
        }
    }
    summary
}

/// Answers whether the pod is still initializing.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let specs = pod.items("/spec/initContainers");
    let mut sidecar_restarts = 0;
    for (at, status) in pod
        .items("/status/initContainerStatuses")
        .iter()
        .enumerate()
    {
        let sidecar = specs.iter().any(|c| {
            c.text("/name") == status.text("/name") && c.text("/restartPolicy") == "Always"
        });
        count_restarts(status, summary);
        if sidecar {
            sidecar_restarts += status.integer("/restartCount").unwrap_or(0);
        }
        if status.integer("/state/terminated/exitCode") == Some(0) {
            continue;
        }
        if sidecar && status.flag("/started") {
            summary.ready += usize::from(status.flag("/ready"));
            continue;
        }
        let waiting = status.text("/state/waiting/reason");
        summary.reason = if status.has("/state/terminated") {
            format!("Init:{}", terminated(status))
        } else if !matches!(waiting, "" | "PodInitializing") {
            format!("Init:{waiting}")
        } else {
            format!("Init:{at}/{}", specs.len())
        };
        return true;
    }
    // Once all have ended, only the restarts of those that go on running count.
    summary.restarts = sidecar_restarts;
    false
}

fn containers(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    for status in pod.items("/status/containerStatuses").iter().rev() {
        count_restarts(status, summary);
        let waiting = status.text("/state/waiting/reason");
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.reason);
        } else if status.has("/state/terminated") {
            summary.reason = terminated(status);
        } else if status.flag("/ready") && status.has("/state/running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(pod, "Ready").is_some_and(|c| c.text("/status") == "True");
        summary.reason = if ready { "Running" } else { "NotReady" }.into();
    }
}

fn count_restarts(status: &Value, summary: &mut Summary) {
    summary.restarts += status.integer("/restartCount").unwrap_or(0);
    let finished = status.text("/lastState/terminated/finishedAt");
    if let Ok(at) = finished.parse() {
        summary.last_restart = summary.last_restart.max(Some(at));
    }
}

fn terminated(status: &Value) -> String {
    let state = &status["state"]["terminated"];
    match (state.text("/reason"), state.integer("/signal")) {
        ("", Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        ("", _) => format!("ExitCode:{}", state.integer("/exitCode").unwrap_or(0)),
        (reason, _) => reason.to_owned(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.items("/status/conditions")
        .iter()
        .find(|c| c.text("/type") == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_as_users_judge_it() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let running = json!({"ready": true, "state": {"running": {}}});
        let cases = [
            ("Pending", json!({"phase": "Pending"}), "0/2", "Pending"),
            (
                "waiting",
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
                "0/2",
                "ContainerCreating",
            ),
            (
                "init",
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
                "0/2",
                "Init:1/2",
            ),
            (
                "init error",
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
                "0/2",
                "Init:ExitCode:3",
            ),
            (
                "all run",
                json!({"phase": "Running", "containerStatuses": [running, running]}),
                "2/2",
                "Running",
            ),
            (
                "one crashes",
                json!({"phase": "Running", "containerStatuses": [running, {"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "1/2",
                "CrashLoopBackOff",
            ),
            (
                "one has ended",
                json!({"phase": "Running", "containerStatuses": [running, {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                "1/2",
                "NotReady",
            ),
            (
                "killed",
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
                "0/2",
                "Signal:9",
            ),
            (
                "evicted",
                json!({"phase": "Failed", "reason": "Evicted"}),
                "0/2",
                "Evicted",
            ),
        ];
        for (name, status, ready, want) in cases {
            let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
            let cells = row(&pod, Timestamp::now());
            assert_eq!(
                (cells[1].as_str(), cells[2].as_str()),
                (Some(ready), Some(want)),
                "{name}"
            );
        }
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(row(&going, Timestamp::now())[2], "Terminating");
    }
}
