//! Marks Nodes whose kubelet has fallen silent, taints Nodes by their conditions, and takes the Pods of silent
//! Nodes out of service (<https://kubernetes.io/docs/concepts/architecture/nodes/#node-controller>).
//!
//! Silence is measured by this process's own clock from the moment that the Lease was last seen to change, so that
//! clocks which differ between machines do no harm, and nothing is marked right after a restart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use crate::fault::is_conflict;
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::{Informers, Options};

const WORKERS: usize = 4;
const LEASE_NAMESPACE: &str = "kube-node-lease";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that only the kubelet knows.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// When each Node was last heard of.
#[derive(Debug, Default)]
struct Heartbeats {
    seen: HashMap<String, Heartbeat>,
}

#[derive(Debug)]
struct Heartbeat {
    /// What is compared: the Lease's renewTime and the Ready condition's heartbeat.
    beat: (Option<Timestamp>, Option<Timestamp>),
    at: Instant,
}

impl Heartbeats {
    /// How long the Node has been silent, in this process's time.
    fn silence(&mut self, node: &Node, lease: Option<&Lease>, now: Instant) -> Duration {
        let renewed = lease
            .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
            .map(|time| time.0);
        let reported = condition(node, "Ready")
            .and_then(|ready| ready.last_heartbeat_time.as_ref())
            .map(|time| time.0);
        let beat = (renewed, reported);
        let heartbeat = self
            .seen
            .entry(node.name_any())
            .or_insert(Heartbeat { beat, at: now });
        if heartbeat.beat != beat {
            *heartbeat = Heartbeat { beat, at: now };
        }
        now - heartbeat.at
    }

    /// A Node that is gone is not silent.
    fn forget(&mut self, name: &str) -> Duration {
        self.seen.remove(name);
        Duration::ZERO
    }
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    let queue = Arc::new(Queue::new());
    let to = queue.clone();
    informers.nodes.on_change(move |change| {
        change
            .both()
            .for_each(|node| to.add(ObjectKey::of(&**node)));
    });
    informers.nodes.synced().await;
    informers.leases.synced().await;
    informers.pods.synced().await;

    let heartbeats = Mutex::new(Heartbeats::default());
    let look_at_all = async {
        let mut tick = tokio::time::interval(options.node_monitor_period);
        // After a suspended machine wakes up, one look is enough.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let nodes = informers.nodes.all();
            nodes
                .iter()
                .for_each(|node| queue.add(ObjectKey::of(&**node)));
        }
    };
    let serve = queue.serve("node lifecycle", WORKERS, async |key| {
        let node = informers.nodes.get(&key);
        let lease = informers
            .leases
            .get(&ObjectKey::new(LEASE_NAMESPACE, &key.name));
        let silent = {
            let mut heartbeats = heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
            match &node {
                Some(node) => heartbeats.silence(node, lease.as_deref(), Instant::now()),
                None => heartbeats.forget(&key.name),
            }
        } >= options.node_monitor_grace_period;
        match node {
            Some(node) => sync(&client, &informers, &node, silent).await,
            None => Ok(()),
        }
    });
    tokio::join!(look_at_all, serve);
}

async fn sync(
    client: &Client,
    informers: &Informers,
    node: &Node,
    silent: bool,
) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let now = Timestamp::now();
    let mut node = node.clone();
    if silent && let Some(unknown) = with_unknown_conditions(&node, now) {
        tracing::warn!(
            node = node.name_any(),
            uid = node.uid().unwrap_or_default(),
            "the kubelet does not renew its Lease: Ready becomes Unknown"
        );
        node = nodes
            .replace_status(&node.name_any(), &PostParams::default(), &unknown)
            .await?;
    }
    if let Some(taints) = with_lifecycle_taints(&node, now) {
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version(), "uid": node.uid()},
            "spec": {"taints": taints},
        });
        nodes
            .patch(
                &node.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await?;
        let keys: Vec<_> = taints
            .iter()
            .map(|t| format!("{}:{}", t.key, t.effect))
            .collect();
        tracing::info!(
            node = node.name_any(),
            taints = keys.join(","),
            "Node taints set"
        );
    }
    let ready = condition(&node, "Ready").map(|ready| ready.status.as_str());
    if matches!(ready, Some("Unknown" | "False")) {
        take_out_of_service(client, informers, &node, now).await?;
    }
    Ok(())
}

