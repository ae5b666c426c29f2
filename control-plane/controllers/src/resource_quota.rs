//! What a namespace's objects take of its ResourceQuotas: worked out for a quota that is new or changed, and again when
//! something is given back (<https://kubernetes.io/docs/concepts/policy/resource-quotas/>).
//!
//! What is taken the API server adds by itself, in the transaction that makes the object. So a count that was made while
//! somebody took something is of an old version of the quota, and is not written but made again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_plane_quota::quota::in_scope;
use control_plane_quota::usage::Resource;
use control_plane_quota::{Amounts, Quantity, add, amounts, list};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::discovery::Discovery;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::fault::{gone, is_not_found};
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::workload::phase;
use crate::{Informers, Options};

const WORKERS: usize = 2;
/// How often all is counted again, for what time alone changes: pods that should be gone and are not.
const RECOUNT: Duration = Duration::from_secs(5 * 60);

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _options: &Options) {
    let queue = Arc::new(Queue::new());
    let to = queue.clone();
    informers.quotas.on_change(move |change| {
        if let Some(quota) = &change.new {
            to.add(ObjectKey::of(&**quota));
        }
    });
    let (to, all) = (queue.clone(), Arc::downgrade(&informers));
    informers.pods.on_change(move |change| {
        let Some(informers) = all.upgrade() else {
            return;
        };
        let over = |pod: &Arc<Pod>| matches!(phase(pod), "Succeeded" | "Failed");
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && over(new)
            && !over(old)
        {
            let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
            recount(&informers, &to, namespace);
        }
    });
    informers.quotas.synced().await;
    let serve = queue.serve("resource quota", WORKERS, async |key| {
        count(&client, &key).await
    });
    tokio::join!(serve, follow(&informers, &queue));
}

/// Counts again where something was deleted, and everywhere from time to time.
async fn follow(informers: &Informers, queue: &Queue<ObjectKey>) {
    let mut vanished = informers.vanished.subscribe();
    let mut again = tokio::time::interval(RECOUNT);
    loop {
        tokio::select! {
            namespace = vanished.recv() => match namespace {
                Ok(namespace) => recount(informers, queue, &namespace),
                Err(RecvError::Lagged(_)) => recount_all(informers, queue),
                Err(RecvError::Closed) => return,
            },
            _ = again.tick() => recount_all(informers, queue),
        }
    }
}

fn recount(informers: &Informers, queue: &Queue<ObjectKey>, namespace: &str) {
    for quota in informers.quotas.in_namespace(namespace, |_| true) {
        queue.add(ObjectKey::of(&*quota));
    }
}

fn recount_all(informers: &Informers, queue: &Queue<ObjectKey>) {
    for quota in informers.quotas.all() {
        queue.add(ObjectKey::of(&*quota));
    }
}

/// Works out one quota's status, and writes it if it is another.
async fn count(client: &Client, key: &ObjectKey) -> Result<(), kube::Error> {
    let api: Api<ResourceQuota> = Api::namespaced(client.clone(), &key.namespace);
    let quota = match api.get(&key.name).await {
        Err(error) if is_not_found(&error) => return Ok(()),
        quota => quota?,
    };
    // Read before anything is counted: what is taken from now on changes its version.
    let mut quota = serde_json::to_value(quota).map_err(kube::Error::SerdeError)?;
    let hard = amounts(quota.pointer("/spec/hard"));
    let mut used: Amounts = hard
        .keys()
        .map(|name| (name.clone(), Quantity::default()))
        .collect();
    let resources = hard.keys().filter_map(|name| Resource::of_amount(name));
    let resources: BTreeSet<(&str, &str)> = resources.map(|of| (of.group, of.plural)).collect();
    for (group, plural) in resources {
        let resource = Resource { group, plural };
        for object in objects(client, &key.namespace, resource).await? {
            if in_scope(&quota, resource, &object) {
                let mut one = resource.usage(&object, now());
                one.retain(|name, _| hard.contains_key(name));
                add(&mut used, &one);
            }
        }
    }
    let before = |field: &str| amounts(quota.pointer(&format!("/status/{field}")));
    if before("hard") == hard && before("used") == used {
        return Ok(());
    }
    tracing::debug!(quota = %key, "counted");
    quota["status"] = json!({"hard": quota["spec"]["hard"], "used": list(&used)});
    let quota = serde_json::from_value(quota).map_err(kube::Error::SerdeError)?;
    gone(
        api.replace_status(&key.name, &PostParams::default(), &quota)
            .await,
    )
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// All objects of a resource in the namespace; none when nobody serves it.
async fn objects(
    client: &Client,
    namespace: &str,
    resource: Resource<'_>,
) -> Result<Vec<Value>, kube::Error> {
    let Some(served) = served(client, resource).await? else {
        return Ok(Vec::new());
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &served);
    let listed = match api.list(&ListParams::default()).await {
        Err(error) if is_not_found(&error) => return Ok(Vec::new()),
        listed => listed?,
    };
    let values = listed.items.into_iter().map(serde_json::to_value);
    values
        .collect::<Result<_, _>>()
        .map_err(kube::Error::SerdeError)
}

async fn served(
    client: &Client,
    resource: Resource<'_>,
) -> Result<Option<ApiResource>, kube::Error> {
    let Resource { group, plural } = resource;
    if group.is_empty() {
        // Every server has these, and paths do without the kind.
        let kind = GroupVersionKind::gvk("", "v1", plural);
        return Ok(Some(ApiResource::from_gvk_with_plural(&kind, plural)));
    }
    let found = Discovery::new(client.clone())
        .filter(&[group])
        .run()
        .await?;
    let mut all = found
        .groups()
        .flat_map(|group| group.recommended_resources());
    let found = all.find(|(served, _)| served.plural == plural);
    Ok(found.map(|(served, _)| served))
}
