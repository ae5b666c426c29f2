//! A watch is a position in history: it buffers nothing, reads at its own pace, and falls off the end if too slow.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::watch;

use super::Shared;
use crate::{Key, Result, Revision, StoreError, WatchBatch, WatchStream};

/// A batch is cut after so many events, and the lock released after so many revisions looked at.
const MAX_EVENTS: usize = 1_000;
const MAX_REVISIONS: usize = 10_000;

pub(super) struct Watcher {
    shared: Arc<Shared>,
    prefix: Key,
    /// The next revision to look at.
    next: Revision,
    /// Until this revision is reported, the replay of the past is not over.
    past: Revision,
    published: watch::Receiver<Revision>,
}

enum Step {
    Batch(WatchBatch),
    /// Nothing for this prefix so far, but there are more revisions.
    Again,
    CaughtUp,
}

impl Watcher {
    pub(super) fn new(
        shared: Arc<Shared>,
        prefix: &str,
        from: Revision,
        now: Revision,
        published: watch::Receiver<Revision>,
    ) -> Self {
        Self {
            shared,
            prefix: prefix.into(),
            next: from,
            past: now,
            published,
        }
    }

    pub(super) fn into_stream(self) -> WatchStream {
        stream::try_unfold(self, |mut watcher| async move {
            let batch = watcher.next_batch().await?;
            Ok(Some((batch, watcher)))
        })
        .boxed()
    }

    async fn next_batch(&mut self) -> Result<WatchBatch> {
        loop {
            // Marked as seen before looking, so that what comes meanwhile wakes the wait below.
            self.published.borrow_and_update();
            match self.step()? {
                Step::Batch(batch) => return Ok(batch),
                Step::Again => tokio::task::yield_now().await,
                Step::CaughtUp => self
                    .published
                    .changed()
                    .await
                    .map_err(|_| StoreError::Closed)?,
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        let mvcc = self.shared.read()?;
        mvcc.check_retained(self.next)?;
        if self.next > mvcc.revision() {
            return Ok(Step::CaughtUp);
        }
        let mut events = Vec::new();
        let mut seen = self.next;
        for (revision, changed) in mvcc.changes_from(self.next).take(MAX_REVISIONS) {
            seen = revision;
            let matching = changed
                .iter()
                .filter(|event| event.key.starts_with(&*self.prefix));
            events.extend(matching.cloned());
            if events.len() >= MAX_EVENTS {
                break;
            }
        }
        let replayed = self.next <= self.past && self.past <= seen;
        self.next = seen + 1;
        Ok(if events.is_empty() && !replayed {
            Step::Again
        } else {
            Step::Batch(WatchBatch {
                events,
                revision: seen,
            })
        })
    }
}
