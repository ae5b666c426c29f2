//! What the scheduler tells the API server: bindings, Events, and the PodScheduled condition.

use k8s_openapi::api::core::v1::{Binding, Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::decide::Unschedulable;
use crate::pod::{PodFacts, SCHEDULER_NAME};

pub(crate) async fn bind(client: &Client, pod: &PodFacts, node: &str) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            // A Pod that was deleted and made anew meanwhile is not bound by this.
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let _: serde_json::Value = pods
        .create_subresource("binding", &pod.name, &PostParams::default(), &binding)
        .await?;
    let (key, uid) = (format!("{}/{}", pod.namespace, pod.name), &pod.uid);
    tracing::info!(pod = key, uid, node, "Pod bound");
    let message = format!("Successfully assigned {key} to {node}");
    event(client, pod, "Normal", "Scheduled", "Binding", &message).await;
    Ok(())
}

/// Says at the Pod why it fits nowhere.
pub(crate) async fn unschedulable(client: &Client, pod: &PodFacts, why: &Unschedulable) {
    let pod_name = format!("{}/{}", pod.namespace, pod.name);
    tracing::info!(
        pod = pod_name,
        uid = pod.uid,
        why = why.0,
        "Pod fits nowhere"
    );
    event(
        client,
        pod,
        "Warning",
        "FailedScheduling",
        "Scheduling",
        &why.0,
    )
    .await;
    let condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": why.0,
        "lastProbeTime": null,
        "lastTransitionTime": Time(Timestamp::now()),
    });
    let patch = json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [condition]},
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let done = pods
        .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    if let Err(error) = done {
        tracing::warn!(pod = pod_name, %error, "the PodScheduled condition could not be written");
    }
}

/// Events are best effort: one that cannot be written is logged and forgotten.
async fn event(
    client: &Client,
    pod: &PodFacts,
    type_: &str,
    reason: &str,
    action: &str,
    message: &str,
) {
    let now = Timestamp::now();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", pod.name, now.as_nanosecond())),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some(type_.into()),
        reason: Some(reason.into()),
        action: Some(action.into()),
        message: Some(message.into()),
        source: Some(EventSource {
            component: Some(SCHEDULER_NAME.into()),
            host: None,
        }),
        reporting_component: Some(SCHEDULER_NAME.into()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(client.clone(), &pod.namespace);
    if let Err(error) = events.create(&PostParams::default(), &event).await {
        tracing::debug!(pod = pod.name, reason, %error, "an Event could not be written");
    }
}
