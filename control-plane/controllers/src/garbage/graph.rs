//! Who owns whom, and what follows from it. Pure: what cannot be decided from what is known is asked for.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;

/// Its object goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Its dependents stay when the object goes.
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = String;

/// An object as far as ownership goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node<R> {
    /// Where the API has it.
    pub resource: R,
    pub namespace: Option<String>,
    pub name: String,
    pub resource_version: Option<String>,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

/// All objects that the collector has seen, by uid.
#[derive(Debug)]
pub(super) struct Graph<R> {
    nodes: HashMap<Uid, Node<R>>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

/// What is to be done about an object.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// These owners are not known: whether they exist must be asked for.
    Ask(Vec<OwnerReference>),
    /// Nobody owns it any more.
    Delete(Propagation),
    /// It loses these owners and keeps the others.
    Disown(Vec<Uid>),
    /// The dependents lose this owner, then the finalizer goes.
    Orphan(Vec<Uid>),
    /// Nothing depends on it any more: the finalizer goes.
    Release,
    /// Its dependents must go first.
    Wait(Vec<Uid>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl<R> Node<R> {
    pub fn new(resource: R, meta: ObjectMeta) -> Option<(Uid, Self)> {
        let node = Self {
            resource,
            namespace: meta.namespace,
            name: meta.name?,
            resource_version: meta.resource_version,
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        };
        Some((meta.uid?, node))
    }

    pub fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }

    fn owned_by(&self, uid: &str) -> Option<&OwnerReference> {
        self.owners.iter().find(|owner| owner.uid == uid)
    }
}

impl<R> Graph<R> {
    pub fn new() -> Self {
        Self {
            nodes: HashMap::new(),
            dependents: HashMap::new(),
        }
    }

    pub fn get(&self, uid: &str) -> Option<&Node<R>> {
        self.nodes.get(uid)
    }

    /// Takes an object as it is now; answers which objects to look at.
    pub fn put(&mut self, uid: Uid, node: Node<R>) -> Vec<Uid> {
        let old = self.remove_edges(&uid);
        for owner in &node.owners {
            let dependents = self.dependents.entry(owner.uid.clone()).or_default();
            dependents.insert(uid.clone());
        }
        let has_work = !node.owners.is_empty() || node.deleting;
        self.nodes.insert(uid.clone(), node);
        // A former owner may have waited for it.
        let mut look = self.waiting_owners(&old);
        if has_work {
            look.push(uid);
        }
        look
    }

    /// Forgets an object that is gone; answers which objects to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let owners = self.remove_edges(uid);
        self.nodes.remove(uid);
        let mut look = self.waiting_owners(&owners);
        look.extend(self.dependents_of(uid));
        look
    }

    pub fn dependents_of(&self, uid: &str) -> Vec<Uid> {
        let dependents = self.dependents.get(uid).into_iter().flatten();
        dependents.cloned().collect()
    }

