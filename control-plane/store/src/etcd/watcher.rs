//! A watch: follows every change at one member, and goes on at another one when that member falls silent or ends.
//!
//! What comes next is always asked for by revision, so that nothing is missed and nothing comes twice.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{WatchResponse, WatchStream as EtcdStream};
use futures::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use super::convert;
use super::fault::{Fault, FaultKind};
use super::requests::Requests;
use crate::{Key, Result, Revision, StoreError, WatchBatch, WatchStream};

/// After so long without a change the other members are asked whether there was one.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a member may take to deliver a change that is known to have happened.
const LAG: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Watcher {
    requests: Arc<Requests>,
    prefix: Key,
    /// The next revision to deliver.
    next: Revision,
    /// Until this revision is reported, the replay of the past is not over.
    past: Revision,
    /// The newest revision that surely happened.
    known: Revision,
    open: Option<Open>,
    pause: Duration,
}

/// A watch at one member.
struct Open {
    stream: EtcdStream,
    member: usize,
}

/// Why a member's stream is of no more use.
enum Ended {
    /// Go on at another member.
    Elsewhere(String),
    Over(StoreError),
}

impl Watcher {
    pub(super) fn new(
        requests: Arc<Requests>,
        prefix: &str,
        from: Revision,
        now: Revision,
    ) -> Self {
        Self {
            requests,
            prefix: prefix.into(),
            next: from,
            past: now,
            known: now,
            open: None,
            pause: FIRST_PAUSE,
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
        // No change made revision 1, so none will say that it is replayed.
        if self.next <= 1 && self.past <= 1 {
            self.next = 2;
            return Ok(WatchBatch {
                events: Vec::new(),
                revision: 1,
            });
        }
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.reopen().await? {
                    Some(open) => open,
                    None => continue,
                },
            };
            match self.message(&mut open).await {
                Ok(answer) => {
                    let batch = self.take(&answer).await?;
                    self.open = Some(open);
                    if let Some(batch) = batch {
                        return Ok(batch);
                    }
                }
                Err(Ended::Over(error)) => return Err(error),
                Err(Ended::Elsewhere(why)) => {
                    self.requests.members.leave(open.member, &why);
                    self.rest().await;
                }
            }
        }
    }

    /// Watches at the member that requests go to now; `None`: it does not work there, try the next.
    async fn reopen(&mut self) -> Result<Option<Open>> {
        self.check_order().await?;
        let (member, opened) = self.requests.open_watch(self.next).await;
        match opened {
            Ok(stream) => Ok(Some(Open { stream, member })),
            Err(fault) if fault.is_transient() => {
                self.rest().await;
                Ok(None)
            }
            Err(fault) => Err(self.requests.read_error(fault)),
        }
    }

    /// A cluster that was put back to an older state would hand out revisions again that were delivered already.
    async fn check_order(&mut self) -> Result<()> {
        let seen = self.known;
        match self.requests.revision().await {
            Ok(current) if current < seen => Err(StoreError::WentBack { seen, current }),
            Ok(_) => Ok(()),
            // Whoever reads hears of it; the watch waits for etcd to come back.
            Err(StoreError::Unreachable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn rest(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    async fn message(&self, open: &mut Open) -> Result<WatchResponse, Ended> {
        loop {
            match timeout(SILENCE, open.stream.message()).await {
                Ok(message) => return self.received(message),
                Err(_) => match self.requests.revision().await {
                    Ok(current) if current >= self.next => {}
                    Ok(_) | Err(StoreError::Unreachable { .. }) => continue,
                    Err(error) => return Err(Ended::Over(error)),
                },
            }
            match timeout(LAG, open.stream.message()).await {
                Ok(message) => return self.received(message),
                Err(_) => return Err(Ended::Elsewhere("its watch does not keep up".into())),
            }
        }
    }

    fn received(
        &self,
        message: Result<Option<WatchResponse>, etcd_client::Error>,
    ) -> Result<WatchResponse, Ended> {
        match message {
            Ok(Some(answer)) if answer.compact_revision() > 0 => {
                Err(Ended::Over(StoreError::Compacted {
                    requested: self.next,
                    oldest: convert::revision(answer.compact_revision()) + 1,
                }))
            }
            Ok(Some(answer)) if answer.canceled() => {
                let why = answer.cancel_reason().to_owned();
                Err(if why.contains("permission denied") {
                    Ended::Over(StoreError::Refused { source: why.into() })
                } else {
                    Ended::Elsewhere(why)
                })
            }
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Ended::Elsewhere("its watch ended".into())),
            Err(error) => {
                let fault = Fault::of(error);
                Err(match fault.kind {
                    FaultKind::Refused => Ended::Over(self.requests.read_error(fault)),
                    _ => Ended::Elsewhere(fault.source.to_string()),
                })
            }
        }
    }

    /// The part of an answer that concerns the prefix, if there is anything to say.
    async fn take(&mut self, answer: &WatchResponse) -> Result<Option<WatchBatch>> {
        let last = answer.events().iter().filter_map(|event| event.kv());
        let Some(seen) = last.map(|kv| convert::revision(kv.mod_revision())).max() else {
            return Ok(None);
        };
        self.pause = FIRST_PAUSE;
        let mut events = Vec::new();
        for event in answer.events() {
            let ours = event
                .kv()
                .is_some_and(|kv| kv.key().starts_with(self.prefix.as_bytes()));
            if ours {
                match convert::event(event)? {
                    Some(event) => events.push(event),
                    // Compacted between the change and its delivery.
                    None => {
                        return Err(StoreError::Compacted {
                            requested: self.next,
                            oldest: self.requests.oldest().await?,
                        });
                    }
                }
            }
        }
        let replayed = self.next <= self.past && self.past <= seen;
        self.next = seen + 1;
        self.known = self.known.max(seen);
        Ok((replayed || !events.is_empty()).then_some(WatchBatch {
            events,
            revision: seen,
        }))
    }
}
