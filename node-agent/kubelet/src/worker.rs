//! One pod's worker: looks at what Docker has, does what the plan says, reports, and waits for the next reason to look.
//!
//! It keeps nothing that cannot be found again: an agent that was killed starts its workers anew, and they find their
//! pods' containers by label, links by alias and addresses by lease.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    KubeletConfig, PodWiring,
    backoff::Backoffs,
    container::pod_ref,
    events::Recorder,
    metrics::{self, Metrics},
    objects::Objects,
    plan::{self, Step, View},
    probe::{Prober, Probes},
    runtime::{PodRef, Record, Runtime},
    sandbox::Wired,
    status::{self, Observed, Waiting},
    stop::{Stopper, Stopping},
    volumes::Volumes,
};

/// How often a pod is looked at without any reason, in case one was missed.
const LOOK_ANYWAY: Duration = Duration::from_secs(20);
/// Grace for the containers of a pod that the API server no longer has.
const GRACE_OF_GONE: Duration = Duration::from_secs(1);
/// How long the API server may take for a status.
const REPORT_LIMIT: Duration = Duration::from_secs(10);
/// When a status that could not be reported is tried again.
const REPORT_AGAIN: Duration = Duration::from_secs(3);
/// Steps after which a worker rests, should a plan ever not come to its end.
const ROUNDS: usize = 32;

/// What all workers share.
pub(crate) struct Shared {
    pub config: KubeletConfig,
    pub runtime: Runtime,
    pub objects: Objects,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
    pub volumes: Volumes,
    pub wiring: PodWiring,
}

/// What the API server says of a pod.
#[derive(Clone, Debug)]
pub(crate) enum Desired {
    Present(Arc<Pod>),
    /// It has no such pod.
    Gone,
}

pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: PodRef,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    /// The pod as it was last seen.
    last: Option<Arc<Pod>>,
    pub(crate) wired: Option<Wired>,
    probes: Probes,
    stopping: Stopping,
    pub(crate) backoffs: Backoffs,
    /// When the last try to start a container failed.
    pub(crate) failed_at: HashMap<String, Instant>,
    pub(crate) waiting: HashMap<String, Waiting>,
    /// The status as the API server has it from us.
    reported: Option<Value>,
    /// The last try to report has failed.
    unreported: bool,
    failures: u32,
}

