//! The watch cache: every object in memory, and a ring of the latest changes of each kind, fed by one watch of the store.
//!
//! Watchers hold a position in the ring and read on from it; nothing is buffered for them. Who falls out of
//! the ring is told that its version is too old, and lists again.

mod bell;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use control_plane_store::{
    Event as StoreEvent, KeyRange, KeyValue, Store, StoreError, WatchStream,
};
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::sync::watch;

use crate::allocate::{Claims, IP_PREFIX, PORT_PREFIX};
use crate::custom;
use crate::errors::{ApiError, Result};
use crate::kinds::{self, Kind, Kinds};
use crate::object::{Event, EventType, Object};
use bell::Bell;
use table::Table;

/// Everything of this system stands below.
pub const ROOT: &str = "/registry/";
/// Where the definitions of custom resources stand.
const DEFINITIONS: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// Changes are kept at least so long, if there is room.
const HISTORY: Duration = Duration::from_secs(75);
/// Changes of one kind that are kept whatever their age.
const RING_MIN: usize = 1_000;
/// Changes of one kind that are kept at most.
const RING_MAX: usize = 50_000;
/// Of so many of a kind's latest changes the lines that watchers are sent are kept.
const LINES_KEPT: usize = 1_000;
/// After a restart so many revisions are read again, so that watchers go on from where they were.
const REPLAY: u64 = 5_000;
/// How long a reader waits for the cache to see what the store has.
const FRESH_WITHIN: Duration = Duration::from_secs(3);

/// All kinds' objects as of one revision.
#[derive(Debug)]
pub struct Cache {
    /// Replaced as a whole when definitions of custom resources change.
    table: RwLock<Arc<Table>>,
    /// The store's revision that is completely applied.
    revision: watch::Sender<u64>,
}

#[derive(Clone, Debug)]
struct KindCache {
    kind: &'static Kind,
    shared: Arc<Shared>,
}

/// What stays when the row of a custom resource is made anew.
#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    /// Moves with every change of this kind.
    changed: watch::Sender<()>,
    /// The same for watches.
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct State {
    /// By key without the kind's prefix.
    objects: BTreeMap<String, Arc<Object>>,
    ring: VecDeque<(Instant, Arc<Event>)>,
    /// The position of the ring's first event, counted since the start.
    first: u64,
    /// Every change after this revision is in the ring.
    horizon: u64,
}

/// The store's watch, right after everything was read.
struct Following {
    /// Changes that came with the last of the past.
    newer: Vec<StoreEvent>,
    /// The revision that `newer` goes up to.
    reached: u64,
    changes: WatchStream,
}

/// A watcher's place in the ring of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Position(u64);

impl Cache {
    pub fn new() -> Self {
        let caches = kinds::all().map(KindCache::new).collect();
        Self {
            table: RwLock::new(Arc::new(Table::new(caches))),
            revision: watch::Sender::new(0),
        }
    }

    /// The kinds that there are now.
    pub fn kinds(&self) -> Kinds {
        self.table().kinds.clone()
    }

    fn table(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.clone()
    }

