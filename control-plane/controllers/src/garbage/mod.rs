//! Objects whose owners are gone (<https://kubernetes.io/docs/concepts/architecture/garbage-collection/>).
//!
//! The collector watches the metadata of every kind that there is, also of those that come while it runs. It deletes only
//! what it knows: nothing before every kind was listed once, nothing whose owner it has not asked the API for, and each
//! object by its uid.

mod graph;
mod kinds;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::broadcast;

use crate::fault::gone;
use crate::queue::Queue;
use crate::{Informers, Options};
use graph::{FOREGROUND, Graph, Node, ORPHAN, Propagation, Step, Uid};
use kinds::{Kinds, Resource};

const WORKERS: usize = 5;

/// What the watches and the workers share.
struct Collector {
    client: Client,
    graph: Mutex<Graph<Resource>>,
    queue: Queue<Uid>,
    kinds: Kinds,
    vanished: broadcast::Sender<String>,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    let collector = Arc::new(Collector {
        kinds: Kinds::new(client.clone()),
        client,
        graph: Mutex::new(Graph::new()),
        queue: Queue::new(),
        vanished: informers.vanished.clone(),
    });
    let watching = kinds::watch(collector.clone(), options.garbage_discovery_period);
    let working = async {
        collector.kinds.listed().await;
        let work = |uid| collector.look(uid);
        collector.queue.serve("garbage", WORKERS, work).await;
    };
    tokio::join!(watching, working);
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph<Resource>> {
        // No code that holds the lock can panic halfway through a change.
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, uid: Uid, node: Node<Resource>) {
        let look = self.graph().put(uid, node);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn remove(&self, uid: &str) {
        let namespace = self
            .graph()
            .get(uid)
            .and_then(|node| node.namespace.clone());
        if let Some(namespace) = namespace {
            // Nobody may listen.
            let _ = self.vanished.send(namespace);
        }
        let look = self.graph().remove(uid);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    /// Does what is to be done about one object.
    async fn look(&self, uid: Uid) -> Result<(), kube::Error> {
        let (node, mut step) = {
            let graph = self.graph();
            let Some(node) = graph.get(&uid).cloned() else {
                return Ok(());
            };
            (node, graph.step(&uid, None))
        };
        if let Step::Ask(owners) = step {
            let absent = self.absent(&node, owners).await?;
            step = self.graph().step(&uid, Some(&absent));
        }
        match step {
            Step::Nothing | Step::Ask(_) => Ok(()),
            Step::Delete(propagation) => self.delete(&uid, &node, propagation).await,
            Step::Disown(owners) => self.disown(&uid, &node, &owners).await,
            Step::Orphan(dependents) => {
                for dependent in dependents {
                    let found = self.graph().get(&dependent).cloned();
                    if let Some(found) = found {
                        let owner = std::slice::from_ref(&uid);
                        self.disown(&dependent, &found, owner).await?;
                    }
                }
                self.release(&uid, &node, ORPHAN).await
            }
            Step::Release => self.release(&uid, &node, FOREGROUND).await,
            Step::Wait(dependents) => {
                dependents.into_iter().for_each(|uid| self.queue.add(uid));
                Ok(())
            }
        }
    }

    /// Which of these owners the API does not have.
    async fn absent(
        &self,
        node: &Node<Resource>,
        owners: Vec<OwnerReference>,
    ) -> Result<BTreeSet<Uid>, kube::Error> {
        let mut absent = BTreeSet::new();
        for owner in owners {
            let Some(resource) = self.kinds.find(&owner.api_version, &owner.kind) else {
                // A kind that nobody serves (yet): its object may well exist.
                tracing::debug!(
                    kind = owner.kind,
                    api_version = owner.api_version,
                    "an owner of an unknown kind"
                );
                continue;
            };
            let api = resource.api(&self.client, node.namespace.as_deref());
            let found = api.get_metadata_opt(&owner.name).await?;
            if found.and_then(|found| found.metadata.uid) != Some(owner.uid.clone()) {
                absent.insert(owner.uid);
            }
        }
        Ok(absent)
    }

    async fn delete(
        &self,
        uid: &Uid,
        node: &Node<Resource>,
        propagation: Propagation,
    ) -> Result<(), kube::Error> {
        let how = match propagation {
            Propagation::Background => DeleteParams::background(),
            Propagation::Foreground => DeleteParams::foreground(),
            Propagation::Orphan => DeleteParams::orphan(),
        };
        // Somebody may have given it an owner since: then it has another version.
        let only_this = how.preconditions(Preconditions {
            uid: Some(uid.clone()),
            resource_version: node.resource_version.clone(),
        });
        gone(self.api(node).delete(&node.name, &only_this).await)?;
        let Node {
            resource,
            namespace,
            name,
            ..
        } = node;
        tracing::info!(
            kind = resource.kind(),
            namespace,
            name,
            uid,
            "deleted: its owners are gone"
        );
        Ok(())
    }

    async fn disown(
        &self,
        uid: &Uid,
        node: &Node<Resource>,
        owners: &[Uid],
    ) -> Result<(), kube::Error> {
        let left = node
            .owners
            .iter()
            .filter(|owner| !owners.contains(&owner.uid));
        let left: Vec<_> = left.collect();
        self.patch(uid, node, json!({ "ownerReferences": left }))
            .await
    }

    async fn release(
        &self,
        uid: &Uid,
        node: &Node<Resource>,
        finalizer: &str,
    ) -> Result<(), kube::Error> {
        let left = node.finalizers.iter().filter(|f| *f != finalizer);
        let left: Vec<_> = left.collect();
        self.patch(uid, node, json!({ "finalizers": left })).await
    }

    /// Changes the metadata of the object as it was seen; a conflict leads to another look.
    async fn patch(
        &self,
        uid: &Uid,
        node: &Node<Resource>,
        mut metadata: serde_json::Value,
    ) -> Result<(), kube::Error> {
        metadata["uid"] = uid.as_str().into();
        metadata["resourceVersion"] = json!(node.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let api = self.api(node);
        gone(api.patch(&node.name, &PatchParams::default(), &patch).await)
    }

    fn api(&self, node: &Node<Resource>) -> Api<DynamicObject> {
        node.resource.api(&self.client, node.namespace.as_deref())
    }
}
