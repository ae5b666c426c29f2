//! A pod's status from what Docker has of it: pure. The rules are those of the kubelet
//! (`k8s.io/kubernetes/pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/status/generate.go`).

use std::{collections::HashMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec,
        PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    plan::{self, Health, View},
    runtime::{Record, State},
};

/// The conditions that the kubelet writes; all others belong to somebody else and are kept.
const OWN: [&str; 4] = [
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
];

/// Why a container waits: reason and message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Waiting {
    pub reason: &'static str,
    pub message: String,
}

/// All that a status is made of.
pub(crate) struct Observed<'a, H> {
    pub pod: &'a Pod,
    pub view: &'a View,
    pub pod_ips: &'a [IpAddr],
    pub host_ips: &'a [IpAddr],
    /// The sandbox runs and is wired.
    pub network_ready: bool,
    /// By container, why it does not run though it should.
    pub waiting: &'a HashMap<String, Waiting>,
    pub health: H,
    /// The pod is being deleted, and no container of it will run again.
    pub ended: bool,
    pub now: Timestamp,
}

impl<H: Fn(&Record) -> Health> Observed<'_, H> {
    pub fn status(&self) -> PodStatus {
        let known = self.pod.status.clone().unwrap_or_default();
        let spec = self.pod.spec.clone().unwrap_or_default();
        let initialized =
            if self.view.sandbox.is_none() && (self.ended || plan::is_terminal(self.pod)) {
                // Nothing is left to judge by.
                is_true(&known, "Initialized")
            } else {
                plan::initialized(&spec, self.view, &self.health)
            };
        let inits: Vec<ContainerStatus> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|container| self.container(container, true, initialized))
            .collect();
        let containers: Vec<ContainerStatus> = spec
            .containers
            .iter()
            .map(|container| self.container(container, false, initialized))
            .collect();
        let phase = if plan::is_terminal(self.pod) {
            known.phase.clone().unwrap_or_default()
        } else {
            self.phase(&spec, &containers, initialized).to_owned()
        };
        let conditions = self.conditions(&phase, &inits, &containers, initialized);
        let pod_ips: Vec<PodIP> = self
            .pod_ips
            .iter()
            .map(|ip| PodIP { ip: ip.to_string() })
            .collect();
        // A pod that has ended keeps the addresses that it had.
        let pod_ips = if pod_ips.is_empty() {
            known.pod_ips.unwrap_or_default()
        } else {
            pod_ips
        };
        let host_ips: Vec<HostIP> = self
            .host_ips
            .iter()
            .map(|ip| HostIP { ip: ip.to_string() })
            .collect();
        PodStatus {
            phase: Some(phase),
            conditions: Some(conditions),
            host_ip: host_ips.first().map(|host| host.ip.clone()),
            host_ips: Some(host_ips),
            pod_ip: pod_ips.first().map(|pod| pod.ip.clone()),
            pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
            start_time: known.start_time.or(Some(Time(self.now))),
            init_container_statuses: (!inits.is_empty()).then_some(inits),
            container_statuses: Some(containers),
            observed_generation: self.pod.metadata.generation,
            ..PodStatus::default()
        }
    }

    fn container(&self, container: &Container, init: bool, initialized: bool) -> ContainerStatus {
        let latest = self.view.latest(&container.name);
        let previous = self.view.previous(&container.name);
        let waits = |fallback: &str| {
            let waiting = self.waiting.get(&container.name);
            let reason = waiting.map_or(fallback, |waiting| waiting.reason);
            waiting_state(reason, waiting.map(|waiting| waiting.message.clone()))
        };
        let fallback = if init || initialized {
            "ContainerCreating"
        } else {
            "PodInitializing"
        };
        let (state, last, health) = match latest {
            None => (waits(fallback), None, None),
            Some(record) => match &record.state {
                State::Created => (waits(fallback), previous, None),
                State::Running { .. } => {
                    (running_state(record), previous, Some((self.health)(record)))
                }
                State::Exited { .. }
                    if self.waiting.contains_key(&container.name) && !self.ended =>
                {
                    (waits(fallback), Some(record), None)
                }
                State::Exited { .. } => (terminated_state(record), previous, None),
            },
        };
        let ready = if init && !plan::is_sidecar(container) {
            latest.and_then(Record::exit_code) == Some(0)
        } else {
            health
                .as_ref()
                .is_some_and(|health| health.started && health.ready)
        };
        let unstarted = || String::new();
        ContainerStatus {
            name: container.name.clone(),
            state: Some(state),
            last_state: last
                .filter(|record| record.exit_code().is_some())
                .map(terminated_state),
            ready,
            started: Some(health.is_some_and(|health| health.started)),
            restart_count: latest.map_or(0, |record| {
                i32::try_from(record.restart_count).unwrap_or(i32::MAX)
            }),
            image: container.image.clone().unwrap_or_default(),
            image_id: latest
                .map_or_else(unstarted, |record| format!("docker://{}", record.image_id)),
            container_id: latest.map(|record| format!("docker://{}", record.id)),
            ..ContainerStatus::default()
        }
    }

    /// `getPhase` of the kubelet.
    fn phase(
        &self,
        spec: &PodSpec,
        containers: &[ContainerStatus],
        initialized: bool,
    ) -> &'static str {
        match plan::outcome(spec, self.view) {
            Some(true) => return "Succeeded",
            Some(false) => return "Failed",
            None => {}
        }
        if self.ended {
            let well = |status: &ContainerStatus| exit_code(status.state.as_ref()) == Some(0);
            return if containers.iter().all(well) {
                "Succeeded"
            } else {
                "Failed"
            };
        }
        let (mut waiting, mut running, mut stopped) = (0, 0, 0);
        for status in containers {
            let state = status.state.as_ref();
            if state.is_some_and(|state| state.running.is_some()) {
                running += 1;
            } else if exit_code(state).is_some() || exit_code(status.last_state.as_ref()).is_some()
            {
                stopped += 1;
            } else {
                waiting += 1;
            }
        }
        if !initialized || waiting > 0 || running + stopped == 0 {
            "Pending"
        } else {
            "Running"
        }
    }

    fn conditions(
        &self,
        phase: &str,
        inits: &[ContainerStatus],
        containers: &[ContainerStatus],
        initialized: bool,
    ) -> Vec<PodCondition> {
        let known: Vec<PodCondition> = self
            .pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        let unready = names(containers, |status| !status.ready);
        let incomplete = names(inits, |status| !status.ready);
        let completed = phase == "Succeeded";
        let initialized = if initialized || completed {
            Ok(completed.then_some("PodCompleted"))
        } else {
            Err((
                "ContainersNotInitialized",
                format!("containers with incomplete status: [{incomplete}]"),
            ))
        };
        let containers_ready = match phase {
            "Succeeded" => Err(("PodCompleted", String::new())),
            "Failed" => Err(("PodFailed", String::new())),
            _ if unready.is_empty() => Ok(None),
            _ => Err((
                "ContainersNotReady",
                format!("containers with unready status: [{unready}]"),
            )),
        };
        let gates = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.readiness_gates.iter().flatten());
        let closed: Vec<&str> = gates
            .map(|gate| gate.condition_type.as_str())
            .filter(|gate| {
                !known
                    .iter()
                    .any(|known| known.type_ == *gate && known.status == "True")
            })
            .collect();
        let ready = match &containers_ready {
            Ok(_) if !closed.is_empty() => Err((
                "ReadinessGatesNotReady",
                format!("readiness gates that are not true: [{}]", closed.join(" ")),
            )),
            other => other.clone(),
        };
        let network = if self.network_ready {
            Ok(None)
        } else {
            Err(("", String::new()))
        };
        let mut conditions: Vec<PodCondition> = known
            .iter()
            .filter(|condition| !is_own(condition))
            .cloned()
            .collect();
        if !conditions
            .iter()
            .any(|condition| condition.type_ == "PodScheduled")
        {
            conditions.push(self.condition("PodScheduled", Ok(None), &known));
        }
        for (type_, state) in OWN
            .into_iter()
            .zip([network, initialized, containers_ready, ready])
        {
            conditions.push(self.condition(type_, state, &known));
        }
        conditions
    }

    /// A condition whose time is that of its last change.
    fn condition(
        &self,
        type_: &str,
        state: Result<Option<&str>, (&str, String)>,
        known: &[PodCondition],
    ) -> PodCondition {
        let (status, reason, message) = match state {
            Ok(reason) => ("True", reason.unwrap_or_default(), String::new()),
            Err((reason, message)) => ("False", reason, message),
        };
        let before = known
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status);
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: (!message.is_empty()).then_some(message),
            last_transition_time: before
                .and_then(|condition| condition.last_transition_time.clone())
                .or(Some(Time(self.now))),
            observed_generation: self.pod.metadata.generation,
            ..PodCondition::default()
        }
    }
}

