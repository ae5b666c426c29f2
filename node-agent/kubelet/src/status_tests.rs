//! Cases of the status: what Docker has on the left, what `kubectl` shows on the right.

use serde_json::{Value, json};

use super::*;
use crate::runtime::PodRef;

const NOW: i64 = 1_800_000_000;

fn record(name: &str, count: u32, state: State) -> Record {
    Record {
        id: format!("{name}-{count}"),
        pod: PodRef {
            uid: "u".to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
        },
        container: name.to_owned(),
        restart_count: count,
        image: "image".to_owned(),
        image_id: "sha256:00".to_owned(),
        sandbox_id: "POD-0".to_owned(),
        state,
        started_at: Timestamp::from_second(NOW - 60).ok(),
        finished_at: None,
        stop_signal: "SIGTERM".to_owned(),
    }
}

fn running(name: &str, count: u32) -> Record {
    record(name, count, State::Running { pid: 1 })
}

fn exited(name: &str, count: u32, code: i64) -> Record {
    let state = State::Exited {
        code,
        oom_killed: false,
        message: String::new(),
    };
    record(name, count, state)
}

fn pod(spec: Value) -> Pod {
    let pod = json!({ "metadata": { "name": "p", "generation": 1 }, "spec": spec });
    serde_json::from_value(pod).unwrap()
}

fn one(policy: &str) -> Pod {
    pod(json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "image" }] }))
}

/// The status as JSON.
struct Case {
    pod: Pod,
    records: Vec<Record>,
    waiting: Vec<(&'static str, &'static str)>,
    ready: bool,
    ended: bool,
}

impl Case {
    fn new(pod: Pod, records: Vec<Record>) -> Self {
        Self {
            pod,
            records,
            waiting: Vec::new(),
            ready: true,
            ended: false,
        }
    }

    fn status(self) -> Value {
        let view = View::new(self.records);
        let waiting = self.waiting.into_iter().map(|(name, reason)| {
            let message = format!("{name} waits");
            (name.to_owned(), Waiting { reason, message })
        });
        let ready = self.ready;
        let observed = Observed {
            pod: &self.pod,
            pod_ips: &["10.244.1.2", "fd00::2"].map(|ip| ip.parse().unwrap()),
            host_ips: &["172.31.240.11"].map(|ip| ip.parse().unwrap()),
            network_ready: view.sandbox.is_some(),
            view: &view,
            waiting: &waiting.collect(),
            health: |_: &Record| Health {
                started: true,
                ready,
                failure: None,
            },
            ended: self.ended,
            now: Timestamp::from_second(NOW).unwrap(),
        };
        serde_json::to_value(observed.status()).unwrap()
    }
}

/// `TYPE=STATUS` of each condition, with the reason if there is one.
fn conditions(status: &Value) -> Vec<String> {
    let text = |condition: &Value| {
        let reason = condition["reason"]
            .as_str()
            .map(|reason| format!(" {reason}"));
        let (type_, status) = (
            condition["type"].as_str().unwrap(),
            condition["status"].as_str().unwrap(),
        );
        format!("{type_}={status}{}", reason.unwrap_or_default())
    };
    status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(text)
        .collect()
}

#[test]
fn a_pod_that_nothing_was_done_for_is_pending() {
    let status = Case::new(one("Always"), vec![]).status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"],
        json!({ "waiting": { "reason": "ContainerCreating" } })
    );
    assert_eq!(
        conditions(&status),
        [
            "PodScheduled=True",
            "PodReadyToStartContainers=False",
            "Initialized=True",
            "ContainersReady=False ContainersNotReady",
            "Ready=False ContainersNotReady",
        ]
    );
}

