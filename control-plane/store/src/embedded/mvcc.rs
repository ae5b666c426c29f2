//! History in memory: every retained version of every key, and the changes in the order of their revisions.
//!
//! Pure: no IO, and the time is an argument. A version is obsolete once a newer one of its key is itself older than
//! the oldest retained revision; tombstones go when they are older than that. So a watch from the oldest retained
//! revision still knows the previous value of each of its events.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Instant;

use bytes::Bytes;

use super::Retention;
use crate::{
    Event, EventKind, Key, KeyRange, KeyValue, RangeResponse, Result, Revision, StoreError,
};

/// The revision of a store that was never written, as etcd's.
pub(super) const FIRST_REVISION: Revision = 1;

/// A fixed estimate of what a change costs beside its key and value.
const CHANGE_OVERHEAD: usize = 256;

/// Where a version stands on disk: its revision, and its place among the changes of that revision.
pub(super) type RecordId = (Revision, u32);

/// One version of one key; a tombstone has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub mod_revision: Revision,
    pub index: u32,
    pub create_revision: Revision,
    pub version: u64,
    pub value: Option<Bytes>,
}

/// All that one transaction changed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Debug)]
pub(super) struct Mvcc {
    /// Per key, oldest first; the last one is the present.
    keys: BTreeMap<Key, VecDeque<Version>>,
    /// The changes of all revisions from `first_retained` to `revision`, without a gap.
    history: VecDeque<Retained>,
    history_bytes: usize,
    oldest: Revision,
    revision: Revision,
}

#[derive(Debug)]
struct Retained {
    events: Vec<Event>,
    bytes: usize,
    since: Instant,
}

impl Version {
    fn key_value(&self, key: &Key) -> Option<KeyValue> {
        self.value.as_ref().map(|value| KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
        })
    }

    fn id(&self) -> RecordId {
        (self.mod_revision, self.index)
    }
}

