//! Startup, readiness and liveness probes of running containers: one task a container.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

use crate::{
    events::Recorder,
    http,
    metrics::Metrics,
    plan::Health,
    runtime::{Record, Runtime},
};

/// The probes of one pod's containers. Dropping it ends them.
pub(crate) struct Probes {
    tasks: HashMap<String, JoinHandle<()>>,
    health: Arc<Mutex<HashMap<String, Health>>>,
    wake: Arc<Notify>,
}

/// What every probe needs.
#[derive(Clone)]
pub(crate) struct Prober {
    pub runtime: Runtime,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
}

/// One container under probes.
struct Subject {
    prober: Prober,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    ip: Option<IpAddr>,
    health: Arc<Mutex<HashMap<String, Health>>>,
    wake: Arc<Notify>,
}

impl Probes {
    /// `wake` is told of each change.
    pub fn new(wake: Arc<Notify>) -> Self {
        Self {
            tasks: HashMap::new(),
            health: Arc::default(),
            wake,
        }
    }

    /// Probes exactly these containers: starts what is new, ends what is not among them.
    pub fn watch(
        &mut self,
        prober: &Prober,
        pod: &Arc<Pod>,
        running: &[(&Container, &Record)],
        ip: Option<IpAddr>,
    ) {
        let ids: HashSet<&str> = running
            .iter()
            .map(|(_, record)| record.id.as_str())
            .collect();
        self.tasks.retain(|id, task| {
            let keep = ids.contains(id.as_str());
            if !keep {
                task.abort();
                lock(&self.health).remove(id);
            }
            keep
        });
        for (container, record) in running {
            let probed = container.startup_probe.is_some()
                || container.readiness_probe.is_some()
                || container.liveness_probe.is_some();
            if !probed || self.tasks.contains_key(&record.id) {
                continue;
            }
            lock(&self.health).insert(record.id.clone(), known_health(pod, container, record));
            let subject = Subject {
                prober: prober.clone(),
                pod: pod.clone(),
                container: (*container).clone(),
                id: record.id.clone(),
                ip,
                health: self.health.clone(),
                wake: self.wake.clone(),
            };
            self.tasks
                .insert(record.id.clone(), tokio::spawn(subject.run()));
        }
    }

    /// The health of a running container. One that is not probed yet is as the API server knows it.
    pub fn health(&self, pod: &Pod, record: &Record) -> Health {
        if let Some(health) = lock(&self.health).get(&record.id) {
            return health.clone();
        }
        let spec = pod.spec.as_ref();
        let all = spec.iter().flat_map(|spec| {
            spec.init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
        });
        let mut named = all.filter(|container| container.name == record.container);
        match named.next() {
            Some(container) => known_health(pod, container, record),
            None => Health {
                started: true,
                ready: true,
                failure: None,
            },
        }
    }

