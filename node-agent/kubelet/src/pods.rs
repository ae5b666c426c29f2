//! From the API server's pods and Docker's events to one worker a pod.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{Id, JoinSet},
    time::sleep,
};
use tracing::{error, info, warn};

use crate::{
    runtime::{PodRef, Runtime},
    worker::{Desired, Shared, Worker, identity},
};

/// When a look for orphans that failed is tried again.
const ORPHANS_AGAIN: Duration = Duration::from_secs(5);

/// The workers of all pods on this node.
struct Pods {
    shared: Arc<Shared>,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<()>,
    uids: HashMap<Id, String>,
    /// Pods of a list that is still coming in; `None` outside of one.
    listing: Option<HashSet<String>>,
    /// What earlier agents left is looked for once, after the first full list.
    orphans: Orphans,
}

enum Orphans {
    NotListed,
    /// The pods of the first full list.
    Listed(HashSet<String>),
    Found,
}

struct Handle {
    pod: PodRef,
    desired: watch::Sender<Desired>,
    wake: Arc<Notify>,
}

/// Runs the pods that are bound to this node, until dropped. Dropping it leaves them running.
pub(crate) async fn run(shared: Arc<Shared>) -> anyhow::Result<Infallible> {
    let api: Api<Pod> = Api::all(shared.objects.client.clone());
    let selector = format!("spec.nodeName={}", shared.config.node_name);
    let mut stream =
        pin!(watcher(api, watcher::Config::default().fields(&selector)).default_backoff());
    let (started_or_ended, mut woken) = mpsc::channel(64);
    let runtime = shared.runtime.clone();
    let mut pods = Pods {
        shared,
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        uids: HashMap::new(),
        listing: None,
        orphans: Orphans::NotListed,
    };
    let mut following = pin!(follow_docker(runtime, started_or_ended));
    loop {
        tokio::select! {
            event = stream.next() => match event {
                Some(Ok(event)) => pods.event(event).await,
                Some(Err(error)) => warn!(error = crate::chain(&error), "watch of pods interrupted"),
                None => anyhow::bail!("the watch of pods has ended"),
            },
            uid = woken.recv() => match uid {
                Some(Some(uid)) => pods.wake(&uid),
                Some(None) => pods.wake_all(),
                None => anyhow::bail!("the events of Docker have ended"),
            },
            Some(ended) = pods.tasks.join_next_with_id() => pods.ended(ended),
            () = sleep(ORPHANS_AGAIN), if matches!(pods.orphans, Orphans::Listed(_)) => pods.look_for_orphans().await,
            never = &mut following => match never {},
        }
    }
}

impl Pods {
    async fn event(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listing = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let Some(listing) = &mut self.listing {
                    listing.extend(pod.metadata.uid.clone());
                }
                self.present(pod);
            }
            watcher::Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let gone: Vec<String> = self
                    .workers
                    .keys()
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.gone(&uid);
                }
                if matches!(self.orphans, Orphans::NotListed) {
                    self.orphans = Orphans::Listed(listed);
                    self.look_for_orphans().await;
                }
            }
            watcher::Event::Apply(pod) => self.present(pod),
            watcher::Event::Delete(pod) => {
                self.gone(pod.metadata.uid.as_deref().unwrap_or_default())
            }
        }
    }

    fn present(&mut self, pod: Pod) {
        let pod_ref = identity(&pod);
        if pod_ref.uid.is_empty() {
            return;
        }
        let desired = Desired::Present(Arc::new(pod));
        match self.workers.get(&pod_ref.uid) {
            Some(worker) => {
                worker.desired.send_replace(desired);
            }
            None => self.employ(pod_ref, desired),
        }
    }

    fn gone(&mut self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.desired.send_replace(Desired::Gone);
        }
    }

    fn employ(&mut self, pod: PodRef, desired: Desired) {
        let (sender, receiver) = watch::channel(desired);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(self.shared.clone(), pod.clone(), receiver, wake.clone());
        let task = self.tasks.spawn(worker.run());
        self.uids.insert(task.id(), pod.uid.clone());
        self.workers.insert(
            pod.uid.clone(),
            Handle {
                pod,
                desired: sender,
                wake,
            },
        );
        self.count();
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(worker) = self
            .uids
            .remove(&id)
            .and_then(|uid| self.workers.remove(&uid))
        else {
            return;
        };
        if let Err(error) = ended {
            error!(pod = worker.pod.name, uid = worker.pod.uid, %error, "worker failed; it is replaced");
            let desired = worker.desired.borrow().clone();
            self.employ(worker.pod, desired);
        }
        self.count();
    }

    fn wake(&self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            worker.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for worker in self.workers.values() {
            worker.wake.notify_one();
        }
    }

    /// Until it has been done: Docker may not answer just now.
    async fn look_for_orphans(&mut self) {
        let Orphans::Listed(listed) = &self.orphans else {
            return;
        };
        match self.find_orphans(&listed.clone()).await {
            Ok(()) => self.orphans = Orphans::Found,
            Err(error) => warn!(
                error = format!("{error:#}"),
                "what earlier pods left is not known yet"
            ),
        }
    }

    /// Containers, links, addresses and volumes of pods that went while no agent ran.
    async fn find_orphans(&mut self, listed: &HashSet<String>) -> anyhow::Result<()> {
        let mut found: HashMap<String, PodRef> = HashMap::new();
        let unnamed = |uid: String| PodRef {
            uid,
            namespace: String::new(),
            name: String::new(),
        };
        for uid in self.shared.volumes.pods().context("list the volumes")? {
            found.insert(uid.clone(), unnamed(uid));
        }
        for lease in self.shared.wiring.ipam.leases() {
            found.insert(lease.owner.clone(), unnamed(lease.owner));
        }
        for link in self.shared.wiring.network.pod_links().await? {
            let pod = PodRef {
                uid: link.uid,
                namespace: link.namespace,
                name: link.name,
            };
            found.insert(pod.uid.clone(), pod);
        }
        for record in self.shared.runtime.records(None).await? {
            found.insert(record.pod.uid.clone(), record.pod);
        }
        for (uid, pod) in found {
            if !listed.contains(&uid) && !self.workers.contains_key(&uid) {
                info!(
                    pod = pod.name,
                    namespace = pod.namespace,
                    uid,
                    "removing what a pod that is gone has left"
                );
                self.employ(pod, Desired::Gone);
            }
        }
        Ok(())
    }

    fn count(&self) {
        self.shared
            .metrics
            .pods
            .store(self.workers.len() as u64, Ordering::Relaxed);
    }
}

/// Sends the uid of each pod one of whose containers started or ended; nothing when events may have been missed.
async fn follow_docker(runtime: Runtime, sender: mpsc::Sender<Option<String>>) -> Infallible {
    loop {
        let mut events = pin!(runtime.events());
        loop {
            match events.try_next().await {
                Ok(Some(uid)) => {
                    let _ = sender.send(Some(uid)).await;
                }
                Ok(None) => break,
                Err(error) => {
                    warn!(error = crate::chain(&error), "events of Docker interrupted");
                    break;
                }
            }
        }
        sleep(Duration::from_secs(1)).await;
        let _ = sender.send(None).await;
    }
}
