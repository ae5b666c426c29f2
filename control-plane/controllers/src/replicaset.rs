//! ReplicaSet -> as many Pods as it asks for (<https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>).
//!
//! What the informer has may be older than what this controller has just done. So it only shows that there is something
//! to do; what exactly is decided on a fresh list, and no pod is made twice.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::fault::gone;
use crate::informer::{Change, Informer, ObjectKey};
use crate::queue::Queue;
use crate::workload::{
    BURST, Claim, claim, claim_pods, controller_of, create_pods, delete_all, is_active,
    is_available, is_ready, owner_reference, pod_from, selector, sort_for_deletion, still_wanted,
};
use crate::{Informers, Options};

const WORKERS: usize = 5;

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _: &Options) {
    let queue = Arc::new(Queue::new());
    subscribe(&informers, &queue);
    informers.replica_sets.synced().await;
    informers.pods.synced().await;
    let controller = Controller {
        client,
        informers,
        queue: queue.clone(),
    };
    queue
        .serve("replicaset", WORKERS, |key| controller.sync(key))
        .await;
}

fn subscribe(informers: &Arc<Informers>, queue: &Arc<Queue<ObjectKey>>) {
    let to = queue.clone();
    informers.replica_sets.on_change(move |change| {
        change.both().for_each(|set| to.add(ObjectKey::of(&**set)));
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.pods.on_change(move |change| {
        if let Some(informers) = all.upgrade() {
            let sets = sets_of(&informers.replica_sets, change);
            sets.into_iter().for_each(|key| to.add(key));
        }
    });
}

/// The sets that a pod belongs or belonged to, or that could adopt it.
fn sets_of(sets: &Informer<ReplicaSet>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let mut found = Vec::new();
    for pod in change.both() {
        let namespace = pod.namespace().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => {
                found.push(ObjectKey::new(&namespace, &owner.name));
            }
            Some(_) => {}
            None => {
                let selecting = sets.in_namespace(&namespace, |set| {
                    selector_of(set).is_some_and(|selector| selector.matches(pod.labels()))
                });
                found.extend(selecting.iter().map(|set| ObjectKey::of(&**set)));
            }
        }
    }
    found
}

fn selector_of(set: &ReplicaSet) -> Option<Selector> {
    selector(&set.spec.selector)
}

fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.replicas.unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(set) = self.informers.replica_sets.get(&key) else {
            return Ok(());
        };
        let Some(selector) = selector_of(&set) else {
            return Ok(());
        };
        let uid = set.uid().unwrap_or_default();
        let known = self.informers.pods.in_namespace(&key.namespace, |pod| {
            claim(pod, &uid, &selector) != Claim::Foreign
        });
        let mut pods: Vec<Pod> = known.iter().map(|pod| (**pod).clone()).collect();
        let mut failure = None;
        if set.metadata.deletion_timestamp.is_none() && !settled(&set, &pods, &selector) {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            if !still_wanted(&self.client, &*set).await? {
                return Ok(());
            }
            let selected = ListParams::default().labels_from(&selector);
            let mut fresh = api.list(&selected).await?.items;
            // Those that are owned and match no more.
            pods.retain(|pod| claim(pod, &uid, &selector) == Claim::Release);
            fresh.append(&mut pods);
            let owner = owner_reference(&*set);
            pods = claim_pods(&api, fresh, &owner, &selector).await?;
            failure = self.manage(&api, &set, &mut pods).await.err();
        }
        self.report(&key, &set, &pods, failure.as_ref()).await?;
        failure.map_or(Ok(()), Err)
    }

    /// Makes what is missing, or deletes what is too much.
    async fn manage(
        &self,
        api: &Api<Pod>,
        set: &ReplicaSet,
        pods: &mut Vec<Pod>,
    ) -> Result<(), kube::Error> {
        pods.retain(is_active);
        let wanted = wanted(set);
        if pods.len() < wanted {
            let Some(template) = set.spec.template.as_ref() else {
                return Ok(());
            };
            let pod = pod_from(template, &owner_reference(set));
            let missing = (wanted - pods.len()).min(BURST);
            return create_pods(api, vec![pod; missing]).await;
        }
        sort_for_deletion(pods);
        let surplus = (pods.len() - wanted).min(BURST);
        let kept = pods.split_off(surplus);
        let surplus = std::mem::replace(pods, kept);
        delete_all(api, &surplus).await
    }

    async fn report(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        pods: &[Pod],
        failure: Option<&kube::Error>,
    ) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let status = status(set, pods, failure, now);
        let min_ready = min_ready_seconds(set);
        if min_ready > 0 && status.ready_replicas != status.available_replicas {
            // Nothing else says that the time is over.
            let wait = Duration::from_secs(u64::try_from(min_ready).unwrap_or(0));
            self.queue.add_after(key.clone(), wait);
        }
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({
            "metadata": {"uid": set.uid(), "resourceVersion": set.resource_version()},
            "status": whole(&status),
        }));
        gone(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )
    }
}

