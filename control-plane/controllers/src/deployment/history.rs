//! Which ReplicaSet is a Deployment's newest, and the revisions that `kubectl rollout history` and `undo` read. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::workload::{owner_reference, template_hash};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The label by which the pods of one template are told from those of another.
const HASH: &str = "pod-template-hash";

/// The ReplicaSet of the Deployment's present template; the oldest, should there be several.
pub(super) fn newest<'a>(
    deployment: &Deployment,
    sets: &'a [ReplicaSet],
) -> Option<&'a ReplicaSet> {
    let wanted = &deployment.spec.template;
    let of_template = sets.iter().filter(|set| {
        let template = set.spec.template.as_ref();
        template.is_some_and(|template| same_template(template, wanted))
    });
    of_template.min_by_key(|set| (set.creation_timestamp().map(|time| time.0), set.name_any()))
}

/// Whether two templates make the same pods; the hash of the one that is in a ReplicaSet does not count.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let metadata = template.metadata.get_or_insert_default();
        metadata.creation_timestamp = None;
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH);
        }
        template
    };
    plain(a) == plain(b)
}

/// A ReplicaSet for the Deployment's present template, of no pods yet. A hash that another template has already is told
/// apart by `collisions`.
pub(super) fn new_set(deployment: &Deployment, sets: &[ReplicaSet], collisions: i32) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let hash = template_hash(&spec.template, collisions);
    let labelled = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH.to_owned(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template;
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels = labelled(metadata.labels.take());
    let labels = metadata.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels = labelled(selector.match_labels.take());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels,
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    let annotations = annotations(deployment, &set, sets);
    set.metadata.annotations = Some(annotations);
    set
}

pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(REVISION));
    annotation
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// The annotations that the newest set should have: the Deployment's own, and the revision after all others.
pub(super) fn annotations(
    deployment: &Deployment,
    newest: &ReplicaSet,
    sets: &[ReplicaSet],
) -> BTreeMap<String, String> {
    let mut annotations = newest.annotations().clone();
    let own = [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAX];
    let inherited = deployment.annotations().iter();
    let inherited = inherited.filter(|(key, _)| !own.contains(&key.as_str()));
    annotations.extend(inherited.map(|(key, value)| (key.clone(), value.clone())));
    let others = sets
        .iter()
        .filter(|set| set.uid() != newest.uid() || newest.uid().is_none());
    let last = others.map(|set| revision(&set.metadata)).max().unwrap_or(0);
    let known = revision(&newest.metadata);
    if known <= last {
        if known > 0 {
            // It was another revision before: an undo has brought it back.
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&known.to_string());
        }
        annotations.insert(REVISION.to_owned(), (last + 1).to_string());
    }
    annotations
}

/// What a set must know of its Deployment's size, so that a change of it can be told from a rollout.
pub(super) fn with_size(
    mut annotations: BTreeMap<String, String>,
    desired: i32,
    surge: i32,
) -> BTreeMap<String, String> {
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), (desired + surge).to_string());
    annotations
}

/// Old sets without pods, beyond those that are kept for an undo; the oldest first.
pub(super) fn superfluous<'a>(
    deployment: &Deployment,
    old: impl Iterator<Item = &'a ReplicaSet>,
) -> Vec<&'a ReplicaSet> {
    let limit = deployment.spec.revision_history_limit;
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let idle = |set: &&ReplicaSet| {
        let wanted = set.spec.replicas.unwrap_or(1);
        let has = set.status.as_ref().map_or(0, |status| status.replicas);
        let seen = set
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        let seen = seen >= set.metadata.generation;
        wanted == 0 && has == 0 && seen && set.metadata.deletion_timestamp.is_none()
    };
    let mut idle: Vec<_> = old.filter(idle).collect();
    idle.sort_by_key(|set| revision(&set.metadata));
    idle.truncate(idle.len().saturating_sub(limit));
    idle
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d1",
                "annotations": {"kubernetes.io/change-cause": image, LAST_APPLIED: "{}"}},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": image}]},
                },
            },
        }))
        .unwrap()
    }

    fn stored(mut set: ReplicaSet, uid: &str) -> ReplicaSet {
        set.metadata.uid = Some(uid.to_owned());
        set
    }

    #[test]
    fn each_template_has_its_set_and_each_set_its_revision() {
        let (one, two) = (deployment("i:1"), deployment("i:2"));
        assert!(newest(&one, &[]).is_none());
        let first = stored(new_set(&one, &[], 0), "s1");
        assert_eq!(first.annotations()[REVISION], "1");
        assert_eq!(first.annotations()["kubernetes.io/change-cause"], "i:1");
        assert!(!first.annotations().contains_key(LAST_APPLIED));
        let hash = &first.labels()[HASH];
        assert_eq!(first.name_any(), format!("web-{hash}"));
        let spec = &first.spec;
        assert_eq!(spec.selector.match_labels.as_ref().unwrap()[HASH], *hash);
        let second = stored(new_set(&two, std::slice::from_ref(&first), 0), "s2");
        assert_ne!(second.name_any(), first.name_any());
        assert_eq!(second.annotations()[REVISION], "2");
        let sets = [first, second];
        assert_eq!(newest(&one, &sets).unwrap().uid().unwrap(), "s1");
        assert_eq!(newest(&two, &sets).unwrap().uid().unwrap(), "s2");
        // An undo: the first template is the newest again.
        let again = annotations(&one, &sets[0], &sets);
        assert_eq!(again[REVISION], "3");
        assert_eq!(again[REVISION_HISTORY], "1");
        // Looked at again, nothing changes.
        assert_eq!(annotations(&two, &sets[1], &sets)[REVISION], "2");
    }

    #[test]
    fn a_collision_has_another_hash() {
        let one = deployment("i:1");
        assert_ne!(
            new_set(&one, &[], 0).name_any(),
            new_set(&one, &[], 1).name_any()
        );
    }

    #[test]
    fn old_sets_go_when_there_are_too_many() {
        let mut web = deployment("i:9");
        web.spec.revision_history_limit = Some(1);
        let set = |revision: &str, replicas: i32| -> ReplicaSet {
            serde_json::from_value(json!({
                "metadata": {"name": revision, "annotations": {REVISION: revision}},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas},
            }))
            .unwrap()
        };
        let sets = [set("3", 0), set("1", 0), set("2", 0), set("4", 2)];
        let gone: Vec<_> = superfluous(&web, sets.iter())
            .iter()
            .map(|s| s.name_any())
            .collect();
        assert_eq!(gone, ["1", "2"]);
    }
}
