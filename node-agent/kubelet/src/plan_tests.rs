//! Cases of the plan: what Docker has on the left, what is done on the right.

use super::*;
use crate::runtime::PodRef;

fn pod(policy: &str, inits: &[&str], containers: &[&str]) -> Pod {
    let container = |name: &&str| Container {
        name: (*name).to_owned(),
        image: Some("image".to_owned()),
        restart_policy: name.starts_with("sidecar").then(|| "Always".to_owned()),
        ..Container::default()
    };
    Pod {
        spec: Some(PodSpec {
            restart_policy: Some(policy.to_owned()),
            init_containers: Some(inits.iter().map(container).collect()),
            containers: containers.iter().map(container).collect(),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn record(name: &str, count: u32, sandbox: &str, state: State) -> Record {
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
        image_id: String::new(),
        sandbox_id: sandbox.to_owned(),
        state,
        started_at: None,
        finished_at: None,
        stop_signal: "SIGTERM".to_owned(),
    }
}

fn running(name: &str, count: u32) -> Record {
    record(name, count, "POD-0", State::Running { pid: 1 })
}

fn exited(name: &str, count: u32, code: i64) -> Record {
    record(
        name,
        count,
        "POD-0",
        State::Exited {
            code,
            oom_killed: false,
            message: String::new(),
        },
    )
}

fn sandbox() -> Record {
    running("POD", 0)
}

fn well(_: &Record) -> Health {
    Health {
        started: true,
        ready: true,
        failure: None,
    }
}

/// The plan in short: `start a 0`, `stop a-0`, `remove a-0`, `sandbox 0`, `finish`.
fn short(pod: &Pod, records: Vec<Record>) -> Vec<String> {
    short_with(pod, records, well)
}

fn short_with(pod: &Pod, records: Vec<Record>, health: impl Fn(&Record) -> Health) -> Vec<String> {
    let steps = plan(pod, &View::new(records), health);
    let text = |step: Step| match step {
        Step::NewSandbox { attempt, remove } => format!("sandbox {attempt} {}", remove.join(" "))
            .trim()
            .to_owned(),
        Step::Start {
            container,
            restart_count,
            ..
        } => format!("start {} {restart_count}", container.name),
        Step::Stop { record, .. } => format!("stop {}", record.id),
        Step::Remove { id } => format!("remove {id}"),
        Step::Finish => "finish".to_owned(),
    };
    steps.into_iter().map(text).collect()
}

#[test]
fn a_new_pod_gets_a_sandbox_first_and_then_its_containers() {
    let pod = pod("Always", &[], &["a", "b"]);
    assert_eq!(short(&pod, vec![]), ["sandbox 0"]);
    assert_eq!(short(&pod, vec![sandbox()]), ["start a 0", "start b 0"]);
    assert!(short(&pod, vec![sandbox(), running("a", 0), running("b", 0)]).is_empty());
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod("Always", &["i", "j"], &["a"]);
    assert_eq!(short(&pod, vec![sandbox()]), ["start i 0"]);
    assert!(short(&pod, vec![sandbox(), running("i", 0)]).is_empty());
    assert_eq!(
        short(&pod, vec![sandbox(), exited("i", 0, 0)]),
        ["start j 0"]
    );
    assert_eq!(
        short(&pod, vec![sandbox(), exited("i", 0, 0), exited("j", 0, 1)]),
        ["start j 1"]
    );
    let done = vec![sandbox(), exited("i", 0, 0), exited("j", 1, 0)];
    assert_eq!(short(&pod, done), ["start a 0"]);
    // Once a container has run, its init containers are not asked for again, even if Docker has lost them.
    assert!(short(&pod, vec![sandbox(), running("a", 0)]).is_empty());
}

#[test]
fn a_sidecar_must_have_started_and_is_kept_running() {
    let pod = pod("Never", &["sidecar", "i"], &["a"]);
    let not_yet = |_: &Record| Health {
        started: false,
        ready: false,
        failure: None,
    };
    assert_eq!(short(&pod, vec![sandbox()]), ["start sidecar 0"]);
    assert!(short_with(&pod, vec![sandbox(), running("sidecar", 0)], not_yet).is_empty());
    assert_eq!(
        short(&pod, vec![sandbox(), running("sidecar", 0)]),
        ["start i 0"]
    );
    let ended = vec![
        sandbox(),
        exited("sidecar", 0, 0),
        exited("i", 0, 0),
        running("a", 0),
    ];
    assert_eq!(short(&pod, ended), ["start sidecar 1"]);
    let finished = vec![
        sandbox(),
        running("sidecar", 1),
        exited("i", 0, 0),
        exited("a", 0, 0),
    ];
    assert_eq!(short(&pod, finished), ["finish"]);
}

#[test]
fn the_restart_policy_decides_about_what_has_ended() {
    for (policy, code, expected) in [
        ("Always", 0, "start a 1"),
        ("Always", 1, "start a 1"),
        ("OnFailure", 0, "finish"),
        ("OnFailure", 1, "start a 1"),
        ("Never", 0, "finish"),
        ("Never", 1, "finish"),
    ] {
        let pod = pod(policy, &[], &["a"]);
        assert_eq!(
            short(&pod, vec![sandbox(), exited("a", 0, code)]),
            [expected],
            "{policy} {code}"
        );
    }
}

#[test]
fn a_pod_that_never_restarts_ends_with_its_last_container() {
    let pod = pod("Never", &["i"], &["a", "b"]);
    let one_left = vec![
        sandbox(),
        exited("i", 0, 0),
        exited("a", 0, 1),
        running("b", 0),
    ];
    assert!(short(&pod, one_left).is_empty());
    assert_eq!(short(&pod, vec![sandbox(), exited("i", 0, 3)]), ["finish"]);
    let spec = pod.spec.as_ref().unwrap();
    let view = View::new(vec![
        exited("i", 0, 0),
        exited("a", 0, 0),
        exited("b", 0, 0),
    ]);
    assert_eq!(outcome(spec, &view), Some(true));
    let view = View::new(vec![
        exited("i", 0, 0),
        exited("a", 0, 0),
        exited("b", 0, 7),
    ]);
    assert_eq!(outcome(spec, &view), Some(false));
}

#[test]
fn a_dead_sandbox_takes_everything_with_it() {
    let pod = pod("Always", &["i"], &["a"]);
    let dead = exited("POD", 0, 137);
    let records = vec![dead.clone(), exited("i", 0, 0), running("a", 0)];
    assert_eq!(short(&pod, records), ["sandbox 1 a-0 POD-0"]);
    // In the new sandbox the init containers run again, and what ended in the old one counts as a restart.
    let new = record("POD", 1, "", State::Running { pid: 2 });
    let records = vec![new, exited("i", 0, 0), exited("a", 0, 137)];
    assert_eq!(short(&pod, records), ["start i 1"]);
}

#[test]
fn a_container_that_was_made_but_not_started_is_the_same_attempt() {
    let pod = pod("Always", &[], &["a"]);
    let records = vec![
        sandbox(),
        exited("a", 0, 1),
        record("a", 1, "POD-0", State::Created),
    ];
    assert_eq!(short(&pod, records), ["start a 1"]);
}

#[test]
fn a_failed_probe_and_a_new_image_stop_a_container() {
    let mut pod = pod("Always", &[], &["a"]);
    let ill = |_: &Record| Health {
        started: true,
        ready: false,
        failure: Some("Liveness probe failed".to_owned()),
    };
    assert_eq!(
        short_with(&pod, vec![sandbox(), running("a", 0)], ill),
        ["stop a-0"]
    );
    pod.spec.as_mut().unwrap().containers[0].image = Some("newer".to_owned());
    assert_eq!(short(&pod, vec![sandbox(), running("a", 0)]), ["stop a-0"]);
}

#[test]
fn only_the_last_two_incarnations_are_kept() {
    let pod = pod("Always", &[], &["a"]);
    let records = vec![
        sandbox(),
        exited("a", 0, 1),
        exited("a", 1, 1),
        exited("a", 2, 1),
        running("a", 3),
    ];
    assert_eq!(short(&pod, records), ["remove a-1", "remove a-0"]);
}

#[test]
fn a_pod_whose_end_was_reported_never_runs_again() {
    let mut pod = pod("Always", &[], &["a"]);
    pod.status = Some(k8s_openapi::api::core::v1::PodStatus {
        phase: Some("Failed".to_owned()),
        ..Default::default()
    });
    assert_eq!(short(&pod, vec![]), ["finish"]);
}

#[test]
fn a_container_that_went_with_its_sandbox_is_restarted_though_nobody_was_told_that_it_ran() {
    let pod = pod("Always", &[], &["a"]);
    let mut seen = BTreeMap::new();
    View::new(vec![sandbox(), running("a", 0)]).remember(&mut seen);
    let new = record("POD", 1, "", State::Running { pid: 2 });
    let mut view = View::new(vec![new]);
    view.remember(&mut seen);
    let steps = plan(&pod, &view, well);
    assert!(
        matches!(
            steps[..],
            [Step::Start {
                restart_count: 1,
                ..
            }]
        ),
        "{steps:?}"
    );
}

#[test]
fn restarts_are_counted_on_when_docker_has_forgotten() {
    use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
    let mut pod = pod("Always", &[], &["a"]);
    pod.status = Some(PodStatus {
        container_statuses: Some(vec![ContainerStatus {
            name: "a".to_owned(),
            restart_count: 4,
            container_id: Some("docker://gone".to_owned()),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    assert_eq!(short(&pod, vec![sandbox()]), ["start a 5"]);
}
