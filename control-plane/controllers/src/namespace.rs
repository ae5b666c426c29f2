//! The Namespaces that every cluster has, and the end of those that are being deleted: content first, then the
//! finalizer (<https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/>).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::fault::{gone, is_conflict, is_not_found};
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::{Informers, Options};

const ALWAYS: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const FINALIZER: &str = "kubernetes";
/// Pods need their grace period to go.
const CONTENT_RETRY: Duration = Duration::from_secs(1);
const PAGE: u32 = 500;

pub(crate) async fn run(client: Client, informers: Arc<Informers>, _options: &Options) {
    let queue = Arc::new(Queue::new());
    for name in ALWAYS {
        queue.add(ObjectKey::new("", name));
    }
    let to = queue.clone();
    informers.namespaces.on_change(move |change| {
        for namespace in change.both() {
            let name = namespace.name_any();
            if is_terminating(namespace) || ALWAYS.contains(&&*name) {
                to.add(ObjectKey::new("", &name));
            }
        }
    });
    informers.namespaces.synced().await;
    queue
        .serve("namespace", 2, async |key| {
            match informers.namespaces.get(&key) {
                None if ALWAYS.contains(&&*key.name) => make(&client, &key.name).await,
                Some(namespace) if is_terminating(&namespace) => {
                    if finish(&client, &namespace).await? {
                        return Ok(());
                    }
                    queue.add_after(key, CONTENT_RETRY);
                    Ok(())
                }
                _ => Ok(()),
            }
        })
        .await;
}

fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

async fn make(client: &Client, name: &str) -> Result<(), kube::Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.to_owned());
    match api.create(&PostParams::default(), &namespace).await {
        Ok(_) => tracing::info!(namespace = name, "Namespace created"),
        Err(error) if is_conflict(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Deletes what is in the Namespace; once nothing is left lets the Namespace go and says true.
async fn finish(client: &Client, namespace: &Namespace) -> Result<bool, kube::Error> {
    let name = namespace.name_any();
    let mut left = 0;
    for resource in deletable(client).await? {
        left += empty(client, &name, &resource).await?;
    }
    if left > 0 {
        tracing::debug!(namespace = name, left, "Namespace still has content");
        return Ok(false);
    }
    let rest: Vec<String> = namespace
        .spec
        .iter()
        .flat_map(|spec| spec.finalizers.iter().flatten())
        .filter(|finalizer| *finalizer != FINALIZER)
        .cloned()
        .collect();
    let body = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": namespace.uid(),
            "resourceVersion": namespace.resource_version(),
        },
        "spec": {"finalizers": rest},
    });
    let api: Api<Namespace> = Api::all(client.clone());
    gone(
        api.replace_subresource("finalize", &name, &PostParams::default(), &body)
            .await,
    )?;
    tracing::info!(
        namespace = name,
        uid = namespace.uid().unwrap_or_default(),
        "Namespace finalized"
    );
    Ok(true)
}

/// Every kind that lives in namespaces and can be listed and deleted.
async fn deletable(client: &Client) -> Result<Vec<ApiResource>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let resources = discovery
        .groups()
        .flat_map(|group| group.recommended_resources());
    Ok(resources
        .filter(|(_, capabilities)| {
            capabilities.scope == Scope::Namespaced
                && capabilities.supports_operation(verbs::LIST)
                && capabilities.supports_operation(verbs::DELETE)
        })
        .map(|(resource, _)| resource)
        .collect())
}

/// Asks for the deletion of every object of one kind; says how many there were.
async fn empty(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
) -> Result<usize, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let page = match api.list(&ListParams::default().limit(PAGE)).await {
        // The kind went away between the discovery and now.
        Err(error) if is_not_found(&error) => return Ok(0),
        page => page?,
    };
    let count = page.items.len();
    for object in page.items {
        if object.metadata.deletion_timestamp.is_none() {
            gone(
                api.delete(&object.name_any(), &DeleteParams::background())
                    .await,
            )?;
        }
    }
    Ok(count)
}
