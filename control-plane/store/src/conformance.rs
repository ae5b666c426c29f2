//! One suite for every implementation of [`Store`]: each case panics at the first broken guarantee.
//!
//! [`store_conformance!`](crate::store_conformance) makes a `#[tokio::test]` of each case.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::{
    Compare, Event, EventKind, KeyRange, KeyValue, Op, Revision, Store, StoreError, Txn,
    WatchStream,
};

/// Far longer than any watch needs; a case that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a watch is observed to prove that it stays silent.
const SILENCE: Duration = Duration::from_millis(100);

/// Runs the whole suite on a store implementation. The argument is a function that makes a new,
/// empty store for each case and returns it with whatever must outlive it: `async fn() -> (Arc<dyn Store>, T)`.
#[macro_export]
macro_rules! store_conformance {
    ($make:path) => {
        $crate::store_conformance! { @cases $make:
            a_new_store_is_empty_and_stands_at_revision_one,
            versions_and_revisions_count_as_in_etcd,
            a_failed_comparison_changes_nothing_and_reads_the_other_keys,
            a_transaction_without_a_change_takes_no_revision,
            one_transaction_is_one_revision,
            a_key_twice_in_one_transaction_is_refused,
            ranges_are_ordered_limited_and_counted,
            a_range_at_a_past_revision_shows_the_past,
            a_watch_replays_the_past_and_follows_the_present,
            a_watch_says_when_the_past_is_replayed,
            a_watch_of_the_future_waits_for_it,
            a_watch_sees_only_its_prefix,
            compaction_forgets_the_past_and_keeps_the_present,
            compaction_does_not_disturb_watches_that_keep_up,
            of_many_creators_one_wins,
            every_watcher_sees_the_same_order,
        }
    };
    (@cases $make:path: $($case:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let (store, _keep) = $make().await;
            $crate::conformance::$case(store).await;
        }
    )*};
}

type AnyStore = Arc<dyn Store>;

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

pub async fn a_new_store_is_empty_and_stands_at_revision_one(store: AnyStore) {
    let all = store
        .range(KeyRange::prefix(""), 0, None)
        .await
        .expect("an empty range can be read");
    assert!(all.kvs.is_empty() && all.count == 0 && !all.more);
    assert_eq!((all.revision, revision(&store).await), (1, 1));
    assert_eq!(get(&store, "absent").await, None);
    assert_eq!(put(&store, "first", "1").await, 2);
}

pub async fn versions_and_revisions_count_as_in_etcd(store: AnyStore) {
    let created = put(&store, "key", "a").await;
    let updated = put(&store, "key", "a").await;
    assert_eq!(updated, created + 1, "the same value again is a change too");
    let kv = get(&store, "key").await.expect("the key exists");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (created, updated, 2)
    );

    let deleted = delete(&store, "key").await;
    assert_eq!(deleted, updated + 1);
    assert_eq!(get(&store, "key").await, None);

    let again = put(&store, "key", "b").await;
    let kv = get(&store, "key").await.expect("the key exists again");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (again, again, 1)
    );
}

pub async fn a_failed_comparison_changes_nothing_and_reads_the_other_keys(store: AnyStore) {
    let at = put(&store, "taken", "1").await;
    let txn = Txn::new()
        .when(Compare::unchanged("taken", at))
        .when(Compare::absent("taken"))
        .then(Op::put("taken", "2"))
        .then(Op::put("other", "2"))
        .else_get("taken")
        .else_get("absent");
    let response = store.txn(txn).await.expect("a comparison may fail");
    assert!(!response.succeeded && response.results.is_empty());
    assert_eq!(response.revision, at);
    assert_eq!(text(response.else_kvs[0].as_ref()), Some("1"));
    assert_eq!(response.else_kvs[1], None);
    assert_eq!(get(&store, "other").await, None);

    let done = store
        .txn(Txn::update("taken", at, "2"))
        .await
        .expect("the comparison holds");
    assert!(done.succeeded && done.else_kvs.is_empty());
    assert_eq!(text(done.results[0].previous.as_ref()), Some("1"));
    assert_eq!(text(done.results[0].current.as_ref()), Some("2"));
    let stale = store
        .txn(Txn::delete("taken", at))
        .await
        .expect("a comparison may fail");
    assert!(!stale.succeeded);
    assert_eq!(text(stale.else_kvs[0].as_ref()), Some("2"));
}

pub async fn a_transaction_without_a_change_takes_no_revision(store: AnyStore) {
    let at = put(&store, "key", "1").await;
    let mut events = watch(&store, "", at + 1).await;
    assert_eq!(delete(&store, "absent").await, at);
    let nothing = store.txn(Txn::new()).await.expect("an empty transaction");
    assert!(nothing.succeeded);
    assert_eq!((nothing.revision, revision(&store).await), (at, at));
    assert_silent(&mut events).await;
}

