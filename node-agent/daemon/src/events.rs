//! Events at the Node about what an operator must know: an object that no longer fits into a map.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, PostParams};
use node_agent_reconcile::Handle;
use tracing::warn;

/// Reports each object that is refused, once while it is.
pub async fn run(client: Client, node: String, handle: Handle) {
    let events: Api<Event> = Api::namespaced(client, "default");
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
            let event = map_full(&node, object, map);
            if let Err(error) = events.create(&PostParams::default(), &event).await {
                warn!(
                    error = &error as &(dyn std::error::Error + Sync),
                    object, map, "the event could not be written"
                );
            }
        }
        reported = refused;
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn map_full(node: &str, object: &str, map: &str) -> Event {
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
        reason: Some("MapFull".to_owned()),
        message: Some(format!(
            "{object} is not served: map {map} has no room for it"
        )),
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
