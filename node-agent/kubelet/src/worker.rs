//! One pod's worker: looks at what Docker has, does what the plan says, reports, and waits for the next reason to look.
//!
//! It keeps nothing that cannot be found again: an agent that was killed starts its workers anew, and they find their
//! pods' containers by label, links by alias and addresses by lease.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{
    KubeletConfig, PodWiring,
    backoff::Backoffs,
    container::pod_ref,
    env::ConfigError,
    events::Recorder,
    metrics::Metrics,
    objects::Objects,
    plan::{self, Step, View},
    probe::{Prober, Probes},
    runtime::{PodRef, Record, Runtime},
    sandbox::Wired,
    status::Waiting,
    stop::{Stopper, Stopping},
    terminate::grace_of_spec,
    volumes::Volumes,
};

/// How often a pod is looked at without any reason, in case one was missed.
pub(crate) const LOOK_ANYWAY: Duration = Duration::from_secs(20);
/// When a status that could not be reported is tried again.
const REPORT_AGAIN: Duration = Duration::from_secs(3);
/// How long the API server may take for all of a pod's ConfigMaps and Secrets.
const REFRESH_LIMIT: Duration = Duration::from_secs(5);
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
    pub(crate) last: Option<Arc<Pod>>,
    pub(crate) wired: Option<Wired>,
    pub(crate) probes: Probes,
    pub(crate) stopping: Stopping,
    pub(crate) backoffs: Backoffs,
    /// When the last try to start a container failed.
    pub(crate) failed_at: HashMap<String, Instant>,
    pub(crate) waiting: HashMap<String, Waiting>,
    /// The status as the API server has it from us.
    pub(crate) reported: Option<Value>,
    /// The last try to report has failed.
    pub(crate) unreported: bool,
    /// By name, how often each container was restarted.
    seen_restarts: BTreeMap<String, u32>,
    failures: u32,
    /// When the volumes of ConfigMaps and Secrets were last looked at.
    pub(crate) volumes_at: Instant,
}

/// When to look again.
pub(crate) enum Next {
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
            seen_restarts: BTreeMap::new(),
            failures: 0,
            volumes_at: Instant::now(),
        }
    }

    /// Runs until the pod is no more.
    pub async fn run(mut self) {
        loop {
            let now = self.desired.borrow_and_update().clone();
            let mut desired = self.desired.clone();
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
            let mut view = self.view().await?;
            view.remember(&mut self.seen_restarts);
            self.watch_probes(pod, &view);
            if view.running().next().is_some() {
                self.refresh_volumes(pod).await;
            }
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

    /// What a container reads of ConfigMaps and Secrets follows them. Volumes that cannot be brought up to date stay as
    /// they are: the container that needs them runs already.
    async fn refresh_volumes(&mut self, pod: &Pod) {
        if self.volumes_at.elapsed() < LOOK_ANYWAY {
            return;
        }
        self.volumes_at = Instant::now();
        let shared = self.shared.clone();
        let refreshed = shared.volumes.refresh(&shared.objects, pod);
        // An API server that does not answer keeps no container from being started or stopped.
        let Ok(Err(error)) = timeout(REFRESH_LIMIT, refreshed).await else {
            return;
        };
        let message = format!("volumes stay as they are: {}", crate::chain(&error));
        warn!(pod = self.pod.name, uid = self.pod.uid, "{message}");
        if !matches!(error, ConfigError::Objects(_)) {
            shared.recorder.warn(pod, None, "FailedMount", message);
        }
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

    pub(crate) async fn view(&self) -> anyhow::Result<View> {
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