    /// The revision that readers see.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the cache has seen `revision`.
    ///
    /// # Errors
    /// 504 when that does not happen within three seconds.
    pub async fn wait(&self, revision: u64) -> Result<()> {
        let mut seen = self.revision.subscribe();
        let reached = seen.wait_for(|r| *r >= revision);
        match tokio::time::timeout(FRESH_WITHIN, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::future_version(revision, self.revision())),
        }
    }

    pub fn get(&self, kind: &Kind, key: &str) -> Option<Arc<Object>> {
        let key = key.strip_prefix(kind.prefix)?;
        self.of(kind)?.read().objects.get(key).cloned()
    }

    /// The objects whose key (without the kind's prefix) starts with `scope` and comes at or after `start`, and the
    /// revision that they are of.
    pub fn list(&self, kind: &Kind, scope: &str, start: &str) -> (Vec<Arc<Object>>, u64) {
        // Taken first: what is listed may be newer than what is said, never older.
        let revision = self.revision();
        let Some(cache) = self.of(kind) else {
            return (Vec::new(), revision);
        };
        let state = cache.read();
        let from = if start > scope { start } else { scope };
        let objects = state
            .objects
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(scope))
            .map(|(_, object)| object.clone())
            .collect();
        (objects, revision)
    }

    /// How many objects there are in a namespace (empty: in all).
    pub fn count(&self, kind: &Kind, namespace: &str) -> usize {
        let Some(cache) = self.of(kind) else {
            return 0;
        };
        let state = cache.read();
        if namespace.is_empty() {
            return state.objects.len();
        }
        // '0' is what comes after '/'.
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        state.objects.range(from..to).count()
    }

    /// The objects of a scope and the position right after them: together they miss nothing.
    pub fn snapshot(&self, kind: &Kind, scope: &str) -> (Vec<Arc<Object>>, Position, u64) {
        let revision = self.revision();
        let Some(cache) = self.of(kind) else {
            return (Vec::new(), Position(0), revision);
        };
        let state = cache.read();
        let objects: Vec<_> = state
            .objects
            .range::<str, _>((Bound::Included(scope), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(scope))
            .map(|(_, object)| object.clone())
            .collect();
        let newest = objects.iter().map(|o| o.revision).max().unwrap_or(0);
        let end = Position(state.first + state.ring.len() as u64);
        (objects, end, revision.max(newest))
    }

    /// The position right after `revision`.
    ///
    /// # Errors
    /// 410 when changes after it are no longer known.
    pub fn position_after(&self, kind: &Kind, revision: u64) -> Result<Position> {
        let cache = self.of(kind).ok_or_else(no_longer_served)?;
        let state = cache.read();
        if revision < state.horizon {
            return Err(ApiError::expired(format!(
                "too old resource version: {revision} ({})",
                state.horizon
            )));
        }
        let passed = state.ring.partition_point(|(_, e)| e.revision <= revision);
        Ok(Position(state.first + passed as u64))
    }

    /// At most `max` changes from `position` on, which moves behind them.
    ///
    /// # Errors
    /// 410 when the position has fallen out of the ring.
    pub fn read_on(
        &self,
        kind: &Kind,
        position: &mut Position,
        max: usize,
    ) -> Result<Vec<Arc<Event>>> {
        let cache = self.of(kind).ok_or_else(no_longer_served)?;
        let state = cache.read();
        let Some(skip) = position.0.checked_sub(state.first) else {
            return Err(ApiError::expired(
                "The resourceVersion for the provided watch is too old.",
            ));
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let events: Vec<_> = state
            .ring
            .iter()
            .skip(skip)
            .take(max)
            .map(|(_, event)| event.clone())
            .collect();
        position.0 += events.len() as u64;
        Ok(events)
    }

    /// Signals changes of the kind.
    pub fn subscribe(&self, kind: &Kind) -> watch::Receiver<()> {
        match self.of(kind) {
            Some(cache) => cache.shared.changed.subscribe(),
            None => watch::Sender::new(()).subscribe(),
        }
    }

    /// Signals changes of the kind to a watch: several at once while they come fast and many watches are sent them all.
    pub fn listen(&self, kind: &Kind) -> watch::Receiver<()> {
        match self.of(kind) {
            Some(cache) => cache.shared.bell.listen(),
            None => watch::Sender::new(()).subscribe(),
        }
    }

    /// `None` when the kind was of a definition that is gone.
    fn of(&self, kind: &Kind) -> Option<KindCache> {
        let table = self.table();
        let mut caches = table.caches.iter();
        let found = caches.clone().find(|k| std::ptr::eq(k.kind, kind));
        // The row may have been made anew since the caller found it.
        found.or_else(|| caches.find(|k| k.is(kind))).cloned()
    }

    /// Makes the rows of custom resources follow their definitions, as of `revision`.
    fn redefine(&self, definitions: &[Value], revision: u64) {
        let old = self.table();
        let (custom, mut caches): (Vec<_>, Vec<_>) = old
            .caches
            .iter()
            .cloned()
            .partition(|k| k.kind.custom.is_some());
        for definition in definitions {
            let source = custom::source(definition);
            let same = |k: &&KindCache| k.kind.custom.is_some_and(|c| c.source == source);
            let kept: Vec<_> = custom.iter().filter(same).cloned().collect();
            if !kept.is_empty() {
                caches.extend(kept);
                continue;
            }
            for kind in custom::rows(definition) {
                let before = custom.iter().find(|k| k.is(kind));
                let sibling = custom.iter().find(|k| k.kind.prefix == kind.prefix);
                caches.push(match before {
                    Some(before) => KindCache {
                        kind,
                        shared: before.shared.clone(),
                    },
                    None => KindCache::filled(kind, sibling, revision),
                });
            }
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Table::new(caches));
        // Watchers of what is gone learn it.
        custom.iter().for_each(|cache| cache.shared.signal());
    }

    /// Reads everything, with the latest `REPLAY` revisions of history, and goes over to following the store.
    ///
    /// # Errors
    /// The store's.
    async fn load(&self, store: &dyn Store, claims: &Claims) -> Result<Following, StoreError> {
        // What the other objects are follows from these.
        let defined = store.range(KeyRange::prefix(DEFINITIONS), 0, None).await?;
        let revision = defined.revision;
        // Revision 1 is the empty store: nothing has happened in it.
        let from = store
            .oldest_revision()
            .await?
            .max(revision.saturating_sub(REPLAY))
            .clamp(2, revision + 1);
        let mut changes = store.watch(ROOT, from).await?;
        claims.reset();
        let values = defined.kvs.iter();
        let definitions: Vec<Value> = values
            .filter_map(|kv| serde_json::from_slice(&kv.value).ok())
            .collect();
        self.redefine(&definitions, revision);
        let table = self.table();
        let parts = store.parts(KeyRange::prefix(ROOT), revision);
        let noted = parts.inspect_ok(|part| {
            let claimed = part.iter().filter(|kv| is_claim(&kv.key));
            claimed.for_each(|kv| claims.note_taken(&kv.key));
        });
        let mut states = table.decode_all(noted).await?;
        // The past is already part of the objects: it only goes into the rings.
        let mut reached = from - 1;
        let mut newer = Vec::new();
        while reached < revision {
            let batch = changes.next().await.ok_or(StoreError::Closed)??;
            reached = batch.revision;
            for change in batch.events {
                if change.revision > revision {
                    newer.push(change);
                    continue;
                }
                for (at, _) in table.find(&change.key) {
                    let kind = table.caches[at].kind;
                    let previous = change.prev_kv.as_ref().and_then(|kv| decode(kind, kv));
                    if let Some(event) = event(kind, &change, previous) {
                        states[at].ring.push_back((Instant::now(), Arc::new(event)));
                    }
                }
            }
        }
        for (kind, new) in table.caches.iter().zip(states) {
            let mut state = kind.write();
            // All positions of before are void: their owners list again.
            let first = state.first + state.ring.len() as u64 + 1;
            *state = State {
                first,
                horizon: from - 1,
                ..new
            };
        }
        table.caches.iter().for_each(|k| k.shared.signal());
        self.revision.send_replace(revision);
        Ok(Following {
            newer,
            reached,
            changes,
        })
    }

    /// Feeds the cache for as long as the process runs; `ready` is told when it was filled for the first time.
    pub async fn run(
        &self,
        store: Arc<dyn Store>,
        claims: Arc<Claims>,
        ready: tokio::sync::oneshot::Sender<Result<(), StoreError>>,
    ) {
        let mut ready = Some(ready);
        loop {
            let following = match self.load(store.as_ref(), &claims).await {
                Ok(following) => following,
                Err(StoreError::Closed) => return,
                // History was compacted while it was read.
                Err(StoreError::Compacted { .. }) => continue,
                Err(error) => {
                    if let Some(ready) = ready.take() {
                        drop(ready.send(Err(error)));
                        return;
                    }
                    tracing::error!(%error, "cannot read the store; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            if let Some(ready) = ready.take() {
                drop(ready.send(Ok(())));
            }
            match self.follow(&claims, following).await {
                StoreError::Closed => return,
                error => {
                    tracing::warn!(%error, "the store's watch ended; reading everything again");
                }
            }
        }
    }

    /// Applies changes until the watch ends; answers why it did.
    async fn follow(&self, claims: &Claims, mut following: Following) -> StoreError {
        self.apply(claims, &following.newer, following.reached);
        while let Some(batch) = following.changes.next().await {
            match batch {
                Ok(batch) => self.apply(claims, &batch.events, batch.revision),
                Err(error) => return error,
            }
        }
        StoreError::Closed
    }

    /// Takes changes in: all of them up to `revision`.
    fn apply(&self, claims: &Claims, changes: &[StoreEvent], revision: u64) {
        let mut touched: Vec<Arc<Shared>> = Vec::new();
        for change in changes {
            if is_claim(&change.key) {
                match &change.kv {
                    Some(_) => claims.note_taken(&change.key),
                    None => claims.note_free(&change.key),
                }
            }
            let table = self.table();
            for (at, rest) in table.find(&change.key) {
                table.caches[at].apply(rest, change);
                touched.push(table.caches[at].shared.clone());
            }
            if change.key.starts_with(DEFINITIONS) {
                self.redefine(&table.definitions(), change.revision);
            }
        }
        touched.sort_by_key(Arc::as_ptr);
        touched.dedup_by(|a, b| Arc::ptr_eq(a, b));
        touched.iter().for_each(|shared| shared.signal());
        // Last: whoever waited for the revision finds that the kind has changed, and works out anew what follows from it.
        self.revision
            .send_if_modified(|now| std::mem::replace(now, revision.max(*now)) < revision);
    }
}

impl Shared {
    fn signal(&self) {
        self.changed.send_replace(());
        Bell::ring(&self.bell);
    }
}

impl KindCache {
    fn new(kind: &'static Kind) -> Self {
        Self {
            kind,
            shared: Arc::new(Shared {
                state: RwLock::default(),
                changed: watch::Sender::new(()),
                bell: Arc::default(),
            }),
        }
    }

    /// A version that was not served before, with the objects of one that was.
    fn filled(kind: &'static Kind, sibling: Option<&Self>, revision: u64) -> Self {
        let new = Self::new(kind);
        {
            let mut state = new.write();
            state.horizon = revision;
            for (key, object) in sibling.into_iter().flat_map(|s| s.read().objects.clone()) {
                let mut value = object.value();
                value["apiVersion"] = kind.api_version().into();
                let object = Object::new(kind, value, object.revision);
                state.objects.insert(key, Arc::new(object));
            }
        }
        new
    }

    /// Whether it is the cache of this kind, though perhaps of another state of its definition.
    fn is(&self, kind: &Kind) -> bool {
        self.kind.prefix == kind.prefix
            && self.kind.version == kind.version
            && self.kind.group == kind.group
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        let state = &self.shared.state;
        state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        let state = &self.shared.state;
        state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, key: &str, change: &StoreEvent) {
        let previous = self.read().objects.get(key).cloned();
        let Some(event) = event(self.kind, change, previous) else {
            return;
        };
        let mut state = self.write();
        match event.kind {
            EventType::Deleted => state.objects.remove(key),
            _ => state.objects.insert(key.to_owned(), event.object.clone()),
        };
        state.push(event);
    }
}

fn no_longer_served() -> ApiError {
    ApiError::expired("The kind is no longer served: its CustomResourceDefinition is gone.")
}

/// What a change of the store is for watchers; `None` when there is nothing to say.
fn event(kind: &'static Kind, change: &StoreEvent, previous: Option<Arc<Object>>) -> Option<Event> {
    match &change.kv {
        Some(kv) => {
            let object = decode(kind, kv)?;
            let word = match previous {
                Some(_) => EventType::Modified,
                None => EventType::Added,
            };
            Some(Event::new(word, object, previous))
        }
        None => {
            let previous = previous?;
            // A deletion has a revision of its own, which its last word carries.
            let last = Arc::new(previous.at(change.revision));
            Some(Event::new(EventType::Deleted, last, Some(previous)))
        }
    }
}

impl State {
    fn push(&mut self, event: Event) {
        self.ring.push_back((Instant::now(), Arc::new(event)));
        // Watchers that keep up have had its line by now.
        if let Some(old) = self.ring.len().checked_sub(LINES_KEPT) {
            self.ring[old].1.forget_frames();
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.ring.len() > RING_MIN {
            let old = self
                .ring
                .front()
                .is_some_and(|(at, _)| at.elapsed() > HISTORY);
            if !old && self.ring.len() <= RING_MAX {
                return;
            }
            if let Some((_, event)) = self.ring.pop_front() {
                self.first += 1;
                self.horizon = event.revision;
            }
        }
    }
}

fn is_claim(key: &str) -> bool {
    key.starts_with(IP_PREFIX) || key.starts_with(PORT_PREFIX)
}

/// The object under a key, in the version of `kind`; a value that is no JSON object is reported and passed over.
pub fn decode(kind: &'static Kind, kv: &KeyValue) -> Option<Arc<Object>> {
    let object = Object::of_stored(kind, &kv.value, kv.mod_revision);
    if object.is_none() {
        tracing::error!(
            key = &*kv.key,
            "the stored value is no JSON object; passing it over"
        );
    }
    object.map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane_store::EventKind;
    use serde_json::json;

    fn put(cache: &Cache, kind: &'static Kind, revision: u64, age: Duration) {
        let value = json!({"metadata": {"name": "m", "namespace": "a"}});
        let object = Arc::new(Object::new(kind, value, revision));
        let event = Event::new(EventType::Modified, object, None);
        let cache = cache.of(kind).unwrap();
        let mut state = cache.write();
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        state.ring.push_back((at, Arc::new(event)));
        state.trim();
    }

    #[test]
    fn who_falls_out_of_the_history_is_told_so() {
        let cache = Cache::new();
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let mut slow = cache.position_after(kind, 0).unwrap();
        let old = HISTORY + Duration::from_secs(5);
        for revision in 1..=RING_MIN as u64 {
            put(&cache, kind, revision, old);
        }
        let mut early = slow;
        let seen = cache.read_on(kind, &mut early, 2).unwrap();
        assert_eq!(seen.iter().map(|e| e.revision).collect::<Vec<_>>(), [1, 2]);
        for revision in 0..10 {
            put(&cache, kind, RING_MIN as u64 + 1 + revision, Duration::ZERO);
        }
        // Ten old changes made room for ten new ones.
        assert_eq!(cache.read_on(kind, &mut slow, 2).unwrap_err().code, 410);
        let error = cache.position_after(kind, 9).unwrap_err();
        assert_eq!(error.message, "too old resource version: 9 (10)");
        let mut kept = cache.position_after(kind, 10).unwrap();
        assert_eq!(cache.read_on(kind, &mut kept, 1).unwrap()[0].revision, 11);
    }

    #[test]
    fn young_changes_stay_however_many_they_are() {
        let cache = Cache::new();
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        for revision in 1..=RING_MIN as u64 + 10 {
            put(&cache, kind, revision, Duration::ZERO);
        }
        assert!(cache.position_after(kind, 0).is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_waited_for_a_revision_finds_the_kind_changed() {
        let cache = Arc::new(Cache::new());
        let claims = Claims::new(Vec::new(), 30_000..=30_001);
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let key: control_plane_store::Key = format!("{}a/m", kind.prefix).into();
        for revision in 2..5_000 {
            let changed = cache.subscribe(kind);
            let waiting = cache.clone();
            let waiter = tokio::spawn(async move {
                waiting.wait(revision).await.unwrap();
                changed.has_changed().unwrap()
            });
            let change = StoreEvent {
                kind: EventKind::Put,
                key: key.clone(),
                revision,
                kv: Some(KeyValue {
                    key: key.clone(),
                    value: r#"{"metadata":{"name":"m","namespace":"a"}}"#.into(),
                    create_revision: 2,
                    mod_revision: revision,
                    version: revision - 1,
                }),
                prev_kv: None,
            };
            cache.apply(&claims, &[change], revision);
            assert!(waiter.await.unwrap(), "revision {revision}");
        }
    }
}