/// When to look again.
enum Next {
    In(Duration),
    /// The pod is no more.
    Never,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        pod: PodRef,
        desired: watch::Receiver<Desired>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            shared,
            pod,
            desired,
            last: None,
            wired: None,
            probes: Probes::new(wake.clone()),
            wake,
            stopping: Stopping::default(),
            backoffs: Backoffs::default(),
            failed_at: HashMap::new(),
            waiting: HashMap::new(),
            reported: None,
            unreported: false,
            failures: 0,
        }
    }

    /// Runs until the pod is no more.
    pub async fn run(mut self) {
        loop {
            let mut desired = self.desired.clone();
            let now = desired.borrow_and_update().clone();
            self.desired.mark_unchanged();
            let looked = match &now {
                Desired::Present(pod) if pod.metadata.deletion_timestamp.is_none() => {
                    self.last = Some(pod.clone());
                    // A deletion must not wait for a slow pull or a container that does not start.
                    tokio::select! {
                        looked = self.sync(pod) => looked,
                        () = deleted(&mut desired) => Ok(Next::In(Duration::ZERO)),
                    }
                }
                Desired::Present(pod) => {
                    self.last = Some(pod.clone());
                    self.terminate(Some(pod)).await
                }
                Desired::Gone => self.terminate(None).await,
            };
            let wait = match looked {
                Ok(Next::Never) => return,
                Ok(Next::In(wait)) => {
                    self.failures = 0;
                    wait
                }
                Err(error) => {
                    let wait = Duration::from_secs(1 << self.failures.min(4));
                    self.failures += 1;
                    warn!(
                        pod = self.pod.name,
                        uid = self.pod.uid,
                        error = format!("{error:#}"),
                        "pod not in sync"
                    );
                    wait
                }
            };
            let wait = if self.unreported {
                wait.min(REPORT_AGAIN)
            } else {
                wait
            };
            tokio::select! {
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.wake.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    async fn sync(&mut self, pod: &Arc<Pod>) -> anyhow::Result<Next> {
        let mut next = LOOK_ANYWAY;
        for _ in 0..ROUNDS {
            let view = self.view().await?;
            self.watch_probes(pod, &view);
            if let Some(deadline) = self
                .stopping
                .enforce(&self.shared.runtime, view.running())
                .await?
            {
                next = next.min(deadline);
            }
            let steps = plan::plan(pod, &view, |record| self.probes.health(pod, record));
            let finishing = steps.contains(&Step::Finish);
            if !finishing && view.sandbox.is_some() {
                self.wire(pod, &view).await?;
            }
            let mut progressed = false;
            for step in steps {
                match self.step(pod, &view, step).await? {
                    Done::Progress => progressed = true,
                    Done::Nothing => {}
                    Done::Later(wait) => next = next.min(wait),
                }
                self.report(pod, &self.view().await?, false).await;
            }
            if !progressed {
                self.report(pod, &view, false).await;
                break;
            }
        }
        Ok(Next::In(next))
    }

    async fn step(&mut self, pod: &Arc<Pod>, view: &View, step: Step) -> anyhow::Result<Done> {
        match step {
            Step::NewSandbox { attempt, remove } => {
                self.report(pod, view, false).await;
                self.new_sandbox(pod, attempt, &remove)
                    .await
                    .map(|()| Done::Progress)
            }
            Step::Start {
                container,
                restart_count,
                after,
            } => {
                self.start(pod, view, &container, restart_count, after.as_deref())
                    .await
            }
            Step::Stop { record, why } => {
                let grace = grace_of_spec(pod);
                self.ask(Some(pod), &record, grace, why);
                Ok(Done::Later(grace))
            }
            Step::Remove { id } => {
                self.shared.runtime.remove(&id).await?;
                Ok(Done::Nothing)
            }
            Step::Finish => self.finish(pod, view).await,
        }
    }

    /// The pod has ended by itself: nothing of it may run, and it needs neither link nor addresses.
    async fn finish(&mut self, pod: &Arc<Pod>, view: &View) -> anyhow::Result<Done> {
        let mut running = false;
        for record in view.running() {
            running = true;
            self.ask(
                Some(pod),
                record,
                grace_of_spec(pod),
                format!("Stopping container {}", record.container),
            );
        }
        if running {
            return Ok(Done::Nothing);
        }
        self.waiting.clear();
        self.report(pod, view, false).await;
        if view.sandbox.is_some() || !self.shared.wiring.ipam.addresses(&self.pod.uid).is_empty() {
            self.remove_sandboxes(view).await?;
        }
        Ok(Done::Nothing)
    }

    /// The pod is deleted: everything of it ends, then it goes, here and at the API server.
    async fn terminate(&mut self, present: Option<&Arc<Pod>>) -> anyhow::Result<Next> {
        self.probes.forget_failures();
        let view = self.view().await?;
        let running: Vec<Record> = view.running().cloned().collect();
        let pod = present.cloned().or_else(|| self.last.clone());
        let grace = present.map_or(GRACE_OF_GONE, |pod| remaining_grace(pod));
        for record in &running {
            self.ask(
                pod.as_ref(),
                record,
                grace,
                format!("Stopping container {}", record.container),
            );
        }
        let deadline = self
            .stopping
            .enforce(&self.shared.runtime, running.iter())
            .await?;
        self.waiting.clear();
        if let Some(pod) = present {
            self.report(pod, &view, running.is_empty()).await;
        }
        if !running.is_empty() {
            return Ok(Next::In(deadline.unwrap_or(LOOK_ANYWAY).min(LOOK_ANYWAY)));
        }
        self.remove_sandboxes(&view).await?;
        for record in view.containers.values().flatten() {
            self.shared.runtime.remove(&record.id).await?;
        }
        // A container may have been in the making when the deletion came.
        if !self
            .shared
            .runtime
            .records(Some(&self.pod.uid))
            .await?
            .is_empty()
        {
            return Ok(Next::In(Duration::from_millis(200)));
        }
        self.shared
            .volumes
            .remove(&self.pod.uid)
            .context("remove the pod's volumes")?;
        if present.is_some() {
            self.shared.objects.delete_pod(&self.pod).await?;
        }
        metrics::count(&self.shared.metrics.pods_terminated);
        info!(
            pod = self.pod.name,
            namespace = self.pod.namespace,
            uid = self.pod.uid,
            "pod terminated"
        );
        Ok(Next::Never)
    }

    async fn view(&self) -> anyhow::Result<View> {
        Ok(View::new(
            self.shared.runtime.records(Some(&self.pod.uid)).await?,
        ))
    }

    pub(crate) fn ask(
        &mut self,
        pod: Option<&Arc<Pod>>,
        record: &Record,
        grace: Duration,
        why: String,
    ) {
        let ip = pod.and_then(|pod| self.addresses(pod).first().copied());
        let stopper = Stopper {
            runtime: &self.shared.runtime,
            recorder: &self.shared.recorder,
            pod,
            ip,
            wake: &self.wake,
        };
        self.stopping.ask(&stopper, record, grace, why);
    }

    fn watch_probes(&mut self, pod: &Arc<Pod>, view: &View) {
        let spec = pod.spec.as_ref();
        let sidecars = spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        let containers = sidecars.filter(|container| plan::is_sidecar(container));
        let containers: Vec<&Container> = containers
            .chain(spec.iter().flat_map(|spec| spec.containers.iter()))
            .collect();
        let running: Vec<(&Container, &Record)> = containers
            .into_iter()
            .filter_map(|container| {
                let record = view
                    .current(&container.name)
                    .filter(|record| record.is_running())?;
                Some((container, record))
            })
            .collect();
        let prober = Prober {
            runtime: self.shared.runtime.clone(),
            recorder: self.shared.recorder.clone(),
            metrics: self.shared.metrics.clone(),
        };
        let ip = self.addresses(pod).first().copied();
        self.probes.watch(&prober, pod, &running, ip);
    }

    /// The pod's addresses: its own, or the node's.
    pub(crate) fn addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        if host_network(pod) {
            return self.shared.config.node_ips.clone();
        }
        self.shared.wiring.ipam.addresses(&self.pod.uid)
    }

    /// Tells the API server the pod's status if it does not know it yet. A server that does not answer keeps no
    /// container from being started or stopped: the status is told again at the next look.
    async fn report(&mut self, pod: &Pod, view: &View, ended: bool) {
        let status = match serde_json::to_value(self.status(pod, view, ended)) {
            Ok(status) => status,
            Err(error) => {
                return warn!(pod = self.pod.name, %error, "the status cannot be written as JSON");
            }
        };
        let known = match &self.reported {
            Some(reported) => reported.clone(),
            None => serde_json::to_value(&pod.status).unwrap_or(Value::Null),
        };
        if same(&status, &known) {
            return;
        }
        let patch = with_removals(status.clone(), &known);
        let request = timeout(
            REPORT_LIMIT,
            self.shared.objects.patch_status(&self.pod, &patch),
        );
        self.unreported = true;
        match request.await {
            Ok(Ok(known)) => {
                if known {
                    metrics::count(&self.shared.metrics.status_patches);
                    debug!(pod = self.pod.name, uid = self.pod.uid, phase = %patch["phase"], "status reported");
                }
                self.reported = Some(status);
                self.unreported = false;
            }
            Ok(Err(error)) => {
                warn!(
                    pod = self.pod.name,
                    uid = self.pod.uid,
                    error = crate::chain(&error),
                    "status not reported"
                );
            }
            Err(_) => warn!(
                pod = self.pod.name,
                uid = self.pod.uid,
                "status not reported: no answer"
            ),
        }
    }

    /// The pod with the status that was reported last, which its watch may not have brought back yet: otherwise a
    /// condition would seem to change again and again.
    fn with_reported(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some(reported) = self
            .reported
            .clone()
            .and_then(|status| serde_json::from_value::<PodStatus>(status).ok())
        {
            let status = pod.status.get_or_insert_default();
            let others = status.conditions.take().unwrap_or_default();
            let others = others
                .into_iter()
                .filter(|condition| !status::is_own(condition));
            let own = reported
                .conditions
                .unwrap_or_default()
                .into_iter()
                .filter(status::is_own);
            status.conditions = Some(others.chain(own).collect());
            status.start_time = reported.start_time;
            if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                status.phase = reported.phase;
            }
        }
        pod
    }

    fn status(&self, pod: &Pod, view: &View, ended: bool) -> PodStatus {
        let pod = &self.with_reported(pod);
        let addresses = self.addresses(pod);
        let wired = self.wired.as_ref().map(|wired| wired.sandbox_id.as_str());
        let network_ready = match &view.sandbox {
            Some(sandbox) => host_network(pod) || wired == Some(&sandbox.id),
            None => false,
        };
        let observed = Observed {
            pod,
            view,
            pod_ips: if view.sandbox.is_some() {
                &addresses
            } else {
                &[]
            },
            host_ips: &self.shared.config.node_ips,
            network_ready,
            waiting: &self.waiting,
            health: |record: &Record| self.probes.health(pod, record),
            ended,
            now: Timestamp::now(),
        };
        observed.status()
    }
}

