//! A three-member etcd cluster that loses members while it is written to: no acknowledged write is lost, none is done
//! twice, and a watch sees every change once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control_plane_store::etcd::testing::LocalEtcd;
use control_plane_store::etcd::{EtcdStore, Options};
use control_plane_store::{Event, EventKind, KeyRange, Op, Revision, Store, StoreError, Txn};
use futures::StreamExt;
use tokio::task::JoinSet;

const WRITERS: usize = 4;
/// Writes are acknowledged again at most so long after a member is lost.
const BACK_WITHIN: Duration = Duration::from_secs(40);
/// So many acknowledged writes show that the cluster works.
const ENOUGH: u64 = 60;

/// What the writers were told of each write.
#[derive(Default)]
struct Told {
    /// By key: the revision of its creation.
    acknowledged: BTreeMap<String, Revision>,
    /// Maybe written, maybe not.
    unknown: Vec<String>,
    /// Surely not written.
    not_done: Vec<String>,
    /// Increments of the counter that were acknowledged, and those that may have been done.
    added: (u64, u64),
}

/// Writers and a watcher on a cluster, for as long as it lives.
struct Load {
    writers: JoinSet<Told>,
    watcher: tokio::task::JoinHandle<Vec<Event>>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// The last revision, once the writers have ended; 0 before.
    last: tokio::sync::watch::Sender<Revision>,
}

/// A store that begins with the member `first` and goes on with the others.
async fn store(etcd: &LocalEtcd, first: usize) -> Arc<dyn Store> {
    let mut servers = etcd.urls();
    servers.rotate_left(first);
    let options = Options {
        servers,
        patience: Duration::from_secs(3),
        ..etcd.options()
    };
    Arc::new(EtcdStore::connect(options).await.unwrap())
}

