//! What the controllers of workloads share: whose an object is, pods made from a template, and which pods to give up.

use std::cmp::Reverse;
use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::fault::gone;
use crate::informer::ObjectKey;

/// How many pods are made at once after as many have been made without an error; it doubles, as upstream's slow start.
const FIRST_BATCH: usize = 1;
/// The most pods that are made or deleted for one look at a workload.
pub(crate) const BURST: usize = 500;
/// Letters and digits that make no words and that look like no other (`rand.SafeEncodeString` of Kubernetes).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The controller among an object's owners.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = meta.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Who controls this object, if it is of that kind.
pub(crate) fn controller_key(metadata: &ObjectMeta, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(metadata).filter(|owner| owner.kind == kind)?;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    Some(ObjectKey::new(namespace, &owner.name))
}

/// `owner` as the controller of what it makes.
pub(crate) fn owner_reference<K>(owner: &K) -> OwnerReference
where
    K: Resource<DynamicType = ()>,
{
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A selector that can be asked; one that makes no sense, or an empty one, selects nothing.
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// What a workload does about an object that its selector or its uid speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Own,
    Adopt,
    Release,
    Foreign,
}

/// Whose `object` is, for the owner with `uid` and `selector`.
pub(crate) fn claim<K: Resource>(object: &K, uid: &str, selector: &Selector) -> Claim {
    let meta = object.meta();
    let selected = selector.matches(object.labels());
    match controller_of(meta) {
        Some(owner) if owner.uid == uid && selected => Claim::Own,
        Some(owner) if owner.uid == uid && meta.deletion_timestamp.is_none() => Claim::Release,
        None if selected && meta.deletion_timestamp.is_none() => Claim::Adopt,
        _ => Claim::Foreign,
    }
}

/// Makes `owner` the controller of an object, or no longer.
///
/// # Errors
/// The API's; 409 when the object has changed.
pub(crate) async fn set_controller<K>(
    api: &Api<K>,
    object: &K,
    owner: &OwnerReference,
    owned: bool,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut owners = object.owner_references().to_vec();
    owners.retain(|o| o.uid != owner.uid);
    if owned {
        owners.push(owner.clone());
    }
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "ownerReferences": owners,
    }});
    let name = object.name_any();
    let (how, patch) = (PatchParams::default(), Patch::Merge(patch));
    gone(api.patch(&name, &how, &patch).await)
}

/// The pods of an owner, those that it may adopt included, as the API has them now.
///
/// # Errors
/// The API's.
pub(crate) async fn claim_pods(
    api: &Api<Pod>,
    pods: Vec<Pod>,
    owner: &OwnerReference,
    selector: &Selector,
) -> Result<Vec<Pod>, kube::Error> {
    let mut own = Vec::with_capacity(pods.len());
    for pod in pods {
        match claim(&pod, &owner.uid, selector) {
            Claim::Own => own.push(pod),
            Claim::Adopt if is_active(&pod) => {
                set_controller(api, &pod, owner, true).await?;
                own.push(pod);
            }
            Claim::Release => set_controller(api, &pod, owner, false).await?,
            Claim::Adopt | Claim::Foreign => {}
        }
    }
    Ok(own)
}

/// A pod of `owner` from a template; without a name, so that it gets one that begins as the owner's.
pub(crate) fn pod_from(template: &PodTemplateSpec, owner: &OwnerReference) -> Pod {
    let given = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// By what the pods of one template are told from those of another: FNV-1a over its JSON, in letters.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    let collisions = if collisions > 0 {
        collisions.to_le_bytes().to_vec()
    } else {
        Vec::new()
    };
    let mut hash: u32 = 0x811c_9dc5;
    for byte in json.iter().chain(&collisions) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    let digits = hash.to_string().into_bytes().into_iter();
    digits
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// A number, or a share of `whole` in percent; `default` if nothing is said.
pub(crate) fn share(value: Option<&IntOrString>, default: &str, whole: i32, up: bool) -> i32 {
    let text = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.as_str(),
        None => default,
    };
    let Some(percent) = text.strip_suffix('%') else {
        return text.parse().unwrap_or(0).max(0);
    };
    let share = percent.parse::<i64>().unwrap_or(0) * i64::from(whole);
    let share = if up { (share + 99) / 100 } else { share / 100 };
    i32::try_from(share.max(0)).unwrap_or(i32::MAX)
}

/// Makes these pods, few at first: what refuses one would refuse them all.
///
/// # Errors
/// The first one's that could not be made.
pub(crate) async fn create_pods(api: &Api<Pod>, mut pods: Vec<Pod>) -> Result<(), kube::Error> {
    let post = PostParams::default();
    let mut batch = FIRST_BATCH;
    while !pods.is_empty() {
        let rest = pods.split_off(batch.min(pods.len()));
        let made = pods.iter().map(|pod| api.create(&post, pod));
        for made in futures::future::join_all(made).await {
            let pod = made?;
            tracing::info!(
                pod = pod.name_any(),
                uid = pod.uid().unwrap_or_default(),
                "Pod made"
            );
        }
        pods = rest;
        batch *= 2;
    }
    Ok(())
}