    /// Ends all probes but the readiness probes: a pod that terminates is not restarted, but may still serve.
    pub fn forget_failures(&self) {
        for health in lock(&self.health).values_mut() {
            health.failure = None;
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

/// Where a container's health starts from: after a restart of the agent a container is as ready as it was.
fn known_health(pod: &Pod, container: &Container, record: &Record) -> Health {
    let status = pod.status.as_ref();
    let all = status.iter().flat_map(|status| {
        status
            .container_statuses
            .iter()
            .flatten()
            .chain(status.init_container_statuses.iter().flatten())
    });
    let id = format!("docker://{}", record.id);
    let known = all
        .into_iter()
        .find(|known| known.container_id.as_deref() == Some(&id));
    let started =
        container.startup_probe.is_none() || known.is_some_and(|known| known.started == Some(true));
    Health {
        started,
        ready: container.readiness_probe.is_none()
            || (started && known.is_some_and(|known| known.ready)),
        failure: None,
    }
}

impl Subject {
    async fn run(self) {
        let started = self.update(|_| {});
        if let (Some(probe), false) = (&self.container.startup_probe, started) {
            let healthy = self.until_decided("Startup", probe).await;
            if !healthy {
                self.fail(format!(
                    "Container {} failed startup probe, will be restarted",
                    self.container.name
                ));
                return;
            }
            self.update(|health| health.started = true);
        }
        tokio::join!(self.readiness(), self.liveness());
    }

    async fn readiness(&self) {
        let Some(probe) = &self.container.readiness_probe else {
            return;
        };
        self.follow("Readiness", probe, |ready| {
            self.update(|health| health.ready = ready);
            true
        })
        .await;
    }

    async fn liveness(&self) {
        let Some(probe) = &self.container.liveness_probe else {
            return;
        };
        self.follow("Liveness", probe, |alive| {
            if !alive {
                self.fail(format!(
                    "Container {} failed liveness probe, will be restarted",
                    self.container.name
                ));
            }
            alive
        })
        .await;
    }

    async fn until_decided(&self, kind: &str, probe: &Probe) -> bool {
        let mut decision = false;
        self.follow(kind, probe, |healthy| {
            decision = healthy;
            false
        })
        .await;
        decision
    }

    /// Probes each period and reports each time that a threshold is reached, until `report` answers false.
    async fn follow(&self, kind: &str, probe: &Probe, mut report: impl FnMut(bool) -> bool) {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value
                    .and_then(|value| u64::try_from(value).ok())
                    .unwrap_or(default),
            )
        };
        let count = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1);
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let limit = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let (success, failure) = (
            count(probe.success_threshold, 1),
            count(probe.failure_threshold, 3),
        );
        sleep(seconds(probe.initial_delay_seconds, 0)).await;
        let mut last = None;
        let mut run = 0;
        loop {
            let outcome = self.once(probe, limit).await;
            self.prober.metrics.probe(outcome.is_ok());
            if let Err(message) = &outcome {
                let message = format!("{kind} probe failed: {message}");
                self.prober.recorder.warn(
                    &self.pod,
                    Some(&self.container.name),
                    "Unhealthy",
                    message,
                );
            }
            run = if last == Some(outcome.is_ok()) {
                run + 1
            } else {
                1
            };
            last = Some(outcome.is_ok());
            let reached = if outcome.is_ok() { success } else { failure };
            if run >= reached && !report(outcome.is_ok()) {
                return;
            }
            sleep(period).await;
        }
    }

    async fn once(&self, probe: &Probe, limit: Duration) -> Result<(), String> {
        if let Some(action) = &probe.http_get {
            let code = http::get(action, &self.container, self.ip, limit).await?;
            return if (200..400).contains(&code) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {code}"))
            };
        }
        if let Some(action) = &probe.tcp_socket {
            return http::connect(action, &self.container, self.ip, limit).await;
        }
        if let Some(action) = &probe.exec {
            let command = action.command.clone().unwrap_or_default();
            let outcome = self.prober.runtime.exec(&self.id, &command, limit).await;
            return match outcome {
                Ok(ended) if ended.code == 0 => Ok(()),
                Ok(ended) => Err(format!(
                    "exit code {}: {}",
                    ended.code,
                    ended.output.trim_end()
                )),
                Err(error) => Err(crate::chain(&error)),
            };
        }
        Err("this kind of probe is not supported yet: use httpGet, tcpSocket or exec".to_owned())
    }

    fn fail(&self, why: String) {
        self.update(|health| {
            health.ready = false;
            health.failure = Some(why);
        });
    }

    /// Changes the container's health and tells the pod's worker if that made a difference; answers whether the
    /// container has started.
    fn update(&self, change: impl FnOnce(&mut Health)) -> bool {
        let mut all = lock(&self.health);
        let Some(health) = all.get_mut(&self.id) else {
            return false;
        };
        let before = health.clone();
        change(health);
        if *health != before {
            self.wake.notify_one();
        }
        health.started
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change of the map is complete in itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