#[test]
fn a_pod_whose_containers_run_and_are_ready_is_ready() {
    let status = Case::new(one("Always"), vec![running("POD", 0), running("a", 0)]).status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.244.1.2");
    assert_eq!(
        status["podIPs"],
        json!([{ "ip": "10.244.1.2" }, { "ip": "fd00::2" }])
    );
    assert_eq!(status["hostIP"], "172.31.240.11");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "docker://a-0");
    assert_eq!(container["imageID"], "docker://sha256:00");
    assert_eq!(
        (&container["ready"], &container["started"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(conditions(&status)[4], "Ready=True");
}

#[test]
fn a_failing_readiness_probe_keeps_the_pod_running_and_not_ready() {
    let mut case = Case::new(one("Always"), vec![running("POD", 0), running("a", 0)]);
    case.ready = false;
    let status = case.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(conditions(&status)[4], "Ready=False ContainersNotReady");
    assert_eq!(
        status["conditions"][4]["message"],
        "containers with unready status: [a]"
    );
}

#[test]
fn a_readiness_gate_must_be_true_too() {
    let mut gated = pod(json!({
        "readinessGates": [{ "conditionType": "example.com/gate" }],
        "containers": [{ "name": "a", "image": "image" }],
    }));
    let records = || vec![running("POD", 0), running("a", 0)];
    let status = Case::new(gated.clone(), records()).status();
    assert!(conditions(&status).contains(&"ContainersReady=True".to_owned()));
    assert!(conditions(&status).contains(&"Ready=False ReadinessGatesNotReady".to_owned()));
    gated.status = serde_json::from_value(json!({
        "conditions": [{ "type": "example.com/gate", "status": "True" }]
    }))
    .unwrap();
    let status = Case::new(gated, records()).status();
    assert!(
        conditions(&status).contains(&"example.com/gate=True".to_owned()),
        "somebody else's condition is kept"
    );
    assert!(conditions(&status).contains(&"Ready=True".to_owned()));
}

#[test]
fn init_containers_come_first_in_the_status_too() {
    let with_init = pod(json!({
        "initContainers": [{ "name": "i", "image": "image" }],
        "containers": [{ "name": "a", "image": "image" }],
    }));
    let status = Case::new(with_init, vec![running("POD", 0), running("i", 0)]).status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(
        conditions(&status)[2],
        "Initialized=False ContainersNotInitialized"
    );
    assert_eq!(
        status["conditions"][2]["message"],
        "containers with incomplete status: [i]"
    );
}

#[test]
fn a_crash_loop_is_running_and_shows_the_last_end() {
    let mut case = Case::new(one("Always"), vec![running("POD", 0), exited("a", 3, 2)]);
    case.waiting = vec![("a", "CrashLoopBackOff")];
    let status = case.status();
    assert_eq!(status["phase"], "Running");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 2);
    assert_eq!(container["restartCount"], 3);
}

#[test]
fn phases_at_the_end_follow_the_policy_and_the_exit_codes() {
    for (policy, code, phase, ready) in [
        ("Never", 0, "Succeeded", "Ready=False PodCompleted"),
        ("Never", 1, "Failed", "Ready=False PodFailed"),
        ("OnFailure", 0, "Succeeded", "Ready=False PodCompleted"),
        ("OnFailure", 1, "Running", "Ready=False ContainersNotReady"),
        ("Always", 0, "Running", "Ready=False ContainersNotReady"),
    ] {
        let status = Case::new(one(policy), vec![running("POD", 0), exited("a", 0, code)]).status();
        assert_eq!(status["phase"], phase, "{policy} {code}");
        assert_eq!(conditions(&status)[4], ready, "{policy} {code}");
    }
}

#[test]
fn a_deleted_pod_ends_well_only_if_its_containers_did() {
    for (code, phase) in [(0, "Succeeded"), (143, "Failed")] {
        let mut case = Case::new(one("Always"), vec![exited("a", 0, code)]);
        case.ended = true;
        assert_eq!(case.status()["phase"], phase);
    }
}

#[test]
fn a_terminal_phase_is_never_taken_back() {
    let mut ended = one("Always");
    ended.status = serde_json::from_value(json!({ "phase": "Failed" })).unwrap();
    let status = Case::new(ended, vec![running("POD", 0), running("a", 0)]).status();
    assert_eq!(status["phase"], "Failed");
}

#[test]
fn a_container_that_was_killed_for_its_memory_says_so() {
    let killed = State::Exited {
        code: 137,
        oom_killed: true,
        message: String::new(),
    };
    let status = Case::new(
        one("Never"),
        vec![running("POD", 0), record("a", 0, killed)],
    )
    .status();
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["reason"],
        "OOMKilled"
    );
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let mut known = one("Always");
    known.status = serde_json::from_value(json!({
        "startTime": "2026-01-01T00:00:00Z",
        "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" },
            { "type": "ContainersReady", "status": "False", "lastTransitionTime": "2026-01-01T00:00:05Z" },
        ],
    }))
    .unwrap();
    let status = Case::new(known, vec![running("POD", 0), running("a", 0)]).status();
    assert_eq!(status["startTime"], "2026-01-01T00:00:00Z");
    let time = |type_: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == type_);
        found.unwrap()["lastTransitionTime"].clone()
    };
    assert_eq!(time("Ready"), "2026-01-01T00:00:05Z");
    assert_eq!(time("ContainersReady"), "2027-01-15T08:00:00Z");
}
