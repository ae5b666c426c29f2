//! One suite for every implementation of [`Store`]: each case panics at the first broken guarantee.
//!
//! [`store_conformance!`](crate::store_conformance) makes a `#[tokio::test]` of each case.

mod compaction;
mod contention;
mod ranges;
mod restart;
mod values;
mod watches;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::{
    Compare, Event, EventKind, KeyRange, KeyValue, Op, Revision, Store, StoreError, Txn,
    WatchStream,
};

pub use compaction::*;
pub use contention::*;
pub use ranges::*;
pub use restart::*;
pub use values::*;
pub use watches::*;

/// Far longer than any watch needs; a case that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a watch is observed to prove that it stays silent.
const SILENCE: Duration = Duration::from_millis(100);

pub type AnyStore = Arc<dyn Store>;

/// Where a store has its data: a folder, a cluster. Ends with all that it holds when dropped.
pub trait Place: Sized + Send {
    /// A new, empty place.
    fn new() -> impl Future<Output = Self> + Send;

    /// Opens the store. It keeps all history unless a case compacts it.
    fn open(&mut self) -> impl Future<Output = AnyStore> + Send;

    /// Ends what keeps the data, which has no other user than `store`, and starts it again.
    fn restart(&mut self, store: AnyStore) -> impl Future<Output = AnyStore> + Send;
}

/// Runs the whole suite on a store implementation, given by the type of its [`Place`].
#[macro_export]
macro_rules! store_conformance {
    ($place:ty) => {
        $crate::store_conformance! { @cases $place:
            a_new_store_is_empty_and_stands_at_revision_one,
            versions_and_revisions_count_as_in_etcd,
            a_failed_comparison_changes_nothing_and_reads_the_other_keys,
            a_transaction_without_a_change_takes_no_revision,
            one_transaction_is_one_revision,
            a_key_twice_in_one_transaction_is_refused,
            an_empty_key_is_refused,
            what_is_too_large_is_refused_by_its_name,
            ranges_are_ordered_limited_and_counted,
            a_range_at_a_past_revision_shows_the_past,
            long_ranges_come_whole_and_in_pages,
            pages_of_one_revision_do_not_see_later_writes,
            a_watch_replays_the_past_and_follows_the_present,
            a_watch_says_when_the_past_is_replayed,
            a_watch_of_the_future_waits_for_it,
            a_watch_sees_only_its_prefix,
            a_watch_from_any_retained_revision_sees_the_same_rest,
            compaction_forgets_the_past_and_keeps_the_present,
            compaction_does_not_disturb_watches_that_keep_up,
            of_many_creators_one_wins,
            every_watcher_sees_the_same_order,
            no_update_under_contention_is_lost_or_done_twice,
            what_moves_between_two_keys_is_never_seen_in_neither,
        }
        $crate::store_conformance! { @restarts $place:
            a_restart_changes_nothing,
            a_restart_remembers_compaction,
        }
    };
    (@cases $place:ty: $($case:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            use $crate::conformance::Place;
            let mut place = <$place>::new().await;
            $crate::conformance::$case(place.open().await).await;
        }
    )*};
    (@restarts $place:ty: $($case:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            use $crate::conformance::Place;
            $crate::conformance::$case(<$place>::new().await).await;
        }
    )*};
}

/// Puts unconditionally and returns the revision.
async fn put(store: &AnyStore, key: &str, value: &str) -> Revision {
    let txn = Txn::new().then(Op::put(key, value.to_owned()));
    store.txn(txn).await.expect("a put succeeds").revision
}

async fn delete(store: &AnyStore, key: &str) -> Revision {
    let txn = Txn::new().then(Op::delete(key));
    store.txn(txn).await.expect("a delete succeeds").revision
}

async fn get(store: &AnyStore, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("a get succeeds").kv
}

async fn revision(store: &AnyStore) -> Revision {
    store.revision().await.expect("the revision can be read")
}

async fn watch(store: &AnyStore, prefix: &str, from: Revision) -> WatchStream {
    store
        .watch(prefix, from)
        .await
        .expect("the revision is retained")
}

/// The next `count` events, checking that batches never split a revision or go back.
async fn next_events(stream: &mut WatchStream, count: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.len() < count {
        let batch = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("the watch delivers in time")
            .expect("the watch goes on")
            .expect("the watch delivers");
        if let (Some(last), Some(first)) = (events.last(), batch.events.first()) {
            assert!(last.revision < first.revision, "a batch split a revision");
        }
        assert!(
            batch
                .events
                .iter()
                .all(|event| event.revision <= batch.revision)
        );
        events.extend(batch.events);
    }
    assert!(events.is_sorted_by_key(|event| event.revision));
    assert_eq!(events.len(), count, "more events than changes");
    events
}

async fn assert_silent(stream: &mut WatchStream) {
    let next = tokio::time::timeout(SILENCE, async {
        loop {
            match stream.next().await {
                Some(Ok(batch)) if batch.events.is_empty() => {}
                other => return other,
            }
        }
    })
    .await;
    assert!(next.is_err(), "expected silence, got {next:?}");
}

fn text(kv: Option<&KeyValue>) -> Option<&str> {
    kv.map(|kv| std::str::from_utf8(&kv.value).expect("the suite writes text"))
}

/// Changes of all kinds, several in one transaction now and then; answers the last revision.
async fn write_history(store: &AnyStore, rounds: usize) -> Revision {
    let mut last = 1;
    for round in 0..rounds {
        let key = |n: usize| format!("{}/{}", ["a", "b"][n % 2], n % 7);
        let txn = match round % 5 {
            3 => Txn::new()
                .then(Op::put(key(round), format!("{round}")))
                .then(Op::delete(key(round + 1)))
                .then(Op::put(key(round + 2), format!("{round}"))),
            4 => Txn::new().then(Op::delete(key(round * 3))),
            _ => Txn::new().then(Op::put(key(round), format!("{round}"))),
        };
        last = store.txn(txn).await.expect("a write succeeds").revision;
    }
    last
}

/// Everything that happened from `from` until now.
async fn history(store: &AnyStore, from: Revision) -> Vec<Event> {
    let now = revision(store).await;
    let mut stream = watch(store, "", from).await;
    let mut events = Vec::new();
    let mut seen = from - 1;
    while seen < now {
        let batch = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("the past is replayed in time")
            .expect("the watch goes on")
            .expect("the watch delivers");
        seen = batch.revision;
        events.extend(batch.events);
    }
    events
}

async fn everything(store: &AnyStore, at: Option<Revision>) -> Vec<KeyValue> {
    let all = store.range(KeyRange::prefix(""), 0, at).await;
    all.expect("everything can be read").kvs
}