/// Deletes exactly these objects; one that is gone or has been replaced is none of them.
///
/// # Errors
/// The API's.
pub(crate) async fn delete_all<'a, K>(
    api: &Api<K>,
    objects: impl IntoIterator<Item = &'a K>,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + 'a,
{
    let deleted = objects.into_iter().map(|object| async move {
        let only_this = DeleteParams::background().preconditions(Preconditions {
            uid: object.uid(),
            resource_version: None,
        });
        match api.delete(&object.name_any(), &only_this).await {
            Err(error) if crate::fault::is_conflict(&error) => Ok(()),
            other => gone(other),
        }
    });
    let deleted = futures::future::join_all(deleted).await;
    deleted.into_iter().collect()
}

/// Whether the API still has `owner` as it was seen, and nobody deletes it: before anything is made for it.
///
/// # Errors
/// The API's.
pub(crate) async fn still_wanted<K>(client: &Client, owner: &K) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let found = api.get_metadata_opt(&owner.name_any()).await?;
    Ok(found.is_some_and(|found| {
        found.metadata.uid == owner.uid() && found.metadata.deletion_timestamp.is_none()
    }))
}

/// Neither ended nor to be ended.
pub(crate) fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// Since when it is ready; `None` if it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod)?
        .last_transition_time
        .as_ref()
        .map(|time| time.0)
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    let mut conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Ready for `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if min_ready_seconds <= 0 {
        return is_ready(pod);
    }
    let needed = SignedDuration::from_secs(min_ready_seconds.into());
    ready_since(pod).is_some_and(|since| now.duration_since(since) >= needed)
}

/// Sorts pods so that those come first that are missed least: not scheduled, not running, not ready, cheap by their
/// annotation, ready for a short time, restarted often, young (`ActivePodsWithRanks` of Kubernetes).
pub(crate) fn sort_for_deletion(pods: &mut [Pod]) {
    pods.sort_by_key(|pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let phase = match phase(pod) {
            "Pending" | "" => 0,
            "Running" => 2,
            _ => 1,
        };
        let cost = pod.annotations().get(DELETION_COST);
        let cost: i32 = cost.and_then(|cost| cost.parse().ok()).unwrap_or(0);
        let restarts = pod
            .status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten());
        let restarts = restarts.map(|status| status.restart_count).max();
        (
            node.is_some_and(|node| !node.is_empty()),
            phase,
            is_ready(pod),
            cost,
            Reverse(ready_since(pod)),
            Reverse(restarts),
            Reverse(pod.creation_timestamp().map(|time| time.0)),
        )
    });
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn pod(name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": status,
        }))
        .unwrap()
    }

    fn ready(since: &str) -> Value {
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": since});
        json!({"phase": "Running", "conditions": [condition]})
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let mut unscheduled = pod("unscheduled", json!({"phase": "Pending"}));
        unscheduled.spec.as_mut().unwrap().node_name = None;
        let mut cheap = pod("cheap", ready("2026-01-01T00:00:00Z"));
        cheap
            .annotations_mut()
            .insert(DELETION_COST.into(), "-1".into());
        let mut pods = vec![
            pod("old", ready("2026-01-01T00:00:00Z")),
            pod("new", ready("2026-01-01T01:00:00Z")),
            cheap,
            pod("starting", json!({"phase": "Running"})),
            pod("pulling", json!({"phase": "Pending"})),
            unscheduled,
        ];
        sort_for_deletion(&mut pods);
        let order: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
        assert_eq!(
            order,
            ["unscheduled", "pulling", "starting", "cheap", "new", "old"]
        );
    }

    #[test]
    fn available_is_ready_for_long_enough() {
        let pod = pod("p", ready("2026-01-01T00:00:00Z"));
        let at = |time: &str| time.parse().unwrap();
        assert!(is_available(&pod, 0, at("2026-01-01T00:00:00Z")));
        assert!(!is_available(&pod, 10, at("2026-01-01T00:00:09Z")));
        assert!(is_available(&pod, 10, at("2026-01-01T00:00:10Z")));
    }

    #[test]
    fn an_object_is_claimed_by_its_controller_and_by_its_labels() {
        let web = LabelSelector {
            match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
            ..LabelSelector::default()
        };
        let web = selector(&web).unwrap();
        let mut own = pod("p", json!({}));
        assert_eq!(claim(&own, "u1", &web), Claim::Adopt);
        own.metadata.owner_references = Some(vec![OwnerReference {
            uid: "u1".into(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        assert_eq!(claim(&own, "u1", &web), Claim::Own);
        assert_eq!(claim(&own, "u2", &web), Claim::Foreign);
        own.labels_mut().clear();
        assert_eq!(claim(&own, "u1", &web), Claim::Release);
        assert!(selector(&LabelSelector::default()).is_none());
    }
}
