//! `kill -9` at random points of 1,000 writes, 50 times over one file: nothing acknowledged is lost.
//!
//! This test starts itself again as the child that writes (so it has its own `main`). The child reports each
//! acknowledgement over a pipe right after it got it; what is in the pipe outlives the child.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane_store::embedded::{EmbeddedStore, Options, Retention};
use control_plane_store::{Event, KeyRange, Op, Revision, Store, Txn};
use futures::StreamExt;

const KILLS: u64 = 50;
const WRITES: u64 = 1_000;
/// The rest may be deletes of absent keys, which are no writes.
const ALWAYS_ACKNOWLEDGED: u64 = WRITES - WRITES.div_ceil(11);
const WRITERS: u64 = 8;
const KEYS: u64 = 97;
const CHILD: &str = "FAIRLEAD_STORE_CRASH_CHILD";

/// What the child says of one write, one line each.
#[derive(Debug, PartialEq, Eq)]
struct Acknowledged {
    revision: Revision,
    key: String,
    /// Empty: the key was deleted.
    value: String,
}

/// Compaction runs all the time, yet a watcher that left before the last run can come back.
fn options() -> Options {
    let retention = Retention {
        window: Duration::ZERO,
        min_revisions: 1_500,
        ..Retention::default()
    };
    Options {
        retention,
        ..Options::default()
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    match std::env::var(CHILD) {
        Ok(argument) => {
            let (round, path) = argument.split_once(':').unwrap();
            runtime.block_on(write_until_killed(round.parse().unwrap(), Path::new(path)));
        }
        Err(_) => runtime.block_on(kill_and_verify()),
    }
}

async fn write_until_killed(round: u64, path: &Path) {
    let store = Arc::new(EmbeddedStore::open(path, options()).unwrap());
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for write in (writer..WRITES).step_by(usize::try_from(WRITERS).unwrap()) {
                // Every writer has its own keys, so that a line's order is its key's order.
                let key = format!("key/{writer}/{}", write * 31 % KEYS);
                let value = if write % 11 == 3 {
                    String::new()
                } else {
                    format!(
                        "{round}-{write}-{}",
                        "x".repeat((write * 37 % 1_500) as usize)
                    )
                };
                let op = if value.is_empty() {
                    Op::delete(key.clone())
                } else {
                    Op::put(key.clone(), value.clone())
                };
                let done = store.txn(Txn::new().then(op)).await.unwrap();
                if done.results[0].previous.is_some() || done.results[0].current.is_some() {
                    let line = format!("{} {key} {value}\n", done.revision);
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    // A kill may also hit an idle store. The parent never needs this long.
    tokio::time::sleep(Duration::from_secs(30)).await;
}

async fn kill_and_verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let begun = Instant::now();
    let mut dice = begun.elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 20 | 1;
    println!("crash test: seed {dice}");
    let mut roll = |sides: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % sides
    };
    let mut verified = Verified::default();
    let (mut acknowledged, mut mid_flight) = (0, 0);
    for round in 0..KILLS {
        let (after, delay) = (
            roll(ALWAYS_ACKNOWLEDGED),
            Duration::from_micros(roll(3_000)),
        );
        let acks = run_and_kill(round, &path, after, delay);
        acknowledged += acks.len();
        mid_flight += usize::from(acks.len() < ALWAYS_ACKNOWLEDGED as usize);
        verified.check(&path, acks, round).await;
    }
    assert!(
        mid_flight * 2 > KILLS as usize,
        "only {mid_flight} kills hit a running writer"
    );
    println!(
        "crash test: ok; {KILLS} kills ({mid_flight} before the end), {acknowledged} acknowledged writes, \
         revision {}, {:.1?}",
        verified.next - 1,
        begun.elapsed()
    );
}

/// Starts the child, kills it `delay` after it has acknowledged `after` writes, and returns all it acknowledged.
fn run_and_kill(round: u64, path: &Path, after: u64, delay: Duration) -> Vec<Acknowledged> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{round}:{}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut acks = Vec::new();
    let mut line = String::new();
    let mut killed = false;
    loop {
        if acks.len() as u64 >= after && !killed {
            std::thread::sleep(delay);
            // This is SIGKILL.
            child.kill().unwrap();
            killed = true;
        }
        line.clear();
        if lines.read_line(&mut line).unwrap() == 0 {
            break;
        }
        // The kill can cut the last line; a cut line is no acknowledgement.
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        let mut words = whole.splitn(3, ' ');
        acks.push(Acknowledged {
            revision: words.next().unwrap().parse().unwrap(),
            key: words.next().unwrap().to_owned(),
            value: words.next().unwrap().to_owned(),
        });
    }
    let status = child.wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(9),
        "the child ended by itself: {status}"
    );
    acks
}

/// What a watcher that comes back after every kill knows.
struct Verified {
    next: Revision,
    state: BTreeMap<String, String>,
}

impl Default for Verified {
    fn default() -> Self {
        Self {
            next: 2,
            state: BTreeMap::new(),
        }
    }
}

impl Verified {
    async fn check(&mut self, path: &Path, acks: Vec<Acknowledged>, round: u64) {
        let store = EmbeddedStore::open(path, options()).unwrap();
        let last = store.revision().await.unwrap();
        let events = self.resume(&store, last).await;

        let seen: Vec<Revision> = events.iter().map(|event| event.revision).collect();
        let expected: Vec<Revision> = (self.next..=last).collect();
        assert_eq!(
            seen, expected,
            "round {round}: each revision once, in order, without a gap"
        );
        let by_revision: BTreeMap<Revision, &Event> =
            events.iter().map(|event| (event.revision, event)).collect();
        for ack in acks {
            let event = by_revision
                .get(&ack.revision)
                .unwrap_or_else(|| panic!("round {round}: lost {ack:?}"));
            assert_eq!(
                (&*event.key, text(event)),
                (&*ack.key, ack.value),
                "round {round}"
            );
        }

        for event in &events {
            let previous = event.prev_kv.as_ref().map(|kv| kv.value.to_vec());
            let known = self
                .state
                .get(&*event.key)
                .map(|value| value.as_bytes().to_vec());
            assert_eq!(previous, known, "round {round}: {}", event.key);
            match text(event) {
                deleted if deleted.is_empty() => self.state.remove(&*event.key),
                value => self.state.insert(event.key.to_string(), value),
            };
        }
        let all = store.range(KeyRange::prefix(""), 0, None).await.unwrap();
        let present: BTreeMap<String, String> = all
            .kvs
            .iter()
            .map(|kv| {
                (
                    kv.key.to_string(),
                    String::from_utf8(kv.value.to_vec()).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            present, self.state,
            "round {round}: the events add up to the present"
        );
        self.next = last + 1;
    }

    async fn resume(&self, store: &EmbeddedStore, last: Revision) -> Vec<Event> {
        let mut stream = store.watch("", self.next).await.unwrap();
        let mut events = Vec::new();
        let mut seen = self.next - 1;
        while seen < last {
            let batch = stream.next().await.unwrap().unwrap();
            seen = batch.revision;
            events.extend(batch.events);
        }
        events
    }
}

fn text(event: &Event) -> String {
    let value = event.kv.as_ref().map(|kv| kv.value.to_vec());
    String::from_utf8(value.unwrap_or_default()).unwrap()
}
