//! The node's Lease in `kube-node-lease`: the cheap sign of life, renewed in a task of its own so that nothing slow
//! delays it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::warn;

const NAMESPACE: &str = "kube-node-lease";
/// `nodeLeaseDurationSeconds` of the kubelet; it renews each quarter of it.
const DURATION_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);

/// Renews the Lease for ever; makes it if there is none.
pub(crate) async fn keep(client: &Client, node_name: &str) -> ! {
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(RENEW, renew(client, node_name)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(
                node = node_name,
                error = crate::chain(&error),
                "lease not renewed"
            ),
            Err(_) => warn!(
                node = node_name,
                "lease not renewed: no answer within {} s",
                RENEW.as_secs()
            ),
        }
    }
}

async fn renew(client: &Client, node_name: &str) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let change = serde_json::json!({ "spec": {
        "holderIdentity": node_name,
        "leaseDurationSeconds": DURATION_SECONDS,
        "renewTime": now,
    }});
    match leases
        .patch(node_name, &PatchParams::default(), &Patch::Merge(change))
        .await
    {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {}
        other => return other.map(drop),
    }
    // The Lease goes with the Node.
    let node = Api::<Node>::all(client.clone()).get_opt(node_name).await?;
    let owner = node
        .and_then(|node| node.metadata.uid)
        .map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node_name.to_owned(),
            uid,
            ..OwnerReference::default()
        });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node_name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node_name.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases
        .create(&PostParams::default(), &lease)
        .await
        .map(drop)
}