/// Whether the kubelet writes this condition.
pub(crate) fn is_own(condition: &PodCondition) -> bool {
    OWN.contains(&condition.type_.as_str())
}

fn is_true(status: &PodStatus, type_: &str) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn names(statuses: &[ContainerStatus], wanted: impl Fn(&ContainerStatus) -> bool) -> String {
    statuses
        .iter()
        .filter(|status| wanted(status))
        .map(|status| status.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn exit_code(state: Option<&ContainerState>) -> Option<i32> {
    Some(state?.terminated.as_ref()?.exit_code)
}

fn waiting_state(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    }
}

fn running_state(record: &Record) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning {
            started_at: record.started_at.map(Time),
        }),
        ..ContainerState::default()
    }
}

fn terminated_state(record: &Record) -> ContainerState {
    let State::Exited {
        code,
        oom_killed,
        message,
    } = &record.state
    else {
        return ContainerState::default();
    };
    let reason = match code {
        _ if *oom_killed => "OOMKilled",
        0 => "Completed",
        _ if record.started_at.is_none() => "ContainerCannotRun",
        _ => "Error",
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: i32::try_from(*code).unwrap_or(i32::MAX),
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.clone()),
            started_at: record.started_at.map(Time),
            finished_at: record.finished_at.map(Time),
            container_id: Some(format!("docker://{}", record.id)),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
