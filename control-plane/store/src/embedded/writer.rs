//! The one thread that writes: takes the transactions that wait, decides them in order, and commits them together.
//!
//! Whoever waits while an `fsync` runs is in the next batch, so the throughput grows with the number of writers
//! and a lone writer waits for nobody. Those who were just answered may come back before the others are worth a commit
//! of their own, so the next one waits a little for them: otherwise writers fall into two halves, each of which waits
//! for a whole commit of the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::disk::{self, Compaction, Disk};
use super::mvcc::{Change, Mvcc};
use super::{Retention, Shared};
use crate::{
    Compare, Event, EventKind, Key, KeyValue, Op, OpResult, Result, Revision, StoreError, Txn,
    TxnResponse,
};

/// A batch is committed at this size at the latest.
const MAX_BATCH_TXNS: usize = 1_024;
const MAX_BATCH_BYTES: usize = 8 << 20;
/// How many revisions one commit compacts besides its own work, so that no write waits long for old history.
const COMPACT_STEP: usize = 2_000;
/// Idle compaction runs at most this often.
const COMPACT_PAUSE: Duration = Duration::from_secs(10);
/// For those who were just answered the next commit waits this part of what the last one took.
const WAIT_PART: u32 = 4;
const SLOW_COMMIT: Duration = Duration::from_millis(500);

pub(super) enum Request {
    Txn {
        txn: Txn,
        reply: oneshot::Sender<Result<TxnResponse>>,
    },
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<()>>,
    },
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    retention: Retention,
    published: watch::Sender<Revision>,
    /// Why the disk takes no more writes: after a failed commit its state is unknown.
    failed: Option<Failed>,
    last: LastCommit,
}

/// The last commit, as far as the next one asks.
struct LastCommit {
    answered: usize,
    ended: Instant,
    took: Duration,
}

/// Why a commit failed.
struct Failed {
    cause: String,
    disk_full: bool,
}

/// Transactions decided on top of `base` but not yet durable.
struct Batch<'a> {
    base: &'a Mvcc,
    /// What the batch leaves of the keys that it changed.
    staged: HashMap<Key, Option<KeyValue>>,
    changes: Vec<Change>,
    revision: Revision,
}

/// What a batch leads to; nobody hears of it before it is durable.
struct Decided {
    changes: Vec<Change>,
    responses: Vec<TxnResponse>,
    compact: Option<Compaction>,
}

/// What one commit takes from the inbox.
#[derive(Default)]
struct Gathered {
    txns: Vec<Txn>,
    replies: Vec<Reply>,
    /// Of the operations.
    bytes: usize,
    compact: Option<(Revision, oneshot::Sender<Result<()>>)>,
}

