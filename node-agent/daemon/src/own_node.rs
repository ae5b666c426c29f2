//! The condition on this machine's Node object that says that its network works.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::DefaultBackoff;
use node_agent_reconcile::Handle;
use serde_json::{Value, json};
use tracing::{info, warn};

/// Even if nobody told us of a change.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Keeps the condition on the Node once the dataplane is programmed. A cloud's controller may set another one.
pub async fn keep_condition(client: Client, name: String, handle: Handle) {
    let api: Api<Node> = Api::all(client);
    // An end of the reconciler ends the agent elsewhere.
    let _ = handle.wait_synced().await;
    drop(handle);
    let mut backoff = DefaultBackoff::default();
    loop {
        let wait = match publish(&api, &name).await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                warn!(
                    error = &error as &(dyn std::error::Error + Sync),
                    "this Node's condition could not be published"
                );
                backoff.next().unwrap_or(LOOK_EVERY)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn publish(api: &Api<Node>, name: &str) -> Result<(), kube::Error> {
    let node = api.get(name).await?;
    let conditions = node.status.and_then(|status| status.conditions);
    let is_there = conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "NetworkUnavailable"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("FairleadIsUp")
    });
    if is_there {
        return Ok(());
    }
    let patch = Patch::Strategic(condition(&jiff::Timestamp::now()));
    api.patch_status(name, &PatchParams::default(), &patch)
        .await?;
    info!("condition NetworkUnavailable is False");
    Ok(())
}

/// <https://kubernetes.io/docs/reference/node/node-status/#condition>
fn condition(now: &jiff::Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FairleadIsUp",
        "message": "Fairlead is running on this node",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}})
}
