//! The watch cache: every object in memory, and a ring of the latest changes of each kind, fed by one watch of the store.
//!
//! Watchers hold a position in the ring and read on from it; nothing is buffered for them. Who falls out of
//! the ring is told that its version is too old, and lists again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use control_plane_store::{
    Event as StoreEvent, KeyRange, KeyValue, Store, StoreError, WatchStream,
};
use futures::StreamExt;
use tokio::sync::watch;

use crate::allocate::{Claims, IP_PREFIX, PORT_PREFIX};
use crate::errors::{ApiError, Result};
use crate::kinds::{self, Kind};
use crate::object::{Event, EventType, Object};

/// Everything of this system stands below.
const ROOT: &str = "/registry/";
/// Changes are kept at least so long, if there is room.
const HISTORY: Duration = Duration::from_secs(75);
/// Changes of one kind that are kept whatever their age.
const RING_MIN: usize = 1_000;
/// Changes of one kind that are kept at most.
const RING_MAX: usize = 50_000;
/// After a restart so many revisions are read again, so that watchers go on from where they were.
const REPLAY: u64 = 5_000;
/// How long a reader waits for the cache to see what the store has.
const FRESH_WITHIN: Duration = Duration::from_secs(3);

/// All kinds' objects as of one revision.
#[derive(Debug)]
pub struct Cache {
    kinds: Vec<KindCache>,
    /// The store's revision that is completely applied.
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct KindCache {
    kind: &'static Kind,
    state: RwLock<State>,
    /// Moves with every change of this kind.
    changed: watch::Sender<()>,
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
        let kinds = kinds::all().map(|kind| KindCache {
            kind,
            state: RwLock::default(),
            changed: watch::Sender::new(()),
        });
        Self {
            kinds: kinds.collect(),
            revision: watch::Sender::new(0),
        }
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
        self.state(kind).objects.get(key).cloned()
    }

    /// The objects whose key (without the kind's prefix) starts with `scope` and comes at or after `start`, and the
    /// revision that they are of.
    pub fn list(&self, kind: &Kind, scope: &str, start: &str) -> (Vec<Arc<Object>>, u64) {
        // Taken first: what is listed may be newer than what is said, never older.
        let revision = self.revision();
        let state = self.state(kind);
        let from = if start > scope { start } else { scope };
        let objects = state
            .objects
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(scope))
            .map(|(_, object)| object.clone())
            .collect();
        (objects, revision)
    }

    /// The objects of a scope and the position right after them: together they miss nothing.
    pub fn snapshot(&self, kind: &Kind, scope: &str) -> (Vec<Arc<Object>>, Position, u64) {
        let revision = self.revision();
        let state = self.state(kind);
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
        let state = self.state(kind);
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
        let state = self.state(kind);
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
        self.of(kind).changed.subscribe()
    }

    fn of(&self, kind: &Kind) -> &KindCache {
        self.kinds
            .iter()
            .find(|k| std::ptr::eq(k.kind, kind))
            .expect("the cache was made from the same table as every &'static Kind")
    }

    fn state(&self, kind: &Kind) -> RwLockReadGuard<'_, State> {
        let state = &self.of(kind).state;
        state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything, with the latest `REPLAY` revisions of history, and goes over to following the store.
    ///
    /// # Errors
    /// The store's.
    async fn load(&self, store: &dyn Store, claims: &Claims) -> Result<Following, StoreError> {
        let all = store.range(KeyRange::prefix(ROOT), 0, None).await?;
        // Revision 1 is the empty store: nothing has happened in it.
        let from = store
            .oldest_revision()
            .await?
            .max(all.revision.saturating_sub(REPLAY))
            .clamp(2, all.revision + 1);
        let mut changes = store.watch(ROOT, from).await?;
        claims.reset();
        let mut states: Vec<State> = self.kinds.iter().map(|_| State::default()).collect();
        for kv in &all.kvs {
            if is_claim(&kv.key) {
                claims.note_taken(&kv.key);
            }
            for (at, rest) in self.find(&kv.key) {
                if let Some(object) = decode(self.kinds[at].kind, kv) {
                    states[at].objects.insert(rest.to_owned(), object);
                }
            }
        }
        // The past is already part of the objects: it only goes into the rings.
        let mut reached = from - 1;
        let mut newer = Vec::new();
        while reached < all.revision {
            let batch = changes.next().await.ok_or(StoreError::Closed)??;
            reached = batch.revision;
            for change in batch.events {
                if change.revision > all.revision {
                    newer.push(change);
                    continue;
                }
                for (at, _) in self.find(&change.key) {
                    let kind = self.kinds[at].kind;
                    let previous = change.prev_kv.as_ref().and_then(|kv| decode(kind, kv));
                    if let Some(event) = event(kind, &change, previous) {
                        states[at].ring.push_back((Instant::now(), Arc::new(event)));
                    }
                }
            }
        }
        for (kind, new) in self.kinds.iter().zip(states) {
            let mut state = kind.write();
            // All positions of before are void: their owners list again.
            let first = state.first + state.ring.len() as u64 + 1;
            *state = State {
                first,
                horizon: from - 1,
                ..new
            };
        }
        self.revision.send_replace(all.revision);
        self.kinds.iter().for_each(|k| {
            k.changed.send_replace(());
        });
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
        let mut touched = vec![false; self.kinds.len()];
        for change in changes {
            if is_claim(&change.key) {
                match &change.kv {
                    Some(_) => claims.note_taken(&change.key),
                    None => claims.note_free(&change.key),
                }
            }
            for (at, rest) in self.find(&change.key) {
                self.kinds[at].apply(rest, change);
                touched[at] = true;
            }
        }
        self.revision
            .send_if_modified(|now| std::mem::replace(now, revision.max(*now)) < revision);
        for (kind, touched) in self.kinds.iter().zip(touched) {
            if touched {
                kind.changed.send_replace(());
            }
        }
    }

    /// The kinds that a key belongs to (one for each version that shows it), and the rest of the key.
    fn find<'a>(&self, key: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        self.kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| !kind.kind.prefix.is_empty())
            .filter_map(move |(at, kind)| Some((at, key.strip_prefix(kind.kind.prefix)?)))
    }
}

impl KindCache {
    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, key: &str, change: &StoreEvent) {
        let previous = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.objects.get(key).cloned()
        };
        let Some(event) = event(self.kind, change, previous) else {
            return;
        };
        let mut state = self.write();
        match event.kind {
            EventType::Deleted => state.objects.remove(key),
            _ => state.objects.insert(key.to_owned(), event.object.clone()),
        };
        state.ring.push_back((Instant::now(), Arc::new(event)));
        state.trim();
    }
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
            let last = Object::new(kind, previous.value(), change.revision);
            Some(Event::new(
                EventType::Deleted,
                Arc::new(last),
                Some(previous),
            ))
        }
    }
}

impl State {
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
    match serde_json::from_slice::<serde_json::Value>(&kv.value) {
        Ok(mut value) if value.is_object() => {
            if let Some(conversion) = kind.conversion {
                (conversion.from_stored)(&mut value);
            }
            Some(Arc::new(Object::new(kind, value, kv.mod_revision)))
        }
        _ => {
            tracing::error!(
                key = &*kv.key,
                "the stored value is no JSON object; passing it over"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(cache: &Cache, kind: &'static Kind, revision: u64, age: Duration) {
        let value = json!({"metadata": {"name": "m", "namespace": "a"}});
        let object = Arc::new(Object::new(kind, value, revision));
        let event = Event::new(EventType::Modified, object, None);
        let mut state = cache.of(kind).write();
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
}
