//! Events about pods: sent in the background, repeated ones counted up, lost rather than waited for.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Events that may wait to be sent; more are dropped.
const QUEUE: usize = 256;
/// Events that are remembered so that repetitions can be counted.
const REMEMBERED: usize = 1024;

/// Sends events in the name of one node's kubelet.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<Note>,
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

#[derive(Eq, Hash, PartialEq)]
struct Key {
    uid: Option<String>,
    field: Option<String>,
    reason: &'static str,
    message: String,
}

struct Sent {
    name: String,
    count: i32,
}

impl Recorder {
    /// Must be called inside a tokio runtime; the sending ends with the last clone.
    pub fn new(client: Client, node_name: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, node_name.to_owned(), receiver));
        Self { sender }
    }

    pub fn info(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.record(pod, container, false, reason, message);
    }

    pub fn warn(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.record(pod, container, true, reason, message);
    }

    fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        let metadata = &pod.metadata;
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: container.map(|name| format!("spec.containers{{{name}}}")),
        };
        let pod = metadata.name.as_deref().unwrap_or_default();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        if warning {
            warn!(pod, uid, container, reason, message, "event");
        } else {
            info!(pod, uid, container, reason, message, "event");
        }
        if self
            .sender
            .try_send(Note {
                about,
                warning,
                reason,
                message,
                at: Timestamp::now(),
            })
            .is_err()
        {
            debug!(reason, "event dropped: too many wait");
        }
    }
}

async fn send(client: Client, node_name: String, mut notes: mpsc::Receiver<Note>) {
    let mut sent: HashMap<Key, Sent> = HashMap::new();
    while let Some(note) = notes.recv().await {
        let namespace = note.about.namespace.clone().unwrap_or_default();
        let api = Api::<Event>::namespaced(client.clone(), &namespace);
        let key = Key {
            uid: note.about.uid.clone(),
            field: note.about.field_path.clone(),
            reason: note.reason,
            message: note.message.clone(),
        };
        let outcome = match sent.get_mut(&key) {
            Some(earlier) => {
                earlier.count += 1;
                let change =
                    serde_json::json!({ "count": earlier.count, "lastTimestamp": Time(note.at) });
                api.patch(
                    &earlier.name,
                    &PatchParams::default(),
                    &Patch::Merge(change),
                )
                .await
                .map(drop)
            }
            None => {
                if sent.len() >= REMEMBERED {
                    sent.clear();
                }
                let event = event(&note, &node_name, &namespace);
                let name = event.metadata.name.clone().unwrap_or_default();
                let created = api.create(&PostParams::default(), &event).await;
                if created.is_ok() {
                    sent.insert(key, Sent { name, count: 1 });
                }
                created.map(drop)
            }
        };
        if let Err(error) = outcome {
            debug!(reason = note.reason, %error, "event not sent");
        }
    }
}

fn event(note: &Note, node_name: &str, namespace: &str) -> Event {
    let about = note.about.name.as_deref().unwrap_or_default();
    let mut stem = about.to_owned();
    // The whole name may have 253 characters.
    stem.truncate(230);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{stem}.{:x}", note.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node_name.to_owned()),
        }),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        count: Some(1),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}
