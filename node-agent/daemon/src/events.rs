//! Events at the Node about what an operator must know: an object that no longer fits into a map, a subnet that two
//! nodes claim, something that was removed by hand and put back.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, PostParams};
use node_agent_reconcile::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

/// Takes events and does not wait for the API server; those that come while it is long away are lost.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Entry>);

#[derive(Debug)]
struct Entry {
    reason: &'static str,
    message: String,
    /// Told when it has been written, or could not be.
    done: Option<oneshot::Sender<()>>,
}

/// How long an event may keep somebody.
const PATIENCE: Duration = Duration::from_secs(2);

impl Recorder {
    /// And the task that writes, for ever.
    pub fn new(client: Client, node: String) -> (Self, impl Future<Output = ()>) {
        let (sender, mut receiver) = mpsc::channel::<Entry>(256);
        let events: Api<Event> = Api::namespaced(client, "default");
        let writing = async move {
            while let Some(entry) = receiver.recv().await {
                let Entry {
                    reason,
                    message,
                    done,
                } = entry;
                let event = warning(&node, reason, message);
                if let Err(error) = events.create(&PostParams::default(), &event).await {
                    warn!(
                        error = &error as &(dyn std::error::Error + Sync),
                        reason, "the event could not be written"
                    );
                }
                // Mostly nobody waits.
                let _ = done.map(|done| done.send(()));
            }
        };
        (Self(sender), writing)
    }

    /// Something went wrong, in CamelCase and in words.
    pub fn warn(&self, reason: &'static str, message: String) {
        self.send(Entry {
            reason,
            message,
            done: None,
        });
    }

    /// As [`Recorder::warn`], for the last word before an end: waits until it is written, but not long.
    pub async fn warn_at_last(&self, reason: &'static str, message: String) {
        let (done, written) = oneshot::channel();
        self.send(Entry {
            reason,
            message,
            done: Some(done),
        });
        let _ = tokio::time::timeout(PATIENCE, written).await;
    }

    fn send(&self, entry: Entry) {
        if let Err(error) = self.0.try_send(entry) {
            warn!(%error, "too many events: one is lost");
        }
    }
}

/// Reports each object that is refused by a full map, once while it is.
pub async fn run(recorder: Recorder, handle: Handle) {
    let mut reported = BTreeSet::new();
    let mut status = handle.watch();
    // Ours alone would keep the reconciler running.
    drop(handle);
    loop {
        let refused: BTreeSet<(String, &str)> = status
            .borrow_and_update()
            .refused
            .iter()
            .map(|refusal| (refusal.object.clone(), refusal.map))
            .collect();
        for (object, map) in refused.difference(&reported) {
            let message = format!("{object} is not served: map {map} has no room for it");
            recorder.warn("MapFull", message);
        }
        reported = refused;
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn warning(node: &str, reason: &str, message: String) -> Event {
    let now = Time(jiff::Timestamp::now());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{node}.")),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        source: Some(EventSource {
            component: Some("fairlead-node-agent".to_owned()),
            host: Some(node.to_owned()),
        }),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}
