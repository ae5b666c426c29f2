//! Watches: the past, the present and the future.

use super::*;

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

pub async fn a_watch_from_any_retained_revision_sees_the_same_rest(store: AnyStore) {
    let last = write_history(&store, 60).await;
    let whole = history(&store, 1).await;
    let mut present = BTreeMap::new();
    for event in &whole {
        let before = present.get(&event.key).cloned();
        assert_eq!(event.prev_kv, before, "what was before {event:?}");
        match &event.kv {
            Some(kv) => present.insert(event.key.clone(), kv.clone()),
            None => present.remove(&event.key),
        };
    }
    let present: Vec<KeyValue> = present.into_values().collect();
    assert_eq!(present, everything(&store, None).await);

    let oldest = last / 2;
    store.compact(oldest).await.expect("it has happened");
    for from in oldest..=last {
        let rest: Vec<Event> = whole
            .iter()
            .filter(|event| event.revision >= from)
            .cloned()
            .collect();
        assert_eq!(history(&store, from).await, rest, "from revision {from}");
    }
    for from in [0, 1, oldest - 1] {
        let refused = store.watch("", from).await.err();
        assert!(
            matches!(refused, Some(StoreError::Compacted { .. })),
            "from revision {from}: {refused:?}"
        );
    }
}
