//! Deployment -> ReplicaSets, one for each of its templates (<https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>).
//!
//! A ReplicaSet's name follows from its template, and each is changed only as it was last seen. So a look at an older
//! state makes nothing twice: its write is refused, and the next look decides anew.

mod history;
mod rollout;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::SelectorExt;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::fault::{gone, is_conflict};
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::workload::{
    Claim, claim, controller_key, controller_of, delete_all, owner_reference, phase, selector,
    set_controller, still_wanted,
};
use crate::{Informers, Options};
use history::{DESIRED, REVISION};
use rollout::{Limits, Scale, Set};
use status::Newest;

const WORKERS: usize = 5;

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
}

/// One Deployment in one look.
struct Look<'a> {
    deployment: &'a Deployment,
    api: Api<Deployment>,
    set_api: Api<ReplicaSet>,
    sets: Vec<ReplicaSet>,
    limits: Limits,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _: &Options) {
    let queue = Arc::new(Queue::new());
    subscribe(&informers, &queue);
    informers.deployments.synced().await;
    informers.replica_sets.synced().await;
    informers.pods.synced().await;
    let controller = Controller {
        client,
        informers,
        queue: queue.clone(),
    };
    queue
        .serve("deployment", WORKERS, |key| controller.sync(key))
        .await;
}