    /// What is to be done about an object, when `absent` says which of its unknown owners do not exist.
    pub fn step(&self, uid: &str, absent: Option<&BTreeSet<Uid>>) -> Step {
        let Some(node) = self.nodes.get(uid) else {
            return Step::Nothing;
        };
        if node.deleting {
            return self.deleting(uid, node);
        }
        let (mut gone, mut waiting, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut solid = false;
        for owner in &node.owners {
            match (self.nodes.get(&owner.uid), absent) {
                (Some(found), _) if found.waits_for_dependents() => waiting.push(owner.uid.clone()),
                (Some(_), _) => solid = true,
                (None, None) => unknown.push(owner.clone()),
                (None, Some(absent)) if absent.contains(&owner.uid) => gone.push(owner.uid.clone()),
                (None, Some(_)) => solid = true,
            }
        }
        if !unknown.is_empty() {
            return Step::Ask(unknown);
        }
        if solid {
            gone.extend(waiting);
            return if gone.is_empty() {
                Step::Nothing
            } else {
                Step::Disown(gone)
            };
        }
        if gone.is_empty() && waiting.is_empty() {
            return Step::Nothing;
        }
        let has_dependents = !self.dependents_of(uid).is_empty();
        Step::Delete(if !waiting.is_empty() && has_dependents {
            Propagation::Foreground
        } else if node.has(ORPHAN) {
            Propagation::Orphan
        } else if node.has(FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        })
    }

    fn deleting(&self, uid: &str, node: &Node<R>) -> Step {
        let dependents = self.dependents_of(uid);
        if node.has(ORPHAN) {
            return Step::Orphan(dependents);
        }
        if !node.has(FOREGROUND) {
            return Step::Nothing;
        }
        let blocks = |dependent: &&Uid| {
            let found = self.nodes.get(*dependent);
            let owner = found.and_then(|found| found.owned_by(uid));
            owner.is_some_and(|owner| owner.block_owner_deletion == Some(true))
        };
        if dependents.iter().any(|dependent| blocks(&dependent)) {
            Step::Wait(dependents)
        } else {
            Step::Release
        }
    }

    /// Those of `owners` that wait for their dependents to go.
    fn waiting_owners(&self, owners: &[OwnerReference]) -> Vec<Uid> {
        let waits = |owner: &&OwnerReference| {
            let owner = self.nodes.get(&owner.uid);
            owner.is_some_and(Node::waits_for_dependents)
        };
        let owners = owners.iter().filter(waits);
        owners.map(|owner| owner.uid.clone()).collect()
    }

    fn remove_edges(&mut self, uid: &str) -> Vec<OwnerReference> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let owners = node.owners.clone();
        for owner in &owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct World(Graph<()>);

    impl World {
        fn put(&mut self, uid: &str, meta: Value) -> Vec<Uid> {
            let mut meta = meta;
            meta["uid"] = uid.into();
            meta["name"] = uid.into();
            let meta: ObjectMeta = serde_json::from_value(meta).unwrap();
            let (uid, node) = Node::new((), meta).unwrap();
            self.0.put(uid, node)
        }

        fn owned(&mut self, uid: &str, owners: &[&str]) -> Vec<Uid> {
            self.put(
                uid,
                json!({"ownerReferences": owners.iter().map(|o| owner(o)).collect::<Vec<_>>()}),
            )
        }

        fn step(&self, uid: &str, absent: &[&str]) -> Step {
            let absent = absent.iter().map(|uid| (*uid).to_owned()).collect();
            self.0.step(uid, Some(&absent))
        }
    }

    fn owner(uid: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": true})
    }

    fn deleting(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn uids(uids: &[&str]) -> Vec<Uid> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn what_loses_its_last_owner_goes_and_what_has_another_stays() {
        let mut world = World(Graph::new());
        world.put("a", json!({}));
        world.put("b", json!({}));
        assert_eq!(world.owned("of-a", &["a"]), uids(&["of-a"]));
        world.owned("of-both", &["a", "b"]);
        assert_eq!(world.step("of-a", &[]), Step::Nothing);
        assert_eq!(world.0.remove("a"), uids(&["of-a", "of-both"]));
        assert_eq!(
            world.step("of-a", &["a"]),
            Step::Delete(Propagation::Background)
        );
        assert_eq!(world.step("of-both", &["a"]), Step::Disown(uids(&["a"])));
    }

    #[test]
    fn an_owner_that_was_not_seen_is_asked_for_before_anything_is_deleted() {
        let mut world = World(Graph::new());
        world.owned("x", &["unseen"]);
        assert!(matches!(world.0.step("x", None), Step::Ask(owners) if owners[0].uid == "unseen"));
        assert_eq!(world.step("x", &[]), Step::Nothing);
        assert_eq!(
            world.step("x", &["unseen"]),
            Step::Delete(Propagation::Background)
        );
    }

    #[test]
    fn in_the_foreground_an_owner_waits_for_those_that_block_it() {
        let mut world = World(Graph::new());
        world.put("owner", deleting(FOREGROUND));
        world.owned("child", &["owner"]);
        world.owned("grandchild", &["child"]);
        assert_eq!(world.step("owner", &[]), Step::Wait(uids(&["child"])));
        assert_eq!(
            world.step("child", &[]),
            Step::Delete(Propagation::Foreground)
        );
        world.0.remove("grandchild");
        assert_eq!(
            world.step("child", &[]),
            Step::Delete(Propagation::Background)
        );
        // The owner is looked at again when the child goes.
        assert_eq!(world.0.remove("child"), uids(&["owner"]));
        assert_eq!(world.step("owner", &[]), Step::Release);
    }

    #[test]
    fn orphans_lose_their_owner_before_it_goes() {
        let mut world = World(Graph::new());
        world.put("owner", deleting(ORPHAN));
        world.owned("child", &["owner"]);
        assert_eq!(world.step("owner", &[]), Step::Orphan(uids(&["child"])));
        world.put("child", json!({}));
        assert_eq!(world.step("owner", &[]), Step::Orphan(Vec::new()));
        assert_eq!(world.step("child", &[]), Step::Nothing);
    }

    #[test]
    fn what_changes_its_owner_is_found_under_the_new_one_only() {
        let mut world = World(Graph::new());
        world.put("a", json!({}));
        world.put("b", json!({}));
        world.owned("x", &["a"]);
        world.owned("x", &["b"]);
        assert!(world.0.dependents_of("a").is_empty());
        assert_eq!(world.0.dependents_of("b"), uids(&["x"]));
        assert!(world.0.remove("a").is_empty());
    }
}
