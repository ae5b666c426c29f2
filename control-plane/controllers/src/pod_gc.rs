//! Removes Pods that no kubelet will ever remove: those of a Node that is gone, and those deleted before they had one.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::fault::{gone, is_not_found};
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::{Informers, Options};

/// What becomes of a Pod.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Its Node does not exist: look again after the quarantine, and ask the API server itself.
    Orphan(String),
    /// It is being deleted and was never bound.
    NeverStarted,
}

fn fate(pod: &Pod, node_exists: impl Fn(&str) -> bool) -> Fate {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    match node.filter(|name| !name.is_empty()) {
        Some(name) if !node_exists(name) => Fate::Orphan(name.to_owned()),
        None if pod.metadata.deletion_timestamp.is_some() => Fate::NeverStarted,
        _ => Fate::Keep,
    }
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    let queue = Arc::new(Queue::new());
    let quarantine = options.pod_gc_quarantine;
    let (to, all) = (queue.clone(), Arc::downgrade(&informers));
    informers.pods.on_change(move |change| {
        let Some((informers, pod)) = all.upgrade().zip(change.new.as_ref()) else {
            return;
        };
        match fate(pod, |name| exists(&informers, name)) {
            Fate::Keep => {}
            Fate::NeverStarted => to.add(ObjectKey::of(&**pod)),
            // A new Node's Pods may show before it does.
            Fate::Orphan(_) => to.add_after(ObjectKey::of(&**pod), quarantine),
        }
    });
    let (to, all) = (queue.clone(), Arc::downgrade(&informers));
    informers.nodes.on_change(move |change| {
        let (Some(informers), Some(node), None) = (all.upgrade(), &change.old, &change.new) else {
            return;
        };
        let name = node.name_any();
        for pod in informers.pods.all() {
            if fate(&pod, |other| other != name) != Fate::Keep {
                to.add_after(ObjectKey::of(&*pod), quarantine);
            }
        }
    });
    informers.nodes.synced().await;
    informers.pods.synced().await;
    let nodes: Api<Node> = Api::all(client.clone());
    queue
        .serve("pod gc", 2, async |key| {
            sync(&client, &nodes, &informers, key).await
        })
        .await;
}

fn exists(informers: &Informers, node: &str) -> bool {
    informers.nodes.get(&ObjectKey::new("", node)).is_some()
}

async fn sync(
    client: &Client,
    nodes: &Api<Node>,
    informers: &Informers,
    key: ObjectKey,
) -> Result<(), kube::Error> {
    let Some(pod) = informers.pods.get(&key) else {
        return Ok(());
    };
    let why = match fate(&pod, |name| exists(informers, name)) {
        Fate::Keep => return Ok(()),
        Fate::NeverStarted => "deleted before it was bound to a node".to_owned(),
        Fate::Orphan(name) => match nodes.get_metadata(&name).await {
            Ok(_) => return Ok(()),
            Err(error) if is_not_found(&error) => format!("its node {name} is gone"),
            Err(error) => return Err(error),
        },
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    gone(pods.delete(&key.name, &now).await)?;
    tracing::info!(pod = %key, uid = pod.uid().unwrap_or_default(), why, "Pod removed");
    Ok(())
}

/// How long upstream lets an orphaned Pod live.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_pods_that_no_kubelet_will_remove_are_removed() {
        let deleted = json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (value, expected) in [
            (json!({"metadata": {"name": "p"}}), Fate::Keep),
            (
                json!({"metadata": {"name": "p"}, "spec": {"nodeName": "", "containers": []}}),
                Fate::Keep,
            ),
            (
                json!({"metadata": {"name": "p"}, "spec": {"nodeName": "here", "containers": []}}),
                Fate::Keep,
            ),
            (
                json!({"metadata": deleted, "spec": {"nodeName": "here", "containers": []}}),
                Fate::Keep,
            ),
            (json!({"metadata": deleted}), Fate::NeverStarted),
            (
                json!({"metadata": deleted, "spec": {"nodeName": "gone", "containers": []}}),
                Fate::Orphan("gone".into()),
            ),
            (
                json!({"metadata": {"name": "p"}, "spec": {"nodeName": "gone", "containers": []}}),
                Fate::Orphan("gone".into()),
            ),
        ] {
            let pod = pod(value.clone());
            assert_eq!(fate(&pod, |name| name == "here"), expected, "{value}");
        }
    }
}
