//! The revisions of a DaemonSet's template, which `kubectl rollout history` and `undo` read. Pure.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plan::HASH;
use crate::workload::{owner_reference, template_hash};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn collisions(set: &DaemonSet) -> i32 {
    let status = set.status.as_ref();
    status
        .and_then(|status| status.collision_count)
        .unwrap_or(0)
}

/// The revision of the present template; its number is the highest, or the one that it has if none is higher.
pub(super) fn of(set: &DaemonSet, known: &[ControllerRevision]) -> ControllerRevision {
    let hash = template_hash(&set.spec.template, collisions(set));
    let name = format!("{}-{hash}", set.name_any());
    let number = |revision: &ControllerRevision| revision.revision.unwrap_or(0);
    let others = known.iter().filter(|found| found.name_any() != name);
    let last = others.map(number).max().unwrap_or(0);
    let own = known
        .iter()
        .find(|found| found.name_any() == name)
        .map_or(0, number);
    let template_labels = set
        .spec
        .template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    let mut labels = template_labels.unwrap_or_default();
    labels.insert(HASH.to_owned(), hash);
    let mut annotations = set.annotations().clone();
    annotations.remove(LAST_APPLIED);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data(set)),
        revision: Some(if own > last { own } else { last + 1 }),
    }
}

/// What brings the template back, as a strategic merge patch of the set.
fn data(set: &DaemonSet) -> Value {
    let mut template = serde_json::to_value(&set.spec.template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// Revisions beyond those that are kept for an undo, the oldest first; not the present one, nor those of pods that run.
pub(super) fn superfluous<'a>(
    set: &DaemonSet,
    known: &'a [ControllerRevision],
    present: &str,
    in_use: &dyn Fn(&String) -> bool,
) -> Vec<&'a ControllerRevision> {
    let limit = set.spec.revision_history_limit.unwrap_or(10);
    let limit = usize::try_from(limit).unwrap_or(0);
    let idle = known.iter().filter(|revision| {
        let hash = revision.labels().get(HASH);
        hash.is_none_or(|hash| hash != present && !in_use(hash))
    });
    let mut idle: Vec<_> = idle.collect();
    idle.sort_by_key(|revision| revision.revision);
    idle.truncate(idle.len().saturating_sub(limit));
    idle
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(image: &str) -> DaemonSet {
        let containers = json!([{"name": "c", "image": image}]);
        serde_json::from_value(json!({
            "metadata": {"name": "d", "uid": "u"},
            "spec": {"selector": {}, "revisionHistoryLimit": 1, "template": {"spec": {"containers": containers}}},
        }))
        .unwrap()
    }

    #[test]
    fn an_undo_makes_an_old_revision_the_newest() {
        let first = of(&set("i:1"), &[]);
        assert_eq!(first.revision, Some(1));
        assert_eq!(first.data.0["spec"]["template"]["$patch"], "replace");
        let second = of(&set("i:2"), std::slice::from_ref(&first));
        assert_eq!(second.revision, Some(2));
        let known = [first, second];
        assert_eq!(of(&set("i:2"), &known).revision, Some(2));
        let again = of(&set("i:1"), &known);
        assert_eq!(
            (again.name_any(), again.revision),
            (known[0].name_any(), Some(3))
        );
    }

    #[test]
    fn what_no_pod_has_goes_when_there_is_too_much_of_it() {
        let mut known: Vec<ControllerRevision> = Vec::new();
        for image in ["i:1", "i:2", "i:3", "i:4"] {
            known.push(of(&set(image), &known));
        }
        let present = known[3].labels()[HASH].clone();
        let used = known[0].labels()[HASH].clone();
        let gone = superfluous(&set("i:4"), &known, &present, &|hash| *hash == used);
        let gone: Vec<_> = gone.iter().map(|revision| revision.revision).collect();
        assert_eq!(gone, [Some(2)]);
    }
}
