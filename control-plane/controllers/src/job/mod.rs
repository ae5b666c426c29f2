//! Job -> Pods until enough have succeeded (<https://kubernetes.io/docs/concepts/workloads/controllers/job/>).
//!
//! As with ReplicaSets the informer only shows that there may be something to do, and a fresh list says what. Not done yet:
//! `podFailurePolicy`, `successPolicy` and `backoffLimitPerIndex`; a Job with one of them is left alone, and says so in the log.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::fault::gone;
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::workload::{
    BURST, Claim, claim, claim_pods, controller_key, create_pods, delete_all, owner_reference,
    pod_from, selector, still_wanted,
};
use crate::{Informers, Options};
use plan::{INDEX, Plan, plan};

const WORKERS: usize = 5;
/// The variable by which a pod of an Indexed Job learns its index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
const MANAGED_BY: &str = "kubernetes.io/job-controller";

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    queue: Arc<Queue<ObjectKey>>,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _: &Options) {
    let queue = Arc::new(Queue::new());
    let to = queue.clone();
    informers.jobs.on_change(move |change| {
        change.both().for_each(|job| to.add(ObjectKey::of(&**job)));
    });
    let to = queue.clone();
    informers.pods.on_change(move |change| {
        let jobs = change.both();
        let jobs = jobs.filter_map(|pod| controller_key(&pod.metadata, "Job"));
        jobs.for_each(|key| to.add(key));
    });
    informers.jobs.synced().await;
    informers.pods.synced().await;
    let controller = Controller {
        client,
        informers,
        queue: queue.clone(),
    };
    queue
        .serve("job", WORKERS, |key| controller.sync(key))
        .await;
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(job) = self.informers.jobs.get(&key) else {
            return Ok(());
        };
        let Some(spec) = job.spec.as_ref().filter(|spec| is_ours(&key, spec)) else {
            return Ok(());
        };
        let selector = spec.selector.as_ref().and_then(selector);
        let (Some(selector), None) = (selector, &job.metadata.deletion_timestamp) else {
            return Ok(());
        };
        let uid = job.uid().unwrap_or_default();
        let known = self.informers.pods.in_namespace(&key.namespace, |pod| {
            claim(pod, &uid, &selector) == Claim::Own
        });
        let known: Vec<Pod> = known.iter().map(|pod| (**pod).clone()).collect();
        let mut next = plan(&job, &known, Timestamp::now());
        if next.expired {
            return self.expire(&key, &job).await;
        }
        if next.make > 0 || !next.delete.is_empty() {
            if !still_wanted(&self.client, &*job).await? {
                return Ok(());
            }
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            let selected = ListParams::default().labels_from(&selector);
            let fresh = api.list(&selected).await?.items;
            let pods = claim_pods(&api, fresh, &owner_reference(&*job), &selector).await?;
            next = plan(&job, &pods, Timestamp::now());
            // What it says comes first: a Job that has ended must not lose the pods that tell of it before.
            self.report(&key, &job, &next).await?;
            delete_all(&api, next.delete.iter().filter_map(|at| pods.get(*at))).await?;
            return create_pods(&api, new_pods(&job, spec, &next)).await;
        }
        self.report(&key, &job, &next).await
    }

    async fn report(&self, key: &ObjectKey, job: &Job, next: &Plan) -> Result<(), kube::Error> {
        if let Some(again) = next.again.and_then(|again| Duration::try_from(again).ok()) {
            self.queue.add_after(key.clone(), again);
        }
        if job.status.as_ref() == Some(&next.status) {
            return Ok(());
        }
        // A merge patch removes only what it names (RFC 7386).
        let mut whole = json!({"active": null, "startTime": null, "completedIndexes": null});
        let known = serde_json::to_value(&next.status);
        if let (Some(fields), Ok(Value::Object(known))) = (whole.as_object_mut(), known) {
            fields.extend(known);
        }
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({
            "metadata": {"uid": job.uid(), "resourceVersion": job.resource_version()},
            "status": whole,
        }));
        gone(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )
    }

    /// Its time to live after its end is over.
    async fn expire(&self, key: &ObjectKey, job: &Job) -> Result<(), kube::Error> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let only_this = DeleteParams::background().preconditions(Preconditions {
            uid: job.uid(),
            resource_version: job.resource_version(),
        });
        gone(api.delete(&key.name, &only_this).await)?;
        tracing::info!(job = %key, "Job deleted: its time to live is over");
        Ok(())
    }
}

/// Neither somebody else's nor one that asks for what is not there.
fn is_ours(key: &ObjectKey, spec: &JobSpec) -> bool {
    if spec
        .managed_by
        .as_deref()
        .is_some_and(|by| by != MANAGED_BY)
    {
        return false;
    }
    let missing = [
        ("podFailurePolicy", spec.pod_failure_policy.is_some()),
        ("successPolicy", spec.success_policy.is_some()),
        (
            "backoffLimitPerIndex",
            spec.backoff_limit_per_index.is_some(),
        ),
    ];
    let missing: Vec<&str> = missing
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        tracing::warn!(job = %key, ?missing, "the Job is left alone: not supported yet, leave it out of the spec");
    }
    missing.is_empty()
}

fn new_pods(job: &Job, spec: &JobSpec, next: &Plan) -> Vec<Pod> {
    let pod = pod_from(&spec.template, &owner_reference(job));
    if !plan::is_indexed(spec) {
        return vec![pod; next.make.min(BURST)];
    }
    let indexes = next.indexes.iter().take(BURST);
    indexes
        .map(|index| with_index(pod.clone(), job, *index))
        .collect()
}

fn with_index(mut pod: Pod, job: &Job, index: i32) -> Pod {
    let name = format!("{}-{index}", job.name_any());
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.annotations_mut()
        .insert(INDEX.to_owned(), index.to_string());
    pod.labels_mut().insert(INDEX.to_owned(), index.to_string());
    let Some(spec) = &mut pod.spec else {
        return pod;
    };
    spec.hostname.get_or_insert(name);
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        let variables = container.env.get_or_insert_default();
        if variables
            .iter()
            .any(|variable| variable.name == INDEX_VARIABLE)
        {
            continue;
        }
        variables.push(EnvVar {
            name: INDEX_VARIABLE.to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.annotations['{INDEX}']"),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
    }
    pod
}