type Reply = oneshot::Sender<Result<TxnResponse>>;

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Disk,
        retention: Retention,
        published: watch::Sender<Revision>,
    ) -> Self {
        Self {
            shared,
            disk,
            retention,
            published,
            failed: None,
            last: LastCommit {
                answered: 0,
                ended: Instant::now(),
                took: Duration::ZERO,
            },
        }
    }

    /// Serves until every sender of requests is gone.
    pub(super) fn run(mut self, inbox: &Receiver<Request>) {
        loop {
            // What came during the last commit is of others than those whom it answered.
            let others = inbox.try_recv().ok();
            let expected = self.last.answered;
            let gathered = match others {
                Some(first) => self.last.gather(first, inbox, |waiting| waiting + expected),
                None => match self.wait(inbox) {
                    Ok(first) => self.last.gather(first, inbox, |_| expected),
                    Err(RecvTimeoutError::Timeout) => Gathered::default(),
                    Err(RecvTimeoutError::Disconnected) => break,
                },
            };
            let (answered, begun) = (gathered.txns.len(), Instant::now());
            self.commit(gathered.txns, gathered.replies);
            self.last = LastCommit {
                answered,
                ended: Instant::now(),
                took: begun.elapsed(),
            };
            if let Some((revision, reply)) = gathered.compact {
                // The asker may have gone; the compaction is done all the same.
                let _ = reply.send(self.compact(revision));
            }
        }
    }

    fn wait(&self, inbox: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        let due = match self.shared.mvcc.read() {
            Ok(mvcc) if self.failed.is_none() => mvcc.next_compaction(&self.retention),
            _ => None,
        };
        match due {
            Some(due) => {
                let wait = due.saturating_duration_since(Instant::now());
                inbox.recv_timeout(wait.max(COMPACT_PAUSE))
            }
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Decides, makes durable, publishes, and only then answers.
    fn commit(&mut self, txns: Vec<Txn>, replies: Vec<Reply>) {
        let done = self.decide(txns).and_then(|decided| {
            let oldest = decided.compact.as_ref().map(|(oldest, _)| *oldest);
            self.write(&decided.changes, decided.compact)?;
            self.publish(decided.changes, oldest)?;
            Ok(decided.responses)
        });
        // A caller that gave up waiting hears nothing; its write stands.
        match done {
            Ok(responses) => {
                for (reply, response) in replies.into_iter().zip(responses) {
                    let _ = reply.send(Ok(response));
                }
            }
            Err(error) => {
                let cause = self.failed.as_ref().map(|failed| &failed.cause);
                tracing::error!(%error, cause, "store commit failed");
                for reply in replies {
                    let _ = reply.send(Err(self.failure()));
                }
            }
        }
    }

    fn decide(&self, txns: Vec<Txn>) -> Result<Decided> {
        let mvcc = self.shared.read()?;
        let mut batch = Batch {
            base: &mvcc,
            staged: HashMap::new(),
            changes: Vec::new(),
            revision: mvcc.revision(),
        };
        let responses = txns.into_iter().map(|txn| batch.execute(txn)).collect();
        let changes = batch.changes;
        let step = COMPACT_STEP.max(4 * changes.len());
        let compact = mvcc
            .compaction_due(&self.retention, Instant::now(), step)
            .map(|oldest| (oldest, mvcc.obsolete(oldest)));
        Ok(Decided {
            changes,
            responses,
            compact,
        })
    }

    fn compact(&mut self, revision: Revision) -> Result<()> {
        let obsolete = {
            let mvcc = self.shared.read()?;
            if revision > mvcc.revision() {
                return Err(StoreError::FutureRevision {
                    requested: revision,
                    current: mvcc.revision(),
                });
            }
            if revision <= mvcc.oldest() {
                return Ok(());
            }
            mvcc.obsolete(revision)
        };
        self.write(&[], Some((revision, obsolete)))?;
        self.publish(Vec::new(), Some(revision))
    }

    fn write(&mut self, changes: &[Change], compact: Option<Compaction>) -> Result<()> {
        if changes.is_empty() && compact.is_none() {
            return Ok(());
        }
        if self.failed.is_some() {
            return Err(self.failure());
        }
        let begun = Instant::now();
        if let Err(error) = self.disk.write(changes, compact) {
            self.failed = Some(Failed {
                cause: error.to_string(),
                disk_full: disk::is_full(&error),
            });
            return Err(self.failure());
        }
        let took = begun.elapsed();
        if took > SLOW_COMMIT {
            tracing::warn!(
                took_ms = took.as_millis(),
                transactions = changes.len(),
                "store commit was slow: the disk is busy or failing"
            );
        }
        Ok(())
    }

    fn publish(&self, changes: Vec<Change>, oldest: Option<Revision>) -> Result<()> {
        let mut mvcc = self.shared.mvcc.write().map_err(|_| StoreError::Closed)?;
        let now = Instant::now();
        let changed = !changes.is_empty();
        for change in changes {
            mvcc.apply(change, now);
        }
        if let Some(oldest) = oldest {
            mvcc.forget(oldest);
        }
        let revision = mvcc.revision();
        drop(mvcc);
        // A compaction wakes the watchers too, so that one that it overtook hears of it.
        if changed || oldest.is_some() {
            self.published.send_replace(revision);
        }
        Ok(())
    }

    fn failure(&self) -> StoreError {
        let path = self.shared.path.clone();
        match &self.failed {
            Some(failed) if failed.disk_full => StoreError::DiskFull {
                path,
                source: failed.cause.clone().into(),
            },
            Some(failed) => StoreError::Write {
                path,
                source: failed.cause.clone().into(),
            },
            None => StoreError::Closed,
        }
    }
}

impl LastCommit {
    /// Takes what waits, and waits a little until so many are there as `expect` makes of their number; a compaction
    /// ends it.
    fn gather(
        &self,
        first: Request,
        inbox: &Receiver<Request>,
        expect: impl Fn(usize) -> usize,
    ) -> Gathered {
        let mut gathered = Gathered::default();
        let mut next = Some(first);
        while let Some(request) = next {
            if gathered.take(request) {
                return gathered;
            }
            next = inbox.try_recv().ok();
        }
        let expected = expect(gathered.txns.len());
        let until = self.ended + self.took / WAIT_PART;
        while !gathered.txns.is_empty() && gathered.txns.len() < expected {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(request) = inbox.recv_timeout(left) else {
                break;
            };
            if gathered.take(request) {
                break;
            }
        }
        gathered
    }
}

impl Gathered {
    /// Whether nothing more goes with it.
    fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Txn { txn, reply } => {
                self.bytes += txn.then.iter().map(Op::size).sum::<usize>();
                self.txns.push(txn);
                self.replies.push(reply);
                self.txns.len() >= MAX_BATCH_TXNS || self.bytes >= MAX_BATCH_BYTES
            }
            Request::Compact { revision, reply } => {
                self.compact = Some((revision, reply));
                true
            }
        }
    }
}