/// A merge patch removes only what it names (RFC 7386).
fn whole(status: &ReplicaSetStatus) -> serde_json::Value {
    let mut value = json!({
        "fullyLabeledReplicas": null, "readyReplicas": null, "availableReplicas": null,
        "terminatingReplicas": null, "conditions": null,
    });
    if let (Some(fields), Ok(serde_json::Value::Object(known))) =
        (value.as_object_mut(), serde_json::to_value(status))
    {
        fields.extend(known);
    }
    value
}

/// Nothing is to be made, deleted, adopted or released.
fn settled(set: &ReplicaSet, pods: &[Pod], selector: &Selector) -> bool {
    let uid = set.uid().unwrap_or_default();
    let own = pods.iter().all(|pod| {
        let claim = claim(pod, &uid, selector);
        claim == Claim::Own || (claim == Claim::Adopt && !is_active(pod))
    });
    let active = pods.iter().filter(|pod| is_active(pod)).count();
    own && active == wanted(set)
}

fn min_ready_seconds(set: &ReplicaSet) -> i32 {
    set.spec.min_ready_seconds.unwrap_or(0)
}

fn status(
    set: &ReplicaSet,
    pods: &[Pod],
    failure: Option<&kube::Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let active = || pods.iter().filter(|pod| is_active(pod));
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let template = set.spec.template.as_ref();
    let labels = template.and_then(|template| template.metadata.as_ref()?.labels.clone());
    let labels = labels.unwrap_or_default();
    let labelled = |pod: &Pod| labels.iter().all(|(k, v)| pod.labels().get(k) == Some(v));
    let min_ready = min_ready_seconds(set);
    // Zero is written as nothing, as Kubernetes does.
    let some = |number: i32| (number > 0).then_some(number);
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: some(count(&labelled)),
        ready_replicas: some(count(&is_ready)),
        available_replicas: some(count(&|pod| is_available(pod, min_ready, now))),
        terminating_replicas: None,
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    }
}

/// `ReplicaFailure` while pods cannot be made or deleted; conditions of others stay.
fn conditions(
    set: &ReplicaSet,
    failure: Option<&kube::Error>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const TYPE: &str = "ReplicaFailure";
    let known = set
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let (ours, mut conditions): (Vec<_>, Vec<_>) = known
        .unwrap_or_default()
        .into_iter()
        .partition(|condition| condition.type_.as_deref() == Some(TYPE));
    if let Some(failure) = failure {
        let since = ours
            .into_iter()
            .next()
            .and_then(|ours| ours.last_transition_time);
        conditions.push(ReplicaSetCondition {
            type_: Some(TYPE.to_owned()),
            status: Some("True".to_owned()),
            reason: Some("FailedCreate".to_owned()),
            message: Some(failure.to_string()),
            last_transition_time: since.or(Some(Time(now))),
        });
    }
    (!conditions.is_empty()).then_some(conditions)
}