pub async fn one_transaction_is_one_revision(store: AnyStore) {
    let at = put(&store, "b", "old").await;
    let txn = Txn::new()
        .then(Op::put("a", "1"))
        .then(Op::delete("b"))
        .then(Op::put("c", "3"));
    let done = store.txn(txn).await.expect("the transaction succeeds");
    assert_eq!(done.revision, at + 1);
    assert_eq!(done.results.len(), 3);
    assert_eq!(text(done.results[1].previous.as_ref()), Some("old"));
    assert_eq!(done.results[1].current, None);

    let events = next_events(&mut watch(&store, "", at + 1).await, 3).await;
    assert!(events.iter().all(|event| event.revision == at + 1));
    let past = store
        .range(KeyRange::prefix(""), 0, Some(at))
        .await
        .expect("the past is retained");
    assert_eq!(past.count, 1, "no part of the transaction shows before it");
}

pub async fn a_key_twice_in_one_transaction_is_refused(store: AnyStore) {
    let txn = Txn::new().then(Op::put("k", "1")).then(Op::delete("k"));
    let refused = store.txn(txn).await;
    assert!(
        matches!(&refused, Err(StoreError::DuplicateKey { key }) if &**key == "k"),
        "{refused:?}"
    );
    assert_eq!(revision(&store).await, 1);
}

pub async fn ranges_are_ordered_limited_and_counted(store: AnyStore) {
    for key in ["p/c", "p/a", "q/a", "p/b", "o/z", "p"] {
        put(&store, key, key).await;
    }
    let page = store
        .range(KeyRange::prefix("p/"), 2, None)
        .await
        .expect("the range can be read");
    let keys: Vec<&str> = page.kvs.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["p/a", "p/b"]);
    assert!(page.more);
    assert_eq!((page.count, page.revision), (3, revision(&store).await));

    let rest = KeyRange::prefix("p/").after("p/b");
    let rest = store.range(rest, 2, None).await.expect("the next page");
    assert_eq!(rest.kvs.len(), 1);
    assert_eq!(
        (&*rest.kvs[0].key, rest.more, rest.count),
        ("p/c", false, 1)
    );

    let backwards = store.range(KeyRange::new("q", "p"), 0, None).await;
    assert_eq!(backwards.expect("an empty range").count, 0);
}

pub async fn a_range_at_a_past_revision_shows_the_past(store: AnyStore) {
    let one = put(&store, "a", "1").await;
    let two = put(&store, "b", "1").await;
    let three = put(&store, "a", "2").await;
    let four = delete(&store, "b").await;
    for (at, expected) in [
        (one, vec![("a", "1")]),
        (two, vec![("a", "1"), ("b", "1")]),
        (three, vec![("a", "2"), ("b", "1")]),
        (four, vec![("a", "2")]),
    ] {
        let past = store
            .range(KeyRange::prefix(""), 0, Some(at))
            .await
            .expect("the past is retained");
        let seen: Vec<_> = past
            .kvs
            .iter()
            .map(|kv| (&*kv.key, text(Some(kv)).unwrap_or_default()))
            .collect();
        assert_eq!((seen, past.revision), (expected, at));
    }
    let future = store.range(KeyRange::prefix(""), 0, Some(four + 1)).await;
    assert!(
        matches!(future, Err(StoreError::FutureRevision { requested, current })
            if requested == four + 1 && current == four),
        "{future:?}"
    );
}

pub async fn a_watch_replays_the_past_and_follows_the_present(store: AnyStore) {
    put(&store, "k", "1").await;
    let from = put(&store, "k", "2").await;
    let mut stream = watch(&store, "k", from).await;
    delete(&store, "k").await;
    put(&store, "k", "3").await;

    let events = next_events(&mut stream, 3).await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.kind,
                text(event.prev_kv.as_ref()),
                text(event.kv.as_ref()),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (EventKind::Put, Some("1"), Some("2")),
            (EventKind::Delete, Some("2"), None),
            (EventKind::Put, None, Some("3")),
        ]
    );
    let revisions: Vec<_> = events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, [from, from + 1, from + 2]);
    let last = put(&store, "k", "4").await;
    assert_eq!(next_events(&mut stream, 1).await[0].revision, last);
}

pub async fn a_watch_says_when_the_past_is_replayed(store: AnyStore) {
    let replay = async |prefix: &str, from: Revision| {
        let now = revision(&store).await;
        let mut stream = watch(&store, prefix, from).await;
        let mut events = 0;
        loop {
            let batch = tokio::time::timeout(PATIENCE, stream.next()).await;
            let batch = batch.expect("the end of the past is reported in time");
            let batch = batch.expect("the watch goes on").expect("it delivers");
            events += batch.events.len();
            if batch.revision >= now {
                return events;
            }
        }
    };
    assert_eq!(replay("", 1).await, 0, "a new store has no past");
    put(&store, "a/1", "1").await;
    put(&store, "b/1", "1").await;
    assert_eq!(replay("", 1).await, 2);
    assert_eq!(replay("a/", 1).await, 1);
    assert_eq!(replay("c/", 2).await, 0);
}

