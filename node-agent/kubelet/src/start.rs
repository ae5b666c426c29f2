//! Starting one container: its turn, its image, its configuration, its start, its postStart hook.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    container::{container_body, docker_name},
    env::{self, PodFacts},
    images, metrics,
    plan::View,
    runtime::Record,
    status::Waiting,
    stop::run_hook,
    volumes,
    worker::{Done, Worker},
};

/// Longest time that a postStart hook may take.
const POST_START: Duration = Duration::from_secs(120);

impl Worker {
    pub(crate) async fn start(
        &mut self,
        pod: &Arc<Pod>,
        view: &View,
        container: &Container,
        restart_count: u32,
        after: Option<&Record>,
    ) -> anyhow::Result<Done> {
        let name = &container.name;
        if let Some(wait) = self.must_wait(pod, container, after) {
            return Ok(Done::Later(wait));
        }
        if after.is_some() {
            self.backoffs.next(&format!("run {name}"), Instant::now());
        }
        let started = self.try_start(pod, view, container, restart_count).await;
        let shared = &self.shared;
        match started {
            Ok(()) => {
                metrics::count(&shared.metrics.containers_started);
                if after.is_some() {
                    metrics::count(&shared.metrics.container_restarts);
                }
                self.waiting.remove(name);
                self.failed_at.remove(name);
                self.backoffs.reset(&format!("start {name}"));
                Ok(Done::Progress)
            }
            Err(waiting) => {
                metrics::count(&shared.metrics.container_failures);
                let now = Instant::now();
                self.failed_at.insert(name.clone(), now);
                let key = format!("start {name}");
                self.backoffs.next(&key, now);
                let wait = self
                    .backoffs
                    .wait(&key, now, now)
                    .map_or(Duration::ZERO, |(left, _)| left);
                self.waiting.insert(name.clone(), waiting);
                Ok(Done::Later(wait))
            }
        }
    }

    /// How long a container must wait because it ended or could not be started too often; the reason goes into its
    /// status.
    fn must_wait(
        &mut self,
        pod: &Pod,
        container: &Container,
        after: Option<&Record>,
    ) -> Option<Duration> {
        let name = &container.name;
        let now = Instant::now();
        if let Some(failed_at) = self.failed_at.get(name)
            && let Some((left, _)) = self
                .backoffs
                .wait(&format!("start {name}"), *failed_at, now)
        {
            let image = container.image.as_deref().unwrap_or_default();
            if let Some(waiting) = self.waiting.get_mut(name)
                && waiting.reason == "ErrImagePull"
            {
                let message = format!("Back-off pulling image {image:?}: {}", waiting.message);
                self.shared.recorder.info(
                    pod,
                    Some(name),
                    "BackOff",
                    format!("Back-off pulling image {image:?}"),
                );
                *waiting = Waiting {
                    reason: "ImagePullBackOff",
                    message,
                };
            }
            return Some(left);
        }
        let ended = after?.finished_at?;
        let ago =
            Duration::try_from(Timestamp::now().duration_since(ended)).unwrap_or(Duration::ZERO);
        let ended = now.checked_sub(ago).unwrap_or(now);
        let (left, delay) = self.backoffs.wait(&format!("run {name}"), ended, now)?;
        let message = format!(
            "back-off {}s restarting failed container={name} pod={}_{}({})",
            delay.as_secs(),
            self.pod.name,
            self.pod.namespace,
            self.pod.uid
        );
        let waiting = Waiting {
            reason: "CrashLoopBackOff",
            message: message.clone(),
        };
        if self.waiting.get(name) != Some(&waiting) {
            self.shared.recorder.warn(
                pod,
                Some(name),
                "BackOff",
                format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    self.pod.name, self.pod.namespace, self.pod.uid
                ),
            );
            self.waiting.insert(name.clone(), waiting);
        }
        Some(left)
    }

    async fn try_start(
        &mut self,
        pod: &Arc<Pod>,
        view: &View,
        container: &Container,
        restart_count: u32,
    ) -> Result<(), Waiting> {
        let shared = self.shared.clone();
        let name = Some(container.name.as_str());
        let Some(sandbox) = &view.sandbox else {
            return Err(Waiting {
                reason: "ContainerCreating",
                message: "the sandbox has ended".to_owned(),
            });
        };
        images::ensure(
            &shared.runtime,
            &shared.recorder,
            &shared.metrics,
            pod,
            container,
        )
        .await?;
        let failed = |reason: &'static str, message: String| {
            shared
                .recorder
                .warn(pod, name, "Failed", format!("Error: {message}"));
            Waiting { reason, message }
        };
        let config_failed =
            |error: env::ConfigError| failed("CreateContainerConfigError", crate::chain(&error));
        let addresses = self.addresses(pod);
        let facts = PodFacts {
            pod,
            pod_ips: &addresses,
            host_ips: &shared.config.node_ips,
        };
        let environment = env::environment(&shared.objects, facts, container)
            .await
            .map_err(config_failed)?;
        let paths = shared
            .volumes
            .prepare(&shared.objects, pod)
            .await
            .map_err(config_failed)?;
        self.volumes_at = Instant::now();
        let mounts = volumes::mounts(container, &paths).map_err(config_failed)?;
        let body = container_body(
            pod,
            container,
            &sandbox.id,
            restart_count,
            &environment,
            mounts,
        )
        .map_err(config_failed)?;
        let docker_name = docker_name(&self.pod, &container.name, restart_count);
        let id = shared
            .runtime
            .create(&docker_name, body)
            .await
            .map_err(|error| failed("CreateContainerError", crate::chain(&error)))?;
        shared.recorder.info(
            pod,
            name,
            "Created",
            format!("Container created: {}", container.name),
        );
        shared
            .runtime
            .start(&id)
            .await
            .map_err(|error| failed("RunContainerError", crate::chain(&error)))?;
        shared.recorder.info(
            pod,
            name,
            "Started",
            format!("Container started: {}", container.name),
        );
        self.post_start(pod, container, &id).await;
        Ok(())
    }

    /// A hook that fails ends its container, whose restart is then up to the pod's policy.
    async fn post_start(&mut self, pod: &Arc<Pod>, container: &Container, id: &str) {
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook else { return };
        let ip = self.addresses(pod).first().copied();
        let outcome = run_hook(&self.shared.runtime, hook, container, id, ip, POST_START).await;
        let Err(message) = outcome else { return };
        let recorder = &self.shared.recorder;
        recorder.warn(
            pod,
            Some(&container.name),
            "FailedPostStartHook",
            format!("PostStartHook failed: {message}"),
        );
        if let Err(error) = self.shared.runtime.signal(id, "SIGKILL").await {
            tracing::warn!(
                container = container.name,
                error = crate::chain(&error),
                "not killed after its hook failed"
            );
        }
    }
}