impl Mvcc {
    /// An empty store whose history begins at `oldest`; [`Self::load`] and [`Self::apply`] fill it.
    pub(super) fn new(oldest: Revision) -> Self {
        Self {
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            oldest,
            revision: oldest.max(FIRST_REVISION + 1) - 1,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    pub(super) fn get(&self, key: &str) -> Option<KeyValue> {
        let (key, versions) = self.keys.get_key_value(key)?;
        versions.back()?.key_value(key)
    }

    pub(super) fn range(
        &self,
        range: &KeyRange,
        limit: usize,
        revision: Option<Revision>,
    ) -> Result<RangeResponse> {
        let at = revision.unwrap_or(self.revision);
        // The present is there even where history begins after it.
        if at != self.revision {
            self.check_retained(at)?;
        }
        if at > self.revision {
            return Err(StoreError::FutureRevision {
                requested: at,
                current: self.revision,
            });
        }
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut kvs = Vec::new();
        let mut count = 0;
        for (key, versions) in self.span(range) {
            let until = versions.partition_point(|version| version.mod_revision <= at);
            let live = until
                .checked_sub(1)
                .map(|last| &versions[last])
                .filter(|version| version.value.is_some());
            if let Some(version) = live {
                if count < limit {
                    kvs.extend(version.key_value(key));
                }
                count += 1;
            }
        }
        Ok(RangeResponse {
            more: count > kvs.len(),
            kvs,
            count,
            revision: at,
        })
    }

    fn span(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, &VecDeque<Version>)> {
        let empty = range.end.as_ref().is_some_and(|end| *end <= range.start);
        let end = range.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        // BTreeMap::range panics on a range that ends before it starts.
        let bounds = (!empty).then_some((Bound::Included(&range.start), end));
        bounds
            .into_iter()
            .flat_map(|bounds| self.keys.range::<Key, _>(bounds))
    }

    /// # Errors
    /// [`StoreError::Compacted`] when `revision` is older than what is retained.
    pub(super) fn check_retained(&self, revision: Revision) -> Result<()> {
        if revision.max(FIRST_REVISION) < self.oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest: self.oldest,
            });
        }
        Ok(())
    }

    /// The changes from `from` on, oldest first. `from` must be retained.
    pub(super) fn changes_from(
        &self,
        from: Revision,
    ) -> impl Iterator<Item = (Revision, &[Event])> {
        let first = self.first_retained();
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        (first..)
            .zip(&self.history)
            .skip(skip)
            .map(|(revision, change)| (revision, change.events.as_slice()))
    }

    /// The revision of the first entry of `history`, whether it is there already or comes next.
    fn first_retained(&self) -> Revision {
        self.oldest.max(FIRST_REVISION + 1)
    }

    /// Takes in a version from before the retained history.
    pub(super) fn load(&mut self, key: Key, version: Version) {
        self.versions(key).push_back(version);
    }

    /// The versions of a key, with room for one: most keys have no more, and a whole growth would be four.
    fn versions(&mut self, key: Key) -> &mut VecDeque<Version> {
        let one = || VecDeque::with_capacity(1);
        self.keys.entry(key).or_insert_with(one)
    }

    /// Takes in the next revision's changes.
    pub(super) fn apply(&mut self, change: Change, now: Instant) {
        debug_assert_eq!(change.revision, self.revision + 1, "revisions have no gap");
        self.revision = change.revision;
        let mut bytes = CHANGE_OVERHEAD;
        for (index, event) in (0..).zip(&change.events) {
            let value = event.kv.as_ref().map(|kv| kv.value.clone());
            bytes += CHANGE_OVERHEAD + event.key.len() + value.as_ref().map_or(0, Bytes::len);
            let version = Version {
                mod_revision: change.revision,
                index,
                create_revision: event.kv.as_ref().map_or(0, |kv| kv.create_revision),
                version: event.kv.as_ref().map_or(0, |kv| kv.version),
                value,
            };
            self.versions(event.key.clone()).push_back(version);
        }
        self.history_bytes += bytes;
        self.history.push_back(Retained {
            events: change.events,
            bytes,
            since: now,
        });
    }

    /// Up to where the policy wants history compacted, at most `step` revisions further than now.
    pub(super) fn compaction_due(
        &self,
        policy: &Retention,
        now: Instant,
        step: usize,
    ) -> Option<Revision> {
        let mut left = self.history.len();
        let mut bytes = self.history_bytes;
        let mut drop = 0;
        // The last revision always stays, so that the counter can be read back from the disk.
        for retained in self.history.iter().take(step) {
            let over = left > policy.max_revisions || bytes > policy.max_bytes;
            let old = left > policy.min_revisions
                && now.saturating_duration_since(retained.since) >= policy.window;
            if left <= 1 || !(over || old) {
                break;
            }
            left -= 1;
            bytes -= retained.bytes;
            drop += 1;
        }
        (drop > 0).then(|| self.first_retained() + drop)
    }

    /// When the oldest revision's time is over, if the policy lets it go then.
    pub(super) fn next_compaction(&self, policy: &Retention) -> Option<Instant> {
        let may_go = self.history.len() > policy.min_revisions.max(1);
        let oldest = self.history.front().filter(|_| may_go)?;
        Some(oldest.since + policy.window)
    }

    /// The records on disk that nobody needs once history begins at `oldest`.
    pub(super) fn obsolete(&self, oldest: Revision) -> Vec<RecordId> {
        let mut records = Vec::new();
        for (revision, events) in self.changes_from(self.first_retained()) {
            if revision >= oldest {
                break;
            }
            for event in events {
                let Some(versions) = self.keys.get(&event.key) else {
                    continue;
                };
                let own = versions.partition_point(|version| version.mod_revision < revision);
                // A tombstone is its own revision's to remove, a value its successor's.
                let previous = own.checked_sub(1).map(|previous| &versions[previous]);
                records.extend(
                    previous
                        .filter(|version| version.value.is_some())
                        .map(Version::id),
                );
                if event.kind == EventKind::Delete {
                    records.push(versions[own].id());
                }
            }
        }
        records
    }

    /// Lets history begin at `oldest`, which must not lie in the future.
    pub(super) fn forget(&mut self, oldest: Revision) {
        while self.first_retained() < oldest {
            let Some(change) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= change.bytes;
            self.oldest = self.first_retained() + 1;
            for event in change.events {
                self.forget_before(&event);
            }
        }
        self.oldest = self.oldest.max(oldest);
    }

    fn forget_before(&mut self, event: &Event) {
        let Some(versions) = self.keys.get_mut(&event.key) else {
            return;
        };
        while versions
            .front()
            .is_some_and(|version| version.mod_revision < event.revision)
        {
            versions.pop_front();
        }
        if event.kind == EventKind::Delete {
            versions.pop_front();
        }
        if versions.is_empty() {
            self.keys.remove(&event.key);
        }
    }
}
