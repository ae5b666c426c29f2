//! The store's reads and writes as requests to etcd.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions, WatchStream};
use futures::{Stream, TryStreamExt, stream};
use tokio::time::timeout;

use super::Options;
use super::convert;
use super::fault::{Fault, FaultKind};
use super::latest::Latest;
use super::members::Members;
use crate::{
    GetResponse, KeyRange, KeyValue, Op, RangeResponse, Result, Revision, StoreError, Txn,
    TxnResponse,
};

/// A long range is read in parts, all of one revision. The first has at most so many keys, and no part is asked for fewer.
const PAGE_MIN: usize = 500;
/// By what the keys so far came to, a part is asked for about so many bytes: each costs etcd a walk over all the keys
/// that are left.
const PAGE_BYTES: usize = 16 << 20;
/// However small they are.
const PAGE_MAX: usize = 20_000;
/// How long a member takes to say that a watch is made, or that its past is compacted.
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the store and its watches have in common.
#[derive(Debug)]
pub(super) struct Requests {
    pub members: Members,
    /// History before this revision is known to be gone.
    oldest: AtomicU64,
    latest: Latest,
    max_entry_bytes: usize,
}

/// How far a range has been read.
#[derive(Debug)]
struct Place {
    rest: KeyRange,
    /// Keys that are still wanted.
    left: usize,
    /// Keys that the next part may have.
    page: usize,
    /// The revision of all parts: `None` until the first has said which is the present.
    at: Option<Revision>,
}

impl Place {
    /// The place behind a part; `None` when it was the last.
    fn behind(mut self, part: &RangeResponse) -> Option<Self> {
        let last = part.kvs.last().filter(|_| part.more)?;
        self.left = self.left.checked_sub(part.kvs.len())?;
        if self.left == 0 {
            return None;
        }
        self.rest = self.rest.after(&last.key);
        let bytes: usize = part
            .kvs
            .iter()
            .map(|kv| kv.key.len() + kv.value.len())
            .sum();
        self.page = (PAGE_BYTES * part.kvs.len() / bytes.max(1)).clamp(PAGE_MIN, PAGE_MAX);
        self.at = Some(part.revision);
        Some(self)
    }
}

impl Requests {
    pub(super) fn new(options: &Options) -> Self {
        let connect = options.connect_options();
        Self {
            members: Members::new(&options.servers, connect, options.patience),
            oldest: AtomicU64::new(1),
            latest: Latest::default(),
            max_entry_bytes: options.max_entry_bytes,
        }
    }

    /// The version of a member that answers.
    pub(super) async fn version(&self) -> Result<String> {
        let status = self
            .members
            .read(|mut client| async move { client.status().await });
        let status = status.await.map_err(|fault| self.read_error(fault))?;
        Ok(status.version().to_owned())
    }

    pub(super) async fn get(&self, key: &str) -> Result<GetResponse> {
        if key.is_empty() {
            let revision = self.revision().await?;
            return Ok(GetResponse { kv: None, revision });
        }
        let answer = self.ask(key, GetOptions::new()).await;
        let answer = answer.map_err(|fault| self.read_error(fault))?;
        Ok(GetResponse {
            kv: answer.kvs().first().map(convert::key_value).transpose()?,
            revision: convert::answered_at(answer.header()),
        })
    }

    /// The revision of the last change, as a majority of the members knows it.
    pub(super) async fn revision(&self) -> Result<Revision> {
        let ask = || async {
            let options = GetOptions::new().with_count_only();
            let answer = self.ask(convert::FIRST_KEY, options).await;
            let answer = answer.map_err(|fault| self.read_error(fault))?;
            Ok(convert::answered_at(answer.header()))
        };
        self.latest.get(ask).await
    }