pub async fn a_watch_of_the_future_waits_for_it(store: AnyStore) {
    let at = put(&store, "k", "1").await;
    let mut stream = watch(&store, "", at + 3).await;
    put(&store, "k", "2").await;
    put(&store, "k", "3").await;
    assert_silent(&mut stream).await;
    put(&store, "k", "4").await;
    let events = next_events(&mut stream, 1).await;
    assert_eq!(text(events[0].kv.as_ref()), Some("4"));
}

pub async fn a_watch_sees_only_its_prefix(store: AnyStore) {
    let mut stream = watch(&store, "/pods/", 1).await;
    for key in ["/pod", "/pods", "/pods/a", "/pods0", "/pods/b"] {
        put(&store, key, "x").await;
    }
    let events = next_events(&mut stream, 2).await;
    assert_eq!((&*events[0].key, &*events[1].key), ("/pods/a", "/pods/b"));
    assert_silent(&mut stream).await;
}

pub async fn compaction_forgets_the_past_and_keeps_the_present(store: AnyStore) {
    let first = put(&store, "kept", "1").await;
    put(&store, "changed", "old").await;
    put(&store, "gone", "1").await;
    delete(&store, "gone").await;
    let at = put(&store, "changed", "new").await;
    let last = put(&store, "later", "1").await;

    store.compact(at).await.expect("the revision has happened");
    store
        .compact(at)
        .await
        .expect("compacting again is no error");
    store.compact(first).await.expect("nor is compacting less");
    assert_eq!(store.oldest_revision().await.expect("it can be read"), at);
    for refused in [
        store
            .range(KeyRange::prefix(""), 0, Some(at - 1))
            .await
            .err(),
        store.watch("", at - 1).await.err(),
    ] {
        assert!(
            matches!(refused, Some(StoreError::Compacted { requested, oldest })
                if requested == at - 1 && oldest == at),
            "{refused:?}"
        );
    }
    let past = store
        .range(KeyRange::prefix(""), 0, Some(at))
        .await
        .expect("the compacted revision itself can be read");
    let keys: Vec<_> = past.kvs.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["changed", "kept"]);
    let kept = get(&store, "kept").await.expect("old keys stay");
    assert_eq!((kept.mod_revision, kept.version), (first, 1));
    let events = next_events(&mut watch(&store, "", at).await, 2).await;
    assert_eq!((events[0].revision, events[1].revision), (at, last));

    let future = store.compact(last + 1).await;
    assert!(
        matches!(future, Err(StoreError::FutureRevision { .. })),
        "{future:?}"
    );
}

pub async fn compaction_does_not_disturb_watches_that_keep_up(store: AnyStore) {
    let mut stream = watch(&store, "k", 1).await;
    for round in 0..5 {
        let at = put(&store, "k", &round.to_string()).await;
        assert_eq!(next_events(&mut stream, 1).await[0].revision, at);
        store.compact(at).await.expect("the revision has happened");
    }
}

pub async fn of_many_creators_one_wins(store: AnyStore) {
    let creators = (0..32).map(|creator: u32| {
        let store = store.clone();
        tokio::spawn(async move {
            let value = creator.to_string();
            let response = store.txn(Txn::create("prize", value.clone())).await;
            let response = response.expect("a comparison may fail");
            if !response.succeeded {
                let winner = response.else_kvs[0].clone();
                assert_ne!(text(winner.as_ref()), Some(&*value));
            }
            response.succeeded
        })
    });
    let mut won = 0;
    for creator in futures::future::join_all(creators).await {
        won += u32::from(creator.expect("no creator panics"));
    }
    assert_eq!((won, revision(&store).await), (1, 2));
}

pub async fn every_watcher_sees_the_same_order(store: AnyStore) {
    const WRITERS: usize = 8;
    const WRITES: usize = 25;
    let mut early = watch(&store, "", 1).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for write in 0..WRITES {
                let at = put(&store, &format!("{writer}"), &write.to_string()).await;
                let seen = get(&store, &format!("{writer}")).await;
                assert_eq!(
                    text(seen.as_ref()),
                    Some(&*write.to_string()),
                    "own write unseen"
                );
                revisions.push(at);
            }
            assert!(revisions.is_sorted());
            revisions
        })
    });
    let mut acknowledged = HashSet::new();
    for writer in futures::future::join_all(writers).await {
        acknowledged.extend(writer.expect("no writer panics"));
    }
    let followed = next_events(&mut early, WRITERS * WRITES).await;
    let replayed = next_events(&mut watch(&store, "", 2).await, WRITERS * WRITES).await;
    assert_eq!(followed, replayed);
    let seen: Vec<Revision> = followed.iter().map(|event| event.revision).collect();
    let expected: Vec<Revision> = (2..).take(WRITERS * WRITES).collect();
    assert_eq!(seen, expected, "revisions have no gap");
    assert!(seen.iter().all(|at| acknowledged.contains(at)));
}