impl Batch<'_> {
    fn get(&self, key: &Key) -> Option<KeyValue> {
        match self.staged.get(key) {
            Some(staged) => staged.clone(),
            None => self.base.get(key),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mod_revision = self.get(&compare.key).map_or(0, |kv| kv.mod_revision);
        mod_revision == compare.mod_revision
    }

    fn execute(&mut self, txn: Txn) -> TxnResponse {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return TxnResponse {
                succeeded: false,
                revision: self.revision,
                results: Vec::new(),
                else_kvs: txn.else_get.iter().map(|key| self.get(key)).collect(),
            };
        }
        let revision = self.revision + 1;
        let mut results = Vec::with_capacity(txn.then.len());
        let mut events = Vec::with_capacity(txn.then.len());
        for op in txn.then {
            let (result, event) = self.change(op, revision);
            results.push(result);
            events.extend(event);
        }
        if !events.is_empty() {
            self.revision = revision;
            self.changes.push(Change { revision, events });
        }
        TxnResponse {
            succeeded: true,
            revision: self.revision,
            results,
            else_kvs: Vec::new(),
        }
    }

    fn change(&mut self, op: Op, revision: Revision) -> (OpResult, Option<Event>) {
        let previous = self.get(op.key());
        let (kind, key, current) = match op {
            Op::Put { key, value } => {
                let (create_revision, version) = previous
                    .as_ref()
                    .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
                let kv = KeyValue {
                    key: key.clone(),
                    value,
                    create_revision,
                    mod_revision: revision,
                    version,
                };
                (EventKind::Put, key, Some(kv))
            }
            Op::Delete { key } => (EventKind::Delete, key, None),
        };
        let event = (previous.is_some() || current.is_some()).then(|| Event {
            kind,
            key: key.clone(),
            revision,
            kv: current.clone(),
            prev_kv: previous.clone(),
        });
        self.staged.insert(key, current.clone());
        (OpResult { previous, current }, event)
    }
}
