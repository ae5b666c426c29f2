//! Ending containers: the preStop hook, the signal that asks, and SIGKILL when the grace is over.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tracing::warn;

use crate::{
    events::Recorder,
    http,
    runtime::{Record, Runtime, RuntimeError},
};

/// What a container always has between the signal that asks and SIGKILL, even if its hook took all the grace
/// (`minimumGracePeriodInSeconds` of the kubelet).
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// The containers of one pod that are being stopped.
#[derive(Debug, Default)]
pub(crate) struct Stopping {
    containers: HashMap<String, Stop>,
}

#[derive(Debug)]
struct Stop {
    /// When SIGKILL is sent.
    deadline: Instant,
    asking: JoinHandle<()>,
}

/// What stopping needs to know of a pod.
pub(crate) struct Stopper<'a> {
    pub runtime: &'a Runtime,
    pub recorder: &'a Recorder,
    /// The pod as it was last known; `None` for containers whose pod nobody knows any more.
    pub pod: Option<&'a Arc<Pod>>,
    pub ip: Option<IpAddr>,
    pub wake: &'a Arc<Notify>,
}

impl Stopping {
    /// Asks a running container to end within `grace`. If it is asked already, only an earlier end counts.
    pub fn ask(&mut self, stopper: &Stopper<'_>, record: &Record, grace: Duration, why: String) {
        let container = stopper.pod.and_then(|pod| named(pod, &record.container));
        let hook = container
            .as_ref()
            .and_then(|container| container.lifecycle.as_ref()?.pre_stop.clone());
        let wanted = Instant::now() + grace;
        if let Some(stop) = self.containers.get_mut(&record.id) {
            stop.deadline = stop.deadline.min(wanted.max(Instant::now()));
            return;
        }
        if let Some(pod) = stopper.pod {
            stopper
                .recorder
                .info(pod, Some(&record.container), "Killing", why);
        }
        let least = if hook.is_some() && !grace.is_zero() {
            LEAST_GRACE
        } else {
            Duration::ZERO
        };
        let job = Asking {
            runtime: stopper.runtime.clone(),
            recorder: stopper.recorder.clone(),
            pod: stopper.pod.cloned(),
            container: container.unwrap_or_default(),
            hook,
            record: record.clone(),
            ip: stopper.ip,
            grace,
        };
        let wake = stopper.wake.clone();
        let asking = tokio::spawn(async move {
            job.run().await;
            wake.notify_one();
        });
        self.containers.insert(
            record.id.clone(),
            Stop {
                deadline: wanted + least,
                asking,
            },
        );
    }

    /// Kills what has not ended in time, and forgets what has ended. Answers how long the next deadline is away.
    pub async fn enforce<'a>(
        &mut self,
        runtime: &Runtime,
        running: impl Iterator<Item = &'a Record>,
    ) -> Result<Option<Duration>, RuntimeError> {
        let running: HashSet<&str> = running.map(|record| record.id.as_str()).collect();
        self.containers.retain(|id, stop| {
            let keep = running.contains(id.as_str());
            if !keep {
                stop.asking.abort();
            }
            keep
        });
        let now = Instant::now();
        let mut next: Option<Duration> = None;
        for (id, stop) in &self.containers {
            let left = stop.deadline.saturating_duration_since(now);
            if left.is_zero() {
                stop.asking.abort();
                runtime.signal(id, "SIGKILL").await?;
            }
            // A killed container is looked at again soon, in case the event of its end is lost.
            let left = if left.is_zero() {
                Duration::from_millis(500)
            } else {
                left
            };
            next = Some(next.map_or(left, |next| next.min(left)));
        }
        Ok(next)
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        for stop in self.containers.values() {
            stop.asking.abort();
        }
    }
}

struct Asking {
    runtime: Runtime,
    recorder: Recorder,
    pod: Option<Arc<Pod>>,
    container: Container,
    hook: Option<LifecycleHandler>,
    record: Record,
    ip: Option<IpAddr>,
    grace: Duration,
}

impl Asking {
    async fn run(self) {
        if let (Some(hook), false) = (&self.hook, self.grace.is_zero()) {
            let running = run_hook(
                &self.runtime,
                hook,
                &self.container,
                &self.record.id,
                self.ip,
                self.grace,
            );
            let outcome = timeout(self.grace, running).await;
            let failure = match outcome {
                Err(_) => Some(format!(
                    "PreStopHook did not end within the grace of {} s",
                    self.grace.as_secs()
                )),
                Ok(Err(message)) => Some(format!("PreStopHook failed: {message}")),
                Ok(Ok(())) => None,
            };
            if let (Some(message), Some(pod)) = (failure, &self.pod) {
                self.recorder.warn(
                    pod,
                    Some(&self.record.container),
                    "FailedPreStopHook",
                    message,
                );
            }
        }
        if let Err(error) = self
            .runtime
            .signal(&self.record.id, &self.record.stop_signal)
            .await
        {
            warn!(
                container = self.record.container,
                id = self.record.id,
                error = crate::chain(&error),
                "not signalled"
            );
        }
    }
}

/// Runs a lifecycle hook to its end.
pub(crate) async fn run_hook(
    runtime: &Runtime,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        return match runtime.exec(id, &command, limit).await {
            Ok(ended) if ended.code == 0 => Ok(()),
            Ok(ended) => Err(format!(
                "exit code {}: {}",
                ended.code,
                ended.output.trim_end()
            )),
            Err(error) => Err(crate::chain(&error)),
        };
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(action.seconds).unwrap_or(0),
        ))
        .await;
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let code = http::get(action, container, ip, limit).await?;
        return if (200..400).contains(&code) {
            Ok(())
        } else {
            Err(format!("HTTP status {code}"))
        };
    }
    Err("the hook has neither exec nor httpGet nor sleep".to_owned())
}

pub(crate) fn named(pod: &Pod, name: &str) -> Option<Container> {
    let spec = pod.spec.as_ref()?;
    let all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    all.into_iter()
        .find(|container| container.name == name)
        .cloned()
}
