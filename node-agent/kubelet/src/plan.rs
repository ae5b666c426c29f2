//! What is to be done for a pod next: pure, from the pod and what Docker has of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::runtime::{Record, State};

/// What Docker has of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The sandbox, if one runs.
    pub sandbox: Option<Record>,
    pub dead_sandboxes: Vec<Record>,
    /// By name, each container's incarnations, the oldest first.
    pub containers: BTreeMap<String, Vec<Record>>,
    /// By name, how often each container was restarted as far as this agent has seen, though Docker has it no more.
    pub seen_restarts: BTreeMap<String, u32>,
}

/// What is known of a running container beyond that it runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Health {
    /// Its startup probe has succeeded, or it has none.
    pub started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Why it must be restarted.
    pub failure: Option<String>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Make a sandbox, after what still runs in an earlier one has been removed.
    NewSandbox { attempt: u32, remove: Vec<String> },
    Start {
        container: Box<Container>,
        restart_count: u32,
        /// The incarnation whose end makes this a restart.
        after: Option<Box<Record>>,
    },
    /// Stop a running container; its end is then treated like any other.
    Stop { record: Box<Record>, why: String },
    /// Remove an incarnation that nothing refers to any more.
    Remove { id: String },
    /// The pod has ended and keeps nothing but its dead containers' logs.
    Finish,
}

impl View {
    pub fn new(records: Vec<Record>) -> Self {
        let mut view = Self::default();
        for record in records {
            if !record.is_sandbox() {
                view.containers
                    .entry(record.container.clone())
                    .or_default()
                    .push(record);
            } else if record.is_running() {
                // The newest wins; two run only if a removal failed.
                view.dead_sandboxes.extend(view.sandbox.replace(record));
            } else {
                view.dead_sandboxes.push(record);
            }
        }
        for incarnations in view.containers.values_mut() {
            incarnations.sort_by_key(|record| record.restart_count);
        }
        view
    }

    /// Adds what is there to what was `seen` before, and knows that too from now on.
    pub fn remember(&mut self, seen: &mut BTreeMap<String, u32>) {
        for (name, incarnations) in &self.containers {
            if let Some(latest) = incarnations.last() {
                seen.insert(name.clone(), latest.restart_count);
            }
        }
        self.seen_restarts.clone_from(seen);
    }

    pub fn latest(&self, name: &str) -> Option<&Record> {
        self.containers.get(name)?.last()
    }

    /// The incarnation before the latest.
    pub fn previous(&self, name: &str) -> Option<&Record> {
        self.containers.get(name)?.iter().rev().nth(1)
    }

    /// The latest incarnation, if it lives in the running sandbox.
    pub fn current(&self, name: &str) -> Option<&Record> {
        let sandbox = self.sandbox.as_ref()?;
        self.latest(name)
            .filter(|record| record.sandbox_id == sandbox.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &Record> {
        self.containers
            .values()
            .flatten()
            .filter(|record| record.is_running())
    }

    fn next_sandbox(&self) -> u32 {
        self.dead_sandboxes
            .iter()
            .map(|record| record.restart_count + 1)
            .max()
            .unwrap_or(0)
    }
}

/// The steps for a pod that shall run, in order. The answer is complete only as far as it goes: after doing it, look
/// again.
pub(crate) fn plan(pod: &Pod, view: &View, health: impl Fn(&Record) -> Health) -> Vec<Step> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    if is_terminal(pod) || outcome(spec, view).is_some() {
        return vec![Step::Finish];
    }
    if view.sandbox.is_none() {
        let stale = view.running().map(|record| record.id.clone());
        let dead = view.dead_sandboxes.iter().map(|record| record.id.clone());
        return vec![Step::NewSandbox {
            attempt: view.next_sandbox(),
            remove: stale.chain(dead).collect(),
        }];
    }
    let mut steps = superfluous(view);
    if !started(spec, view) {
        for container in spec.init_containers.iter().flatten() {
            match view.current(&container.name) {
                Some(record) if record.exit_code() == Some(0) && !is_sidecar(container) => {}
                Some(record)
                    if record.is_running() && is_sidecar(container) && health(record).started => {}
                Some(record) if record.is_running() => {
                    steps.extend(stop(container, record, &health(record)));
                    return steps;
                }
                _ => {
                    steps.push(start(pod, view, container));
                    return steps;
                }
            }
        }
    }
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    for container in sidecars.chain(&spec.containers) {
        match view.latest(&container.name) {
            Some(record) if record.is_running() => {
                steps.extend(stop(container, record, &health(record)))
            }
            Some(record) if !restarts(spec, container, record) => {}
            _ => steps.push(start(pod, view, container)),
        }
    }
    steps
}

/// How a pod's run has ended: whether well, `None` while it goes on.
pub(crate) fn outcome(spec: &PodSpec, view: &View) -> Option<bool> {
    if policy(spec) == "Always" {
        return None;
    }
    let ended = |container: &Container| {
        let record = view.latest(&container.name)?;
        record
            .exit_code()
            .filter(|_| !restarts(spec, container, record))
    };
    let inits = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| !is_sidecar(container));
    if inits.filter_map(ended).any(|code| code != 0) {
        return Some(false);
    }
    let codes: Option<Vec<i64>> = spec.containers.iter().map(ended).collect();
    codes.map(|codes| codes.iter().all(|code| *code == 0))
}