fn subscribe(informers: &Arc<Informers>, queue: &Arc<Queue<ObjectKey>>) {
    let to = queue.clone();
    informers.deployments.on_change(move |change| {
        let keys = change.both().map(|deployment| ObjectKey::of(&**deployment));
        keys.for_each(|key| to.add(key));
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.replica_sets.on_change(move |change| {
        let Some(informers) = all.upgrade() else {
            return;
        };
        for set in change.both() {
            deployments_of(&informers, set)
                .into_iter()
                .for_each(|key| to.add(key));
        }
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.pods.on_change(move |change| {
        // Recreate waits for the last old pod; everything else is seen from the ReplicaSets.
        let (Some(informers), Some(old), None) = (all.upgrade(), &change.old, &change.new) else {
            return;
        };
        let set = controller_key(&old.metadata, "ReplicaSet");
        let set = set.and_then(|key| informers.replica_sets.get(&key));
        if let Some(set) = set {
            deployments_of(&informers, &set)
                .into_iter()
                .for_each(|key| to.add(key));
        }
    });
}

/// The Deployment that a set belongs to, or those that could adopt it.
fn deployments_of(informers: &Informers, set: &ReplicaSet) -> Vec<ObjectKey> {
    let namespace = set.namespace().unwrap_or_default();
    match controller_of(&set.metadata) {
        Some(owner) if owner.kind == "Deployment" => vec![ObjectKey::new(&namespace, &owner.name)],
        Some(_) => Vec::new(),
        None => {
            let selecting = informers
                .deployments
                .in_namespace(&namespace, |deployment| {
                    let selector = selector(&deployment.spec.selector);
                    selector.is_some_and(|selector| selector.matches(set.labels()))
                });
            selecting
                .iter()
                .map(|found| ObjectKey::of(&**found))
                .collect()
        }
    }
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(deployment) = self.informers.deployments.get(&key) else {
            return Ok(());
        };
        if deployment.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let set_api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(sets) = self.claim(&set_api, &deployment).await? else {
            return Ok(());
        };
        let mut look = Look {
            limits: Limits::of(&deployment),
            api: Api::namespaced(self.client.clone(), &key.namespace),
            deployment: &deployment,
            set_api,
            sets,
        };
        let newest = history::newest(&deployment, &look.sets).cloned();
        let paused = deployment.spec.paused == Some(true);
        if paused || rollout::resized(look.limits, &look.sets) {
            let seen = newest.as_ref().map_or(Newest::None, Newest::Found);
            look.resize(newest.as_ref()).await?;
            return self.report(&key, &look, seen).await;
        }
        let (newest, created) = match newest {
            Some(newest) => (look.annotate(newest).await?, false),
            None if !still_wanted(&self.client, &*deployment).await? => return Ok(()),
            None => match look.create().await? {
                Some(newest) => (newest, true),
                // Another template has that name: the collision is noted, and the next look has another.
                None => return Ok(()),
            },
        };
        look.roll(&newest, self.old_pods_left(&look, &newest))
            .await?;
        look.clean(&newest).await?;
        let seen = if created {
            Newest::Created(&newest)
        } else {
            Newest::Found(&newest)
        };
        self.report(&key, &look, seen).await
    }

    /// The Deployment's sets; `None` for a selector that selects nothing.
    async fn claim(
        &self,
        api: &Api<ReplicaSet>,
        deployment: &Deployment,
    ) -> Result<Option<Vec<ReplicaSet>>, kube::Error> {
        let Some(selector) = selector(&deployment.spec.selector) else {
            return Ok(None);
        };
        let (namespace, owner) = (
            deployment.namespace().unwrap_or_default(),
            owner_reference(deployment),
        );
        let claimed = self.informers.replica_sets.in_namespace(&namespace, |set| {
            claim(set, &owner.uid, &selector) != Claim::Foreign
        });
        let mut own = Vec::new();
        for set in claimed {
            match claim(&*set, &owner.uid, &selector) {
                Claim::Own => own.push((*set).clone()),
                Claim::Adopt => set_controller(api, &*set, &owner, true).await?,
                Claim::Release => set_controller(api, &*set, &owner, false).await?,
                Claim::Foreign => {}
            }
        }
        Ok(Some(own))
    }

    /// Whether pods of old sets have not ended yet, those that are about to included.
    fn old_pods_left(&self, look: &Look<'_>, newest: &ReplicaSet) -> bool {
        let old = look.sets.iter().filter(|set| set.uid() != newest.uid());
        let old: Vec<_> = old.filter_map(ResourceExt::uid).collect();
        let namespace = newest.namespace().unwrap_or_default();
        let left = self.informers.pods.in_namespace(&namespace, |pod| {
            let owner = controller_of(&pod.metadata);
            owner.is_some_and(|owner| old.contains(&owner.uid))
                && !matches!(phase(pod), "Succeeded" | "Failed")
        });
        !left.is_empty()
    }

    async fn report(
        &self,
        key: &ObjectKey,
        look: &Look<'_>,
        newest: Newest<'_>,
    ) -> Result<(), kube::Error> {
        let deployment = look.deployment;
        let (status, again) = status::status(deployment, &look.sets, newest, Timestamp::now());
        if let Some(again) = again.and_then(|again| Duration::try_from(again).ok()) {
            self.queue
                .add_after(key.clone(), again + Duration::from_secs(1));
        }
        if deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // A merge patch removes only what it names (RFC 7386).
        let mut whole = json!({
            "replicas": null, "updatedReplicas": null, "readyReplicas": null,
            "availableReplicas": null, "unavailableReplicas": null,
        });
        if let (Some(fields), Ok(Value::Object(known))) =
            (whole.as_object_mut(), serde_json::to_value(&status))
        {
            fields.extend(known);
        }
        // Without its version: what is counted is newer than what others write meanwhile.
        let patch = Patch::Merge(json!({"metadata": {"uid": deployment.uid()}, "status": whole}));
        gone(
            look.api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )
    }
}

impl Look<'_> {
    /// Makes the set of the present template; `None` when its name is taken by another.
    async fn create(&mut self) -> Result<Option<ReplicaSet>, kube::Error> {
        let status = self.deployment.status.as_ref();
        let collisions = status
            .and_then(|status| status.collision_count)
            .unwrap_or(0);
        let set = history::new_set(self.deployment, &self.sets, collisions);
        let name = set.name_any();
        match self.set_api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                let deployment = self.deployment.name_any();
                tracing::info!(
                    deployment,
                    set = name,
                    uid = made.uid().unwrap_or_default(),
                    "ReplicaSet made"
                );
                self.sets.push(made.clone());
                return Ok(Some(made));
            }
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
        let found = self.set_api.get(&name).await?;
        let ours = controller_of(&found.metadata)
            .is_some_and(|o| Some(&o.uid) == self.deployment.metadata.uid.as_ref());
        if ours && history::newest(self.deployment, std::slice::from_ref(&found)).is_some() {
            // It was made before, and the informer has not seen it yet.
            self.sets.push(found.clone());
            return Ok(Some(found));
        }
        let patch = Patch::Merge(json!({
            "metadata": {"uid": self.deployment.uid(), "resourceVersion": self.deployment.resource_version()},
            "status": {"collisionCount": collisions + 1},
        }));
        let name = self.deployment.name_any();
        gone(
            self.api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(None)
    }

    /// Brings the newest set's annotations up to date, and the Deployment's revision after them.
    async fn annotate(&mut self, newest: ReplicaSet) -> Result<ReplicaSet, kube::Error> {
        let annotations = history::annotations(self.deployment, &newest, &self.sets);
        let min_ready = self.deployment.spec.min_ready_seconds;
        let same = newest.spec.min_ready_seconds == min_ready;
        let newest = if annotations == *newest.annotations() && same {
            newest
        } else {
            self.change(&newest, &annotations, json!({"minReadySeconds": min_ready}))
                .await?
        };
        let revision = newest.annotations().get(REVISION);
        if revision != self.deployment.annotations().get(REVISION) {
            let patch = Patch::Merge(json!({"metadata": {
                "uid": self.deployment.uid(),
                "annotations": {REVISION: revision},
            }}));
            let name = self.deployment.name_any();
            gone(self.api.patch(&name, &PatchParams::default(), &patch).await)?;
        }
        Ok(newest)
    }

    async fn roll(&mut self, newest: &ReplicaSet, old_pods_left: bool) -> Result<(), kube::Error> {
        let (new, old) = self.split(Some(newest));
        let Some(new) = new else { return Ok(()) };
        let scales = rollout::step(self.limits, &new, &old, old_pods_left);
        self.scale(&scales).await
    }

    async fn resize(&mut self, newest: Option<&ReplicaSet>) -> Result<(), kube::Error> {
        if !rollout::resized(self.limits, &self.sets) {
            return Ok(());
        }
        let (new, mut old) = self.split(newest);
        // Paused before its first rollout: the sets that there are share the size.
        let Some(new) = new.or_else(|| old.pop()) else {
            return Ok(());
        };
        let scales = rollout::resize(self.limits, &new, &old);
        self.scale(&scales).await
    }

    fn split(&self, newest: Option<&ReplicaSet>) -> (Option<Set>, Vec<Set>) {
        let is_newest = |set: &ReplicaSet| newest.is_some_and(|newest| newest.uid() == set.uid());
        let sets = self.sets.iter().enumerate();
        let (new, old): (Vec<_>, Vec<_>) = sets.partition(|(_, set)| is_newest(set));
        let look = |(index, set): (usize, &ReplicaSet)| Set::of(index, set);
        (
            new.into_iter().map(look).next(),
            old.into_iter().map(look).collect(),
        )
    }

    async fn scale(&mut self, scales: &[Scale]) -> Result<(), kube::Error> {
        for (index, size) in scales {
            let Some(set) = self.sets.get(*index).cloned() else {
                continue;
            };
            let known = set.annotations().clone();
            let annotations =
                history::with_size(known, self.limits.replicas, self.limits.max_surge);
            let from = Set::of(*index, &set).wanted;
            let same = set.annotations().get(DESIRED) == annotations.get(DESIRED);
            if from == *size && same {
                continue;
            }
            self.change(&set, &annotations, json!({"replicas": size}))
                .await?;
            let (deployment, name) = (self.deployment.name_any(), set.name_any());
            tracing::info!(deployment, set = name, from, to = size, "ReplicaSet scaled");
        }
        Ok(())
    }

    /// Changes a set as it was seen.
    async fn change(
        &mut self,
        set: &ReplicaSet,
        annotations: &BTreeMap<String, String>,
        spec: Value,
    ) -> Result<ReplicaSet, kube::Error> {
        let patch = Patch::Merge(json!({
            "metadata": {
                "uid": set.uid(),
                "resourceVersion": set.resource_version(),
                "annotations": annotations,
            },
            "spec": spec,
        }));
        let changed = self
            .set_api
            .patch(&set.name_any(), &PatchParams::default(), &patch)
            .await?;
        if let Some(known) = self
            .sets
            .iter_mut()
            .find(|known| known.uid() == changed.uid())
        {
            *known = changed.clone();
        }
        Ok(changed)
    }

    async fn clean(&self, newest: &ReplicaSet) -> Result<(), kube::Error> {
        let old = self.sets.iter().filter(|set| set.uid() != newest.uid());
        let superfluous = history::superfluous(self.deployment, old);
        delete_all(&self.set_api, superfluous).await
    }
}
