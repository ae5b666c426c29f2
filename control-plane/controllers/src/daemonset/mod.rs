//! DaemonSet -> one Pod on each Node (<https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>).
//!
//! As with ReplicaSets the informer only shows that there may be something to do, and a fresh list says what. Not done yet:
//! `maxSurge`. Two pods of a set on one node are never made; what may be too many may be missing here.

mod plan;
mod revisions;

use std::sync::Arc;
use std::time::Duration;

use control_plane_scheduler::placement;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::fault::{gone, is_conflict};
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::workload::{
    BURST, Claim, claim, claim_pods, controller_key, controller_of, create_pods, delete_all,
    owner_reference, pod_from, selector, still_wanted,
};
use crate::{Informers, Options};
use plan::{HASH, Plan, plan};

const WORKERS: usize = 2;

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _: &Options) {
    let queue = Arc::new(Queue::new());
    subscribe(&informers, &queue);
    informers.daemon_sets.synced().await;
    informers.revisions.synced().await;
    informers.nodes.synced().await;
    informers.pods.synced().await;
    let controller = Controller {
        client,
        informers,
        queue: queue.clone(),
    };
    queue
        .serve("daemonset", WORKERS, |key| controller.sync(key))
        .await;
}

fn subscribe(informers: &Arc<Informers>, queue: &Arc<Queue<ObjectKey>>) {
    let to = queue.clone();
    informers.daemon_sets.on_change(move |change| {
        change.both().for_each(|set| to.add(ObjectKey::of(&**set)));
    });
    let to = queue.clone();
    informers.pods.on_change(move |change| {
        let sets = change.both();
        let sets = sets.filter_map(|pod| controller_key(&pod.metadata, "DaemonSet"));
        sets.for_each(|key| to.add(key));
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.nodes.on_change(move |change| {
        // Heartbeats move no pods.
        let view = |node: &Option<Arc<Node>>| {
            let node = node.as_ref()?;
            Some((node.metadata.labels.clone(), node.spec.clone()))
        };
        if let Some(informers) = all.upgrade()
            && view(&change.old) != view(&change.new)
        {
            let sets = informers.daemon_sets.all();
            sets.iter().for_each(|set| to.add(ObjectKey::of(&**set)));
        }
    });
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(set) = self.informers.daemon_sets.get(&key) else {
            return Ok(());
        };
        let (Some(selector), None) = (
            selector(&set.spec.selector),
            &set.metadata.deletion_timestamp,
        ) else {
            return Ok(());
        };
        let Some(hash) = self.keep_revisions(&key, &set).await? else {
            return Ok(());
        };
        let uid = set.uid().unwrap_or_default();
        let known = self.informers.pods.in_namespace(&key.namespace, |pod| {
            claim(pod, &uid, &selector) == Claim::Own
        });
        let known: Vec<Pod> = known.iter().map(|pod| (**pod).clone()).collect();
        let mut next = self.plan(&set, &known, &hash);
        if !next.make.is_empty() || !next.delete.is_empty() {
            if !still_wanted(&self.client, &*set).await? {
                return Ok(());
            }
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            let selected = ListParams::default().labels_from(&selector);
            let fresh = api.list(&selected).await?.items;
            let pods = claim_pods(&api, fresh, &owner_reference(&*set), &selector).await?;
            next = self.plan(&set, &pods, &hash);
            delete_all(&api, next.delete.iter().filter_map(|at| pods.get(*at))).await?;
            let new = next.make.iter().take(BURST);
            let template = new_pod(&set, &hash);
            let new = new.map(|node| plan::for_node(template.clone(), node));
            create_pods(&api, new.collect()).await?;
        }
        self.report(&key, &set, &next).await
    }

    fn plan(&self, set: &DaemonSet, pods: &[Pod], hash: &str) -> Plan {
        let nodes = self.informers.nodes.all();
        let nodes: Vec<&Node> = nodes.iter().map(|node| &**node).collect();
        let template = new_pod(set, hash);
        let place = |node: &Node| placement(&template, node);
        plan(set, &nodes, pods, hash, &place, Timestamp::now())
    }

    /// Has the present template among the revisions, and no more old ones than are kept; answers its hash. `None`: the
    /// name is another template's, which has been noted.
    async fn keep_revisions(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
    ) -> Result<Option<String>, kube::Error> {
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &key.namespace);
        let owner = owner_reference(set);
        let known = self
            .informers
            .revisions
            .in_namespace(&key.namespace, |revision| {
                controller_of(&revision.metadata).is_some_and(|found| found.uid == owner.uid)
            });
        let known: Vec<ControllerRevision> = known.iter().map(|found| (**found).clone()).collect();
        let wanted = revisions::of(set, &known);
        let name = wanted.name_any();
        let hash = wanted.labels().get(HASH).cloned().unwrap_or_default();
        match known.iter().find(|found| found.name_any() == name) {
            Some(found) if found.data != wanted.data => {
                self.note_collision(key, set).await?;
                return Ok(None);
            }
            Some(found) if found.revision == wanted.revision => {}
            Some(found) => {
                // An undo has brought it back: it is the newest again.
                let patch = Patch::Merge(json!({
                    "metadata": {"resourceVersion": found.resource_version()},
                    "revision": wanted.revision,
                }));
                api.patch(&name, &PatchParams::default(), &patch).await?;
            }
            None => match api.create(&PostParams::default(), &wanted).await {
                Ok(_) => {}
                Err(error) if is_conflict(&error) => {
                    let found = api.get(&name).await?;
                    let ours =
                        controller_of(&found.metadata).is_some_and(|found| found.uid == owner.uid);
                    if !ours || found.data != wanted.data {
                        self.note_collision(key, set).await?;
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            },
        }
        let pods = self.informers.pods.in_namespace(&key.namespace, |pod| {
            controller_of(&pod.metadata).is_some_and(|found| found.uid == owner.uid)
        });
        let in_use = |hash: &String| pods.iter().any(|pod| pod.labels().get(HASH) == Some(hash));
        delete_all(&api, revisions::superfluous(set, &known, &hash, &in_use)).await?;
        Ok(Some(hash))
    }

    async fn note_collision(&self, key: &ObjectKey, set: &DaemonSet) -> Result<(), kube::Error> {
        let collisions = revisions::collisions(set) + 1;
        self.patch_status(key, set, json!({"collisionCount": collisions}))
            .await
    }

    async fn report(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        next: &Plan,
    ) -> Result<(), kube::Error> {
        let min_ready = u64::try_from(plan::min_ready(set)).unwrap_or(0);
        if min_ready > 0 && Some(next.status.number_ready) != next.status.number_available {
            // Nothing else says that the time is over.
            self.queue
                .add_after(key.clone(), Duration::from_secs(min_ready));
        }
        if set.status.as_ref() == Some(&next.status) {
            return Ok(());
        }
        // A merge patch removes only what it names (RFC 7386).
        let mut whole = json!({
            "numberAvailable": null, "numberUnavailable": null, "updatedNumberScheduled": null,
        });
        let known = serde_json::to_value(&next.status);
        if let (Some(fields), Ok(Value::Object(known))) = (whole.as_object_mut(), known) {
            fields.extend(known);
        }
        self.patch_status(key, set, whole).await
    }

    async fn patch_status(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        status: Value,
    ) -> Result<(), kube::Error> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({
            "metadata": {"uid": set.uid(), "resourceVersion": set.resource_version()},
            "status": status,
        }));
        gone(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )
    }
}

/// A pod of the present template, for any node.
fn new_pod(set: &DaemonSet, hash: &str) -> Pod {
    let mut pod = pod_from(&set.spec.template, &owner_reference(set));
    pod.labels_mut().insert(HASH.to_owned(), hash.to_owned());
    plan::with_tolerations(pod)
}