fn condition<'a>(node: &'a Node, name: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == name)
}

/// The Node with its kubelet's conditions Unknown; `None` when they are already.
fn with_unknown_conditions(node: &Node, now: Timestamp) -> Option<Node> {
    let mut marked = node.clone();
    let conditions = marked
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let mut changed = false;
    for name in KUBELET_CONDITIONS {
        let (reason, message) = match condition(node, name) {
            Some(known) if known.status == "Unknown" => continue,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => (
                "NodeStatusNeverUpdated",
                "Kubelet never posted node status.",
            ),
        };
        let unknown = NodeCondition {
            type_: name.into(),
            status: "Unknown".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: condition(node, name).and_then(|c| c.last_heartbeat_time.clone()),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|old| old.type_ == name) {
            Some(old) => *old = unknown,
            None => conditions.push(unknown),
        }
        changed = true;
    }
    changed.then_some(marked)
}

/// The Node's taints as its conditions want them; `None` when they are so already. Other taints stay.
fn with_lifecycle_taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let ready = condition(node, "Ready").map(|ready| ready.status.as_str());
    let cordoned = spec.and_then(|spec| spec.unschedulable) == Some(true);
    let wanted: Vec<(&str, &str)> = match ready {
        Some("True") => vec![],
        Some("Unknown") => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        // A Node that never reported is not ready either.
        _ => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    }
    .into_iter()
    .chain(cordoned.then_some((UNSCHEDULABLE, "NoSchedule")))
    .collect();

    let ours = |taint: &Taint| [UNREACHABLE, NOT_READY, UNSCHEDULABLE].contains(&&*taint.key);
    let now_there = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let mut taints: Vec<Taint> = now_there
        .iter()
        .filter(|taint| !ours(taint) || wanted.contains(&(&*taint.key, &*taint.effect)))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: (effect == "NoExecute").then_some(Time(now)),
                value: None,
            });
        }
    }
    (taints != now_there).then_some(taints)
}

