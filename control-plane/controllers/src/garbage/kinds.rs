//! The kinds that there are, and a watch of the metadata of each.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, utils::StreamBackoff};
use kube::{Api, Client};
use tokio::sync::watch as signal;
use tokio::task::{AbortHandle, JoinSet};

use super::Collector;
use super::graph::{Node, Uid};

/// How soon discovery is tried again after it failed.
const AGAIN: Duration = Duration::from_secs(1);

/// A kind as the API serves it.
#[derive(Clone, Debug)]
pub(super) struct Resource(Arc<(ApiResource, Scope)>);

/// All kinds whose objects can be collected.
pub(super) struct Kinds {
    client: Client,
    /// By apiVersion and kind.
    known: RwLock<HashMap<(String, String), Resource>>,
    /// How many kinds are still to be listed; none before discovery.
    unlisted: signal::Sender<Option<usize>>,
}

impl Resource {
    pub fn kind(&self) -> &str {
        &self.0.0.kind
    }

    /// Its objects of one namespace, or of the cluster.
    pub fn api(&self, client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
        let (resource, scope) = &*self.0;
        match (scope, namespace) {
            (Scope::Namespaced, Some(namespace)) => {
                Api::namespaced_with(client.clone(), namespace, resource)
            }
            _ => Api::all_with(client.clone(), resource),
        }
    }

    fn key(&self) -> (String, String) {
        (self.0.0.api_version.clone(), self.0.0.kind.clone())
    }
}

impl Kinds {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            known: RwLock::default(),
            unlisted: signal::Sender::new(None),
        }
    }

    /// Waits until the kinds of the first discovery have been listed.
    pub async fn listed(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self
            .unlisted
            .subscribe()
            .wait_for(|left| *left == Some(0))
            .await;
    }

    pub fn find(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .get(&(api_version.to_owned(), kind.to_owned()))
            .cloned()
    }

    /// What can be listed, watched and deleted. Events are left out: they go by themselves, and there are many.
    async fn discover(&self) -> Result<Vec<Resource>, kube::Error> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let all = discovery
            .groups()
            .flat_map(|group| group.recommended_resources());
        let collected = all.filter(|(resource, capabilities)| {
            let can = |verb| capabilities.supports_operation(verb);
            can(verbs::LIST)
                && can(verbs::WATCH)
                && can(verbs::DELETE)
                && resource.plural != "events"
        });
        let found = collected
            .map(|(resource, capabilities)| Resource(Arc::new((resource, capabilities.scope))));
        let found: Vec<Resource> = found.collect();
        let known = found
            .iter()
            .map(|resource| (resource.key(), resource.clone()));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known.collect();
        Ok(found)
    }
}

/// Watches all kinds for ever, and looks for new ones every `period`.
pub(super) async fn watch(collector: Arc<Collector>, period: Duration) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<(String, String), AbortHandle> = HashMap::new();
    loop {
        let found = match collector.kinds.discover().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the kinds could not be listed, trying again");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let first = collector.kinds.unlisted.borrow().is_none();
        if first {
            collector.kinds.unlisted.send_replace(Some(found.len()));
        }
        let keys: HashSet<_> = found.iter().map(Resource::key).collect();
        running.retain(|key, watch| {
            let keep = keys.contains(key);
            if !keep {
                watch.abort();
            }
            keep
        });
        for resource in found {
            running
                .entry(resource.key())
                .or_insert_with(|| watches.spawn(follow(collector.clone(), resource, first)));
        }
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            // Only one whose kind is no more ends.
            Some(_) = watches.join_next() => {}
        }
    }
}

/// What was watched of a kind, which goes from the graph when the watch ends.
struct Watched {
    collector: Arc<Collector>,
    resource: Resource,
    uids: HashSet<Uid>,
}

/// One kind's objects, until aborted. `counted`: [`Kinds::listed`] waits for it.
async fn follow(collector: Arc<Collector>, resource: Resource, counted: bool) {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(collector.client.clone(), &resource.0.0);
    let stream: StreamBackoff<_, _> = watcher(api, watcher::Config::default()).default_backoff();
    let mut stream = pin!(stream);
    let mut counted = counted;
    let mut listing = HashSet::new();
    let mut watched = Watched {
        collector,
        resource,
        uids: HashSet::new(),
    };
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Init)) => listing.clear(),
            Ok(Some(Event::InitApply(object))) => listing.extend(watched.put(object)),
            Ok(Some(Event::InitDone)) => {
                watched.keep(&std::mem::take(&mut listing));
                if std::mem::take(&mut counted) {
                    let unlisted = &watched.collector.kinds.unlisted;
                    unlisted.send_modify(|left| *left = left.map(|left| left.saturating_sub(1)));
                }
            }
            Ok(Some(Event::Apply(object))) => drop(watched.put(object)),
            Ok(Some(Event::Delete(object))) => {
                if let Some(uid) = object.metadata.uid {
                    watched.remove(&uid);
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(kind = watched.resource.kind(), %error, "watch failed, trying again");
            }
        }
    }
}

impl Watched {
    fn put(&mut self, object: PartialObjectMeta<DynamicObject>) -> Option<Uid> {
        let (uid, node) = Node::new(self.resource.clone(), object.metadata)?;
        self.uids.insert(uid.clone());
        self.collector.put(uid.clone(), node);
        Some(uid)
    }

    fn remove(&mut self, uid: &str) {
        self.uids.remove(uid);
        self.collector.remove(uid);
    }

    /// Removes what a new list no longer has.
    fn keep(&mut self, listed: &HashSet<Uid>) {
        let gone: Vec<Uid> = self.uids.difference(listed).cloned().collect();
        gone.iter().for_each(|uid| self.remove(uid));
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for uid in &self.uids {
            self.collector.remove(uid);
        }
    }
}