/// What a step has come to.
pub(crate) enum Done {
    /// Something is different now: look again.
    Progress,
    Nothing,
    /// It is to be tried again then.
    Later(Duration),
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// A worker's pod, from what the API server has.
pub(crate) fn identity(pod: &Pod) -> PodRef {
    pod_ref(pod)
}

async fn deleted(desired: &mut watch::Receiver<Desired>) {
    let deleting = |desired: &Desired| match desired {
        Desired::Present(pod) => pod.metadata.deletion_timestamp.is_some(),
        Desired::Gone => true,
    };
    // The sender goes only together with the whole kubelet.
    if desired.wait_for(deleting).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn grace_of_spec(pod: &Pod) -> Duration {
    let seconds = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// What is left of the grace that the deletion gave: `deletionTimestamp` is the moment at which it is over.
fn remaining_grace(pod: &Pod) -> Duration {
    let Some(end) = &pod.metadata.deletion_timestamp else {
        return grace_of_spec(pod);
    };
    let left = end.0.duration_since(Timestamp::now());
    let given = pod
        .metadata
        .deletion_grace_period_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    // The API server's clock may be ahead; never wait longer than was given.
    let most = given.map_or_else(|| grace_of_spec(pod), Duration::from_secs);
    Duration::try_from(left).unwrap_or(Duration::ZERO).min(most)
}

/// Whether the API server knows all of `status` already; what others wrote beside it does not count.
fn same(status: &Value, known: &Value) -> bool {
    OWNED.iter().all(|key| status.get(key) == known.get(key))
}

/// The fields of a status that the kubelet writes.
const OWNED: [&str; 11] = [
    "phase",
    "conditions",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "observedGeneration",
    "message",
];

/// A merge patch removes only what it names (RFC 7386).
fn with_removals(mut status: Value, known: &Value) -> Value {
    if let Some(fields) = status.as_object_mut() {
        for key in OWNED {
            if !fields.contains_key(key) && known.get(key).is_some() {
                fields.insert(key.to_owned(), Value::Null);
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_own_fields_make_a_status_different() {
        let known = json!({"phase": "Running", "qosClass": "BestEffort"});
        assert!(same(&json!({"phase": "Running"}), &known));
        assert!(!same(&json!({"phase": "Failed"}), &known));
        assert!(!same(
            &json!({"phase": "Running", "podIP": "10.0.0.1"}),
            &known
        ));
    }

    #[test]
    fn what_is_no_more_is_named_in_the_patch() {
        let known = json!({"phase": "Running", "podIP": "10.0.0.1", "qosClass": "BestEffort"});
        assert_eq!(
            with_removals(json!({"phase": "Failed"}), &known),
            json!({"phase": "Failed", "podIP": null})
        );
    }

    #[test]
    fn a_restarted_agent_gives_only_the_grace_that_is_left() {
        let mut pod = Pod::default();
        pod.metadata.deletion_grace_period_seconds = Some(30);
        let end = |seconds: i64| {
            Some(Time(
                Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
            ))
        };
        pod.metadata.deletion_timestamp = end(20);
        let left = remaining_grace(&pod);
        assert!(
            left > Duration::from_secs(18) && left <= Duration::from_secs(20),
            "{left:?}"
        );
        pod.metadata.deletion_timestamp = end(-5);
        assert_eq!(remaining_grace(&pod), Duration::ZERO);
        pod.metadata.deletion_timestamp = end(400);
        assert_eq!(remaining_grace(&pod), Duration::from_secs(30));
    }
}