/// Marks the Node's Pods not ready, so that they leave the endpoints: nobody can say whether they still serve.
async fn take_out_of_service(
    client: &Client,
    informers: &Informers,
    node: &Node,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let name = node.name_any();
    for pod in informers.pods.all() {
        let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&name);
        let Some(marked) = here.then(|| not_ready(&pod, now)).flatten() else {
            continue;
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        match pods
            .replace_status(&pod.name_any(), &PostParams::default(), &marked)
            .await
        {
            Ok(_) => {
                tracing::info!(pod = %ObjectKey::of(&*pod), node = name, "Pod marked not ready")
            }
            // It changed or went: the next look sees how.
            Err(error) if is_conflict(&error) || crate::fault::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The Pod with its Ready condition False; `None` when it is not True.
fn not_ready(pod: &Pod, now: Timestamp) -> Option<Pod> {
    let mut pod = pod.clone();
    let conditions = pod.status.as_mut()?.conditions.as_mut()?;
    let ready = conditions
        .iter_mut()
        .find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    ready.status = "False".into();
    ready.reason = Some("NodeNotReady".into());
    ready.last_transition_time = Some(Time(now));
    Some(pod)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value, conditions: Value) -> Node {
        let node =
            json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    }

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({"spec": {"renewTime": renewed}})).unwrap()
    }

    fn taints(node: &Node) -> Option<Vec<String>> {
        let taints = with_lifecycle_taints(node, Timestamp::UNIX_EPOCH)?;
        Some(
            taints
                .iter()
                .map(|taint| format!("{}:{}", taint.key, taint.effect))
                .collect(),
        )
    }

    #[test]
    fn silence_counts_from_when_the_lease_was_last_seen_to_change_whatever_its_clock_says() {
        let node = node(json!({}), json!([]));
        let mut heartbeats = Heartbeats::default();
        let begun = Instant::now();
        let mut silence = |lease: Option<&Lease>, after: u64| {
            heartbeats
                .silence(&node, lease, begun + Duration::from_secs(after))
                .as_secs()
        };
        let (old, newer) = (
            lease("1999-01-01T00:00:00.000000Z"),
            lease("1999-01-01T00:00:10.000000Z"),
        );
        assert_eq!(silence(Some(&old), 0), 0);
        assert_eq!(silence(Some(&old), 30), 30);
        assert_eq!(silence(Some(&newer), 35), 0);
        assert_eq!(silence(Some(&newer), 80), 45);
        assert_eq!(silence(None, 81), 0, "a lost Lease gets the same grace");
        assert_eq!(silence(None, 131), 50);
    }

    #[test]
    fn taints_follow_the_ready_condition_and_leave_others_alone() {
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        let own = json!({"key": "gpu", "effect": "NoSchedule"});
        let with = |taints: Value| json!({"taints": taints});
        let unreachable = json!([
            {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}, own,
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
        ]);
        for (spec, conditions, expected) in [
            (with(json!([own])), ready("True"), None),
            (with(unreachable.clone()), ready("Unknown"), None),
            (
                with(unreachable.clone()),
                ready("True"),
                Some(vec!["gpu:NoSchedule"]),
            ),
            (
                with(json!([own])),
                ready("Unknown"),
                Some(vec![
                    "gpu:NoSchedule",
                    "node.kubernetes.io/unreachable:NoSchedule",
                    "node.kubernetes.io/unreachable:NoExecute",
                ]),
            ),
            (
                json!({}),
                json!([]),
                Some(vec![
                    "node.kubernetes.io/not-ready:NoSchedule",
                    "node.kubernetes.io/not-ready:NoExecute",
                ]),
            ),
            (
                json!({"unschedulable": true}),
                ready("True"),
                Some(vec!["node.kubernetes.io/unschedulable:NoSchedule"]),
            ),
        ] {
            let expected: Option<Vec<String>> =
                expected.map(|keys: Vec<&str>| keys.into_iter().map(String::from).collect());
            assert_eq!(taints(&node(spec.clone(), conditions)), expected, "{spec}");
        }
    }

    #[test]
    fn a_silent_node_gets_every_kubelet_condition_unknown_once() {
        let silent = node(
            json!({}),
            json!([
                {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
                {"type": "NetworkUnavailable", "status": "False"},
            ]),
        );
        let marked = with_unknown_conditions(&silent, Timestamp::UNIX_EPOCH).unwrap();
        let status =
            |name: &str| condition(&marked, name).map(|c| (&*c.status, c.reason.as_deref()));
        assert_eq!(
            status("Ready"),
            Some(("Unknown", Some("NodeStatusUnknown")))
        );
        assert_eq!(
            status("DiskPressure"),
            Some(("Unknown", Some("NodeStatusNeverUpdated")))
        );
        assert_eq!(status("NetworkUnavailable"), Some(("False", None)));
        assert!(
            condition(&marked, "Ready")
                .unwrap()
                .last_heartbeat_time
                .is_some()
        );
        assert_eq!(
            with_unknown_conditions(&marked, Timestamp::UNIX_EPOCH),
            None
        );
    }

    #[test]
    fn only_ready_pods_are_taken_out_of_service() {
        let pod = |conditions: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p"}, "status": {"conditions": conditions}}),
            )
            .unwrap()
        };
        let marked = not_ready(
            &pod(
                json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]),
            ),
            Timestamp::UNIX_EPOCH,
        );
        let conditions = marked.unwrap().status.unwrap().conditions.unwrap();
        assert_eq!(
            (&*conditions[0].status, &*conditions[1].status),
            ("True", "False")
        );
        assert_eq!(
            not_ready(
                &pod(json!([{"type": "Ready", "status": "False"}])),
                Timestamp::UNIX_EPOCH
            ),
            None
        );
    }
}