/// Whether the API server has been told already that the pod has ended: it must never run again.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// An init container that goes on running beside the others (Kubernetes' sidecar containers).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether every init container has done its part in the running sandbox.
pub(crate) fn initialized(spec: &PodSpec, view: &View, health: impl Fn(&Record) -> Health) -> bool {
    started(spec, view)
        || spec.init_containers.iter().flatten().all(|container| {
            match view.current(&container.name) {
                Some(record) if is_sidecar(container) => {
                    record.is_running() && health(record).started
                }
                Some(record) => record.exit_code() == Some(0),
                None => false,
            }
        })
}

pub(crate) fn policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// A container of the running sandbox exists, so its init containers had ended well before.
fn started(spec: &PodSpec, view: &View) -> bool {
    spec.containers
        .iter()
        .any(|container| view.current(&container.name).is_some())
}

fn restarts(spec: &PodSpec, container: &Container, record: &Record) -> bool {
    let Some(code) = record.exit_code() else {
        return true;
    };
    match policy(spec) {
        _ if is_sidecar(container) => true,
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

fn start(pod: &Pod, view: &View, container: &Container) -> Step {
    let latest = view.latest(&container.name);
    let restart_count = match latest {
        // Made, but the start never happened: this is still the same attempt.
        Some(record) if record.state == State::Created => record.restart_count,
        Some(record) => record.restart_count + 1,
        // It went with its sandbox, or Docker has lost it; the API server remembers, once it has been told.
        None => {
            let seen = view.seen_restarts.get(&container.name).copied();
            let known = known_restarts(pod, &container.name);
            known.max(seen).map_or(0, |count| count + 1)
        }
    };
    let after = latest
        .filter(|record| record.exit_code().is_some())
        .cloned()
        .map(Box::new);
    Step::Start {
        container: Box::new(container.clone()),
        restart_count,
        after,
    }
}

fn stop(container: &Container, record: &Record, health: &Health) -> Option<Step> {
    let image = container.image.as_deref().unwrap_or_default();
    let why = if let Some(failure) = &health.failure {
        failure.clone()
    } else if record.image != image {
        format!(
            "Container {} definition changed, will be restarted",
            container.name
        )
    } else {
        return None;
    };
    Some(Step::Stop {
        record: Box::new(record.clone()),
        why,
    })
}

/// All incarnations but the latest two: the latest one's state and the one before, for its logs.
fn superfluous(view: &View) -> Vec<Step> {
    let old = view
        .containers
        .values()
        .flat_map(|records| records.iter().rev().skip(2));
    let dead = old
        .filter(|record| !record.is_running())
        .chain(&view.dead_sandboxes);
    dead.map(|record| Step::Remove {
        id: record.id.clone(),
    })
    .collect()
}

fn known_restarts(pod: &Pod, name: &str) -> Option<u32> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let known = all.into_iter().find(|known| known.name == name)?;
    known.container_id.as_ref()?;
    u32::try_from(known.restart_count).ok()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