    pub(super) async fn range(
        &self,
        range: KeyRange,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<RangeResponse> {
        let mut pages = pin!(self.pages(range, limit, at));
        let mut whole = pages.try_next().await?.ok_or(StoreError::Closed)?;
        while let Some(mut page) = pages.try_next().await? {
            whole.kvs.append(&mut page.kvs);
            whole.more = page.more;
        }
        Ok(whole)
    }

    /// The answers that together are that of [`Self::range`]; there is always one.
    pub(super) fn pages(
        &self,
        range: KeyRange,
        limit: usize,
        at: Option<Revision>,
    ) -> impl Stream<Item = Result<RangeResponse>> {
        let first = Place {
            rest: range,
            left: if limit == 0 { usize::MAX } else { limit },
            page: PAGE_MIN,
            at,
        };
        stream::try_unfold(Some(first), async |place| {
            let Some(place) = place else {
                return Ok(None);
            };
            if let Some(at) = place.at {
                self.check_known(at)?;
            }
            let limit = place.page.min(place.left);
            let page = self.page(&place.rest, limit, place.at).await?;
            let next = place.behind(&page);
            Ok(Some((page, next)))
        })
    }

    async fn page(
        &self,
        range: &KeyRange,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<RangeResponse> {
        // etcd reads "now" from revision 0 and calls 1 what was before everything.
        let asked = at.map(|at| at.max(1));
        let (key, mut options) = convert::range(range);
        options = options.with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        if let Some(asked) = asked {
            options = options.with_revision(convert::number(asked));
        }
        let empty = range.end.as_ref().is_some_and(|end| *end <= range.start);
        if empty {
            // Asked all the same: the revision may be gone, or not be there yet.
            let key = GetOptions::new().with_count_only();
            options = asked.map_or(key.clone(), |at| key.with_revision(convert::number(at)));
        }
        let answer = match self.ask(key, options).await {
            Ok(answer) => answer,
            Err(fault) => return Err(self.past_error(fault, at.unwrap_or(0)).await),
        };
        let kvs: Result<Vec<KeyValue>> = answer.kvs().iter().map(convert::key_value).collect();
        let count = if empty { 0 } else { answer.count() };
        Ok(RangeResponse {
            kvs: kvs?,
            more: answer.more(),
            count: usize::try_from(count).unwrap_or(0),
            revision: at.unwrap_or(convert::answered_at(answer.header())),
        })
    }

    pub(super) async fn txn(&self, txn: &Txn) -> Result<TxnResponse> {
        txn.check(self.max_entry_bytes)?;
        let request = convert::txn(txn);
        let send = |client: Client| {
            let request = request.clone();
            let mut client = client.kv_client().max_decoding_message_size(usize::MAX);
            async move { client.txn(request).await }
        };
        // Without a change there is nothing that could be done twice.
        let answer = if txn.then.is_empty() {
            self.members.read(send).await
        } else {
            self.members.write(send).await
        };
        match answer {
            Ok(answer) => convert::txn_response(txn, &answer),
            Err(fault) if fault.kind == FaultKind::TooLarge => {
                Err(too_large(txn, self.max_entry_bytes))
            }
            Err(fault) => Err(fault.of_write(&self.members.urls())),
        }
    }

    /// Compacts so that everything at `revision` can still be read, and watched with what was before it.
    pub(super) async fn compact(&self, revision: Revision) -> Result<()> {
        let current = self.revision().await?;
        if revision > current {
            return Err(StoreError::FutureRevision {
                requested: revision,
                current,
            });
        }
        // etcd forgets the changes of the compacted revision itself, and needs it for what was before the next one.
        let last = revision.saturating_sub(1);
        if last > 0 {
            let compact = |mut client: Client| async move {
                client.compact(convert::number(last), None).await
            };
            // Compacting twice does no harm.
            match self.members.read(compact).await {
                Ok(_) => {}
                Err(fault) if fault.kind == FaultKind::Compacted => {}
                Err(fault) => return Err(self.read_error(fault)),
            }
        }
        self.oldest.fetch_max(revision, Ordering::Relaxed);
        Ok(())
    }

    /// The oldest revision whose changes are all there.
    pub(super) async fn oldest(&self) -> Result<Revision> {
        let known = self.oldest.load(Ordering::Relaxed);
        let first = GetOptions::new()
            .with_count_only()
            .with_revision(convert::number(known));
        match self.ask(convert::FIRST_KEY, first).await {
            // The compacted revision itself can be read, so there may have been one more.
            Ok(_) if known == 1 => return Ok(known),
            Ok(_) => {}
            Err(fault) if fault.kind == FaultKind::Compacted => {}
            Err(fault) => return Err(self.read_error(fault)),
        }
        // A watch from before the compacted revision is told which one that is.
        let (_, opened) = self.open_watch(1).await;
        let mut stream = opened.map_err(|fault| self.read_error(fault))?;
        loop {
            let answer = match timeout(WATCH_TIMEOUT, stream.message()).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None)) | Err(_) => return Err(self.read_error(Fault::silence())),
                Ok(Err(error)) => return Err(self.read_error(Fault::of(error))),
            };
            if answer.compact_revision() > 0 {
                let oldest = convert::revision(answer.compact_revision()) + 1;
                return Ok(self.oldest.fetch_max(oldest, Ordering::Relaxed).max(oldest));
            }
            if !answer.events().is_empty() {
                return Ok(known);
            }
        }
    }

    /// Watches every key from `from` on, at the member that requests go to now; answers which one that is.
    ///
    /// Every key: so each revision shows up, and what was delivered is known without asking for progress, which
    /// etcd before 3.4.25 and 3.5.8 may answer ahead of the changes
    /// (<https://github.com/etcd-io/etcd/issues/15220>).
    pub(super) async fn open_watch(&self, from: Revision) -> (usize, Result<WatchStream, Fault>) {
        let options = WatchOptions::new()
            .with_from_key()
            .with_prev_key()
            .with_start_revision(convert::number(from));
        let open = |client: Client| async move {
            let mut watcher = client.watch_client().max_decoding_message_size(usize::MAX);
            watcher.watch(convert::FIRST_KEY, Some(options)).await
        };
        self.members.once(WATCH_TIMEOUT, open).await
    }

    /// # Errors
    /// [`StoreError::Compacted`] when `revision` is known to be older than what is retained.
    pub(super) fn check_known(&self, revision: Revision) -> Result<()> {
        let oldest = self.oldest.load(Ordering::Relaxed);
        if revision.max(1) < oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest,
            });
        }
        Ok(())
    }

    /// What the failed read of a past revision means.
    async fn past_error(&self, fault: Fault, requested: Revision) -> StoreError {
        let error = match fault.kind {
            FaultKind::Compacted => self
                .oldest()
                .await
                .map(|oldest| StoreError::Compacted { requested, oldest }),
            FaultKind::Future => self
                .revision()
                .await
                .map(|current| StoreError::FutureRevision { requested, current }),
            _ => Ok(self.read_error(fault)),
        };
        error.unwrap_or_else(|error| error)
    }

    pub(super) fn read_error(&self, fault: Fault) -> StoreError {
        fault.of_read(&self.members.urls())
    }

    async fn ask(&self, key: &str, options: GetOptions) -> Result<etcd_client::GetResponse, Fault> {
        let request = |client: Client| {
            let options = options.clone();
            let mut client = client.kv_client().max_decoding_message_size(usize::MAX);
            async move { client.get(key, Some(options)).await }
        };
        self.members.read(request).await
    }
}

/// etcd counts the whole request, and names no key: the largest one is told, with all that was sent.
fn too_large(txn: &Txn, limit: usize) -> StoreError {
    let largest = txn.then.iter().max_by_key(|op| op.size());
    StoreError::TooLarge {
        key: largest.map_or("".into(), |op| op.key().clone()),
        size: txn.then.iter().map(Op::size).sum(),
        limit,
    }
}
