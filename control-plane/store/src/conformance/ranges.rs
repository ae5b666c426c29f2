//! Ranges: order, limits, the past.

use super::*;

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

pub async fn long_ranges_come_whole_and_in_pages(store: AnyStore) {
    const KEYS: usize = 2_600;
    // So much that an answer of etcd has not all of them.
    let value = "v".repeat(12_000);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("p/{n:05}")).collect();
    for part in keys.chunks(100) {
        let txn = part.iter().fold(Txn::new(), |txn, key| {
            txn.then(Op::put(key.as_str(), value.clone()))
        });
        store.txn(txn).await.expect("a write succeeds");
    }
    let then = put(&store, "q", "not of the range").await;
    for (limit, expected) in [(0, KEYS), (1_000, 1_000), (1_700, 1_700), (KEYS, KEYS)] {
        let answer = store.range(KeyRange::prefix("p/"), limit, None).await;
        let answer = answer.expect("the range can be read");
        let seen: Vec<&str> = answer.kvs.iter().map(|kv| &*kv.key).collect();
        assert_eq!(seen, keys[..expected], "limit {limit}");
        assert_eq!((answer.count, answer.more), (KEYS, expected < KEYS));
    }
    // In parts: as it was, whatever is written meanwhile.
    let mut parts = store.parts(KeyRange::prefix("p/"), then);
    let mut seen = Vec::new();
    while let Some(part) = parts.next().await {
        put(&store, "p/99999", "later").await;
        seen.extend(part.expect("the past is retained"));
    }
    let seen: Vec<&str> = seen.iter().map(|kv| &*kv.key).collect();
    assert_eq!(seen, keys);
}

pub async fn pages_of_one_revision_do_not_see_later_writes(store: AnyStore) {
    for n in 0..30 {
        put(&store, &format!("p/{n:02}"), "old").await;
    }
    let mut range = KeyRange::prefix("p/");
    let mut at = None;
    let mut seen = Vec::new();
    loop {
        let page = store.range(range.clone(), 7, at).await.expect("a page");
        at = Some(page.revision);
        let last = page.kvs.last().expect("a page is not empty").key.clone();
        seen.extend(page.kvs);
        if !page.more {
            break;
        }
        put(&store, &format!("{last}x"), "new").await;
        put(&store, "p/29", "new").await;
        delete(&store, "p/28").await;
        range = range.after(&last);
    }
    assert_eq!(seen.len(), 30);
    assert!(seen.iter().all(|kv| text(Some(kv)) == Some("old")));
}