impl Load {
    /// Everything begins at the member `victim`.
    async fn start(etcd: &LocalEtcd, victim: usize) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (last, ended) = tokio::sync::watch::channel(0);
        let counter = Txn::create("counter", "0");
        let first = store(etcd, victim).await;
        assert!(first.txn(counter).await.unwrap().succeeded);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            // As two API servers would.
            let store = if writer % 2 == 0 {
                first.clone()
            } else {
                store(etcd, victim).await
            };
            writers.spawn(write(store, writer, acknowledged.clone(), stop.clone()));
        }
        let stream = first.watch("", 2).await.unwrap();
        let watcher = tokio::spawn(follow(stream, ended));
        let load = Self {
            writers,
            watcher,
            acknowledged,
            stop,
            last,
        };
        load.goes_on().await;
        load
    }

    /// Waits until writes are acknowledged; answers how long that took.
    async fn goes_on(&self) -> Duration {
        let (begun, before) = (Instant::now(), self.acknowledged.load(Ordering::SeqCst));
        while self.acknowledged.load(Ordering::SeqCst) < before + ENOUGH {
            assert!(begun.elapsed() < BACK_WITHIN, "no writes are acknowledged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }

    /// Ends the writers and compares what they were told with what is there.
    async fn verify(mut self, etcd: &LocalEtcd) {
        self.stop.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        while let Some(writer) = self.writers.join_next().await {
            told.push(writer.unwrap());
        }
        let store = store(etcd, 0).await;
        let all = store.range(KeyRange::prefix(""), 0, None).await.unwrap();
        self.last.send_replace(all.revision);
        let followed = tokio::time::timeout(BACK_WITHIN, self.watcher).await;
        let followed = followed.expect("the watch catches up").unwrap();

        let there: BTreeMap<&str, Revision> = all
            .kvs
            .iter()
            .map(|kv| (&*kv.key, kv.create_revision))
            .collect();
        let (mut acknowledged, mut unknown, mut done) = (0, 0, 0);
        for told in &told {
            for (key, revision) in &told.acknowledged {
                assert_eq!(there.get(key.as_str()), Some(revision), "lost: {key}");
            }
            for key in &told.not_done {
                assert!(!there.contains_key(key.as_str()), "not refused: {key}");
            }
            acknowledged += told.acknowledged.len();
            unknown += told.unknown.len();
            done += told
                .unknown
                .iter()
                .filter(|key| there.contains_key(key.as_str()))
                .count();
        }
        assert_eq!(
            there.len(),
            1 + acknowledged + done,
            "keys that nobody wrote"
        );
        let counter = all.kvs.iter().find(|kv| &*kv.key == "counter").unwrap();
        let value: u64 = std::str::from_utf8(&counter.value)
            .unwrap()
            .parse()
            .unwrap();
        let (sure, maybe) = told.iter().fold((0, 0), |sum, told| {
            (sum.0 + told.added.0, sum.1 + told.added.1)
        });
        assert!(
            (sure..=sure + maybe).contains(&value),
            "{sure} to {} increments, but the counter stands at {value}",
            sure + maybe
        );
        assert_eq!(
            counter.version,
            value + 1,
            "each write of the counter adds one"
        );
        check_stream(&followed, &store).await;
        println!(
            "{acknowledged} creations and {sure} increments acknowledged; of {unknown} unknown creations {done} are there, \
             of {maybe} unknown increments {}; {} events",
            value - sure,
            followed.len()
        );
    }
}

/// What was followed through all failures is the history as it is now, and has every revision once.
async fn check_stream(followed: &[Event], store: &Arc<dyn Store>) {
    let last = followed.last().unwrap().revision;
    let mut stream = store.watch("", 2).await.unwrap();
    let mut replayed = Vec::new();
    let mut seen = 0;
    while seen < last {
        let batch = stream.next().await.unwrap().unwrap();
        seen = batch.revision;
        replayed.extend(batch.events);
    }
    assert!(
        followed == replayed,
        "the watch missed or invented a change"
    );
    let revisions: Vec<Revision> = followed.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>());
    assert!(followed.iter().all(|event| event.kind == EventKind::Put));
}

/// Creates keys of its own and adds to the shared counter, until stopped.
async fn write(
    store: Arc<dyn Store>,
    writer: usize,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Told {
    let mut told = Told::default();
    for write in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("log/{writer}/{write}");
        match store.txn(Txn::create(key.as_str(), "x")).await {
            Ok(done) => {
                assert!(done.succeeded, "{key} was there: written twice");
                told.acknowledged.insert(key, done.revision);
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(StoreError::Unanswered { .. }) => told.unknown.push(key),
            Err(StoreError::Unreachable { .. }) => told.not_done.push(key),
            Err(other) => panic!("{other:?}"),
        }
        if write % 3 == 0 {
            let (sure, maybe) = add_one(&store).await;
            told.added = (told.added.0 + sure, told.added.1 + maybe);
        }
    }
    told
}

/// Adds one to the counter, with optimistic locking: answers how many additions were surely done, and how many maybe.
async fn add_one(store: &Arc<dyn Store>) -> (u64, u64) {
    let Ok(read) = store.get("counter").await else {
        return (0, 0);
    };
    let kv = read.kv.unwrap();
    let value: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
    let txn = Txn::update("counter", kv.mod_revision, (value + 1).to_string());
    match store.txn(txn).await {
        Ok(done) => (u64::from(done.succeeded), 0),
        Err(StoreError::Unanswered { .. }) => (0, 1),
        Err(StoreError::Unreachable { .. }) => (0, 0),
        Err(other) => panic!("{other:?}"),
    }
}

/// Everything that a watch says until the last revision.
async fn follow(
    mut stream: control_plane_store::WatchStream,
    mut ended: tokio::sync::watch::Receiver<Revision>,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut seen = 0;
    loop {
        let last = *ended.borrow_and_update();
        if last > 0 && seen >= last {
            return events;
        }
        tokio::select! {
            batch = stream.next() => {
                let batch = batch.expect("the watch goes on").unwrap();
                seen = batch.revision;
                events.extend(batch.events);
            }
            changed = ended.changed() => changed.unwrap(),
        }
    }
}

/// Which member the victim is.
enum Victim {
    Leader,
    Follower,
}

impl Victim {
    async fn find(&self, etcd: &LocalEtcd) -> usize {
        let leader = etcd.leader().await;
        match self {
            Self::Leader => leader,
            Self::Follower => (leader + 1) % 3,
        }
    }
}

async fn survive_kill(which: Victim) {
    let mut etcd = LocalEtcd::start(3).await;
    let victim = which.find(&etcd).await;
    let load = Load::start(&etcd, victim).await;
    etcd.kill(victim);
    println!("killed: writes go on after {:?}", load.goes_on().await);
    etcd.revive(victim);
    etcd.wait_for(victim).await;
    load.goes_on().await;
    // Once more, with the clients at another member and the first one back.
    let victim = which.find(&etcd).await;
    etcd.kill(victim);
    println!("killed: writes go on after {:?}", load.goes_on().await);
    etcd.revive(victim);
    load.goes_on().await;
    load.verify(&etcd).await;
}

async fn survive_partition(which: Victim) {
    let etcd = LocalEtcd::start(3).await;
    let victim = which.find(&etcd).await;
    let load = Load::start(&etcd, victim).await;
    // Its connections stay open and nothing answers: what a network that drops everything looks like.
    etcd.freeze(victim);
    println!("cut off: writes go on after {:?}", load.goes_on().await);
    let newest = store(&etcd, (victim + 1) % 3).await;
    let newest = newest.revision().await.unwrap();
    etcd.thaw(victim);
    // It comes back with the past in its memory, and must not show it.
    let back = EtcdStore::connect(etcd.options_of(victim)).await.unwrap();
    assert!(back.revision().await.unwrap() >= newest, "a stale read");
    load.goes_on().await;
    load.verify(&etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_takes_no_acknowledged_write_with_it() {
    survive_kill(Victim::Follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_takes_no_acknowledged_write_with_it() {
    survive_kill(Victim::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_holds_nobody_up() {
    survive_partition(Victim::Follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_nothing_old() {
    survive_partition(Victim::Leader).await;
}

/// Without a majority nothing is acknowledged, each request ends with an error, and all goes on when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_requests_end_with_an_error() {
    let etcd = LocalEtcd::start(3).await;
    let store = store(&etcd, 0).await;
    let put = |value: &'static str| Txn::new().then(Op::put("key", value));
    let before = store.txn(put("before")).await.unwrap().revision;
    let mut stream = store.watch("", before + 1).await.unwrap();
    etcd.freeze(1);
    etcd.freeze(2);
    let begun = Instant::now();
    let write = store.txn(put("during")).await;
    assert!(
        matches!(
            write,
            Err(StoreError::Unanswered { .. } | StoreError::Unreachable { .. })
        ),
        "{write:?}"
    );
    let read = store.get("key").await;
    assert!(
        matches!(read, Err(StoreError::Unreachable { .. })),
        "{read:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(45),
        "{:?}",
        begun.elapsed()
    );
    etcd.thaw(1);
    etcd.thaw(2);
    etcd.wait_for(0).await;
    let deadline = Instant::now() + BACK_WITHIN;
    let after = loop {
        match store.txn(put("after")).await {
            Ok(done) => break done.revision,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
    };
    let mut seen = before;
    while seen < after {
        let batch = tokio::time::timeout(BACK_WITHIN, stream.next()).await;
        let batch = batch.unwrap().unwrap().unwrap();
        assert_eq!(batch.events[0].revision, seen + 1, "a change is missing");
        seen = batch.revision;
    }
}
