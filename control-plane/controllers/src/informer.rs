//! All objects of one kind, kept up to date by one watch that the controllers share.
//!
//! Handlers get the object before and after each change, also for what changed while the watch was down: after a
//! new list the difference is computed, so nothing depends on not missing an event.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use futures::TryStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, utils::StreamBackoff};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

/// One object before and after a change; it is new without `old` and gone without `new`.
#[derive(Debug)]
pub(crate) struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type Objects<K> = BTreeMap<ObjectKey, Arc<K>>;

pub(crate) struct Informer<K> {
    objects: RwLock<Objects<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl ObjectKey {
    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl<K> Change<K> {
    /// The object before, then the object after, as far as there is one.
    pub(crate) fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(&self.new)
    }
}

impl<K> Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer")
            .field("synced", &*self.synced.borrow())
            .finish_non_exhaustive()
    }
}

impl<K: 'static> Informer<K> {
    pub(crate) fn new() -> Self {
        Self {
            objects: RwLock::default(),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
        }
    }

    /// Calls `handler` for every object that is there, and then for every change, in the informer's task: it must
    /// be quick. A change may be announced twice while the handler is being added, never not at all.
    pub(crate) fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self
            .handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for object in self.all() {
            handler(&Change {
                old: None,
                new: Some(object),
            });
        }
        handlers.push(Box::new(handler));
    }

    /// Waits until the first list is complete.
    pub(crate) async fn synced(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|objects| objects.get(key).cloned())
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().cloned().collect())
    }

    /// The objects of one namespace that `wanted` accepts.
    pub(crate) fn in_namespace(&self, namespace: &str, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read(|objects| {
            objects
                .range(ObjectKey::new(namespace, "")..)
                .take_while(|(key, _)| key.namespace == namespace)
                .filter(|(_, object)| wanted(object))
                .map(|(_, object)| object.clone())
                .collect()
        })
    }

    fn read<R>(&self, look: impl FnOnce(&Objects<K>) -> R) -> R {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn announce(&self, change: &Change<K>) {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for handler in handlers.iter() {
            handler(change);
        }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Lists and watches, with back-off, for ever.
    pub(crate) async fn run(&self, api: Api<K>) {
        let kind = K::kind(&());
        let mut list = Objects::new();
        let stream: StreamBackoff<_, _> =
            watcher(api, watcher::Config::default()).default_backoff();
        let mut stream = pin!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(event)) => self.take(event, &mut list),
                Ok(None) => return,
                Err(error) => tracing::warn!(%kind, %error, "watch failed, trying again"),
            }
        }
    }

    fn take(&self, event: Event<K>, list: &mut Objects<K>) {
        match event {
            Event::Init => list.clear(),
            Event::InitApply(object) => {
                let (key, object) = slim(object);
                list.insert(key, object);
            }
            Event::InitDone => {
                self.replace(std::mem::take(list));
                self.synced.send_replace(true);
            }
            Event::Apply(object) => {
                let (key, object) = slim(object);
                let old = self.write(|objects| objects.insert(key, object.clone()));
                self.announce(&Change {
                    old,
                    new: Some(object),
                });
            }
            Event::Delete(object) => {
                let key = ObjectKey::of(&object);
                let old = self.write(|objects| objects.remove(&key));
                // The last state is the one that the event carries, not the one that was cached.
                let last = old.or_else(|| Some(slim(object).1));
                self.announce(&Change {
                    old: last,
                    new: None,
                });
            }
        }
    }

    fn replace(&self, list: Objects<K>) {
        let old = self.write(|objects| std::mem::replace(objects, list.clone()));
        for (key, object) in &old {
            if !list.contains_key(key) {
                self.announce(&Change {
                    old: Some(object.clone()),
                    new: None,
                });
            }
        }
        for (key, object) in list {
            let old = old.get(&key).cloned();
            let same = old
                .as_ref()
                .is_some_and(|old| old.resource_version() == object.resource_version());
            if !same {
                self.announce(&Change {
                    old,
                    new: Some(object),
                });
            }
        }
    }

    fn write<R>(&self, change: impl FnOnce(&mut Objects<K>) -> R) -> R {
        change(&mut self.objects.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// No controller reads managedFields, which are often half of an object.
fn slim<K: Resource>(mut object: K) -> (ObjectKey, Arc<K>) {
    object.meta_mut().managed_fields = None;
    (ObjectKey::of(&object), Arc::new(object))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;

    fn node(name: &str, version: &str) -> Node {
        let node = json!({"metadata": {"name": name, "resourceVersion": version}});
        serde_json::from_value(node).unwrap()
    }

    /// Feeds events and returns "old>new" for each change, by resourceVersion.
    fn changes(informer: &Arc<Informer<Node>>, events: Vec<Event<Node>>) -> Vec<String> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        informer.on_change(move |change| {
            let version = |object: &Option<Arc<Node>>| {
                object.as_ref().and_then(|node| node.resource_version())
            };
            sink.lock().unwrap().push(format!(
                "{}>{}",
                version(&change.old).unwrap_or_default(),
                version(&change.new).unwrap_or_default()
            ));
        });
        let mut list = Objects::new();
        for event in events {
            informer.take(event, &mut list);
        }
        log.lock().unwrap().clone()
    }

    #[test]
    fn a_new_list_announces_only_what_differs_and_also_what_is_gone() {
        let informer = Arc::new(Informer::new());
        let first = changes(
            &informer,
            vec![
                Event::Init,
                Event::InitApply(node("a", "1")),
                Event::InitApply(node("b", "2")),
                Event::InitDone,
                Event::Apply(node("c", "3")),
            ],
        );
        assert_eq!(first, [">1", ">2", ">3"]);
        let again = changes(
            &informer,
            vec![
                Event::Init,
                Event::InitApply(node("a", "1")),
                Event::InitApply(node("lost with its watch", "9")),
                Event::Init,
                Event::InitApply(node("a", "1")),
                Event::InitApply(node("b", "5")),
                Event::InitDone,
                Event::Delete(node("a", "6")),
            ],
        );
        assert_eq!(
            again,
            [">1", ">2", ">3", "3>", "2>5", "1>"],
            "what is there, then the differences"
        );
        assert_eq!(informer.all().len(), 1);
    }
}
