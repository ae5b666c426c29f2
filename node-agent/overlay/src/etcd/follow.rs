//! Everybody's leases, from the list and then from the watch. After anything that may have lost an event, compaction
//! above all, the list is read again, and what is no longer in it is gone.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use etcd_client::{EventType, KeyValue, WatchOptions};
use node_agent_model::ChangeId;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{EtcdRegistry, chain, failed};
use crate::{LeaseEvent, RegistryError};

const LEAST_BACKOFF: Duration = Duration::from_millis(100);
const MOST_BACKOFF: Duration = Duration::from_secs(5);

impl EtcdRegistry {
    pub(super) async fn follow_for_ever(&self, events: &mpsc::Sender<LeaseEvent>) {
        let mut known = BTreeSet::new();
        let mut backoff = LEAST_BACKOFF;
        while !events.is_closed() {
            match self.follow_once(events, &mut known, &mut backoff).await {
                Ok(never) => match never {},
                Err(Interrupted::NobodyListens) => return,
                Err(Interrupted::Compacted(revision)) => {
                    info!(
                        revision,
                        "the watch of leases fell behind: they are listed again"
                    );
                }
                Err(Interrupted::Failed(error)) => {
                    warn!(error = chain(&error), "the watch of leases was interrupted");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MOST_BACKOFF);
                }
            }
        }
    }

    async fn follow_once(
        &self,
        events: &mpsc::Sender<LeaseEvent>,
        known: &mut BTreeSet<String>,
        backoff: &mut Duration,
    ) -> Result<Infallible, Interrupted> {
        let (entries, revision) = self.list().await?;
        let listed: BTreeSet<String> = entries
            .iter()
            .map(|entry| entry.lease.holder.clone())
            .collect();
        for entry in entries {
            let id = id(&entry.key, entry.lease.since);
            send(
                events,
                LeaseEvent::Put(entry.lease.holder.clone(), Ok(entry.lease), id),
            )
            .await?;
        }
        for holder in known.difference(&listed) {
            send(
                events,
                LeaseEvent::Gone(holder.clone(), id(holder, revision)),
            )
            .await?;
        }
        *known = listed;
        send(events, LeaseEvent::Listed).await?;
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision + 1);
        let mut client = self.client.clone();
        let watch = client.watch(self.subnets_key(), Some(options)).await;
        let mut watch = watch.map_err(failed("watch the leases"))?;
        loop {
            let message = watch.message().await.map_err(failed("watch the leases"))?;
            let Some(message) = message else {
                let ended = etcd_client::Error::WatchError("the stream ended".to_owned());
                return Err(failed("watch the leases")(ended).into());
            };
            if message.compact_revision() > 0 {
                return Err(Interrupted::Compacted(message.compact_revision()));
            }
            if message.canceled() {
                let reason = etcd_client::Error::WatchError(message.cancel_reason().to_owned());
                return Err(failed("watch the leases")(reason).into());
            }
            *backoff = LEAST_BACKOFF;
            for event in message.events() {
                if let Some(pair) = event.kv() {
                    self.tell(events, known, event.event_type(), pair).await?;
                }
            }
        }
    }

    async fn tell(
        &self,
        events: &mpsc::Sender<LeaseEvent>,
        known: &mut BTreeSet<String>,
        kind: EventType,
        pair: &KeyValue,
    ) -> Result<(), Interrupted> {
        let key = String::from_utf8_lossy(pair.key()).into_owned();
        let holder = self.holder(&key).unwrap_or_default().to_owned();
        if self
            .own
            .lock()
            .await
            .as_ref()
            .is_some_and(|own| own.key == key)
        {
            self.own_changed.notify_one();
        }
        let id = id(&key, pair.mod_revision());
        let event = match kind {
            EventType::Delete => {
                known.remove(&holder);
                LeaseEvent::Gone(holder, id)
            }
            EventType::Put => match self.entry(pair) {
                Ok(entry) => {
                    known.insert(holder.clone());
                    LeaseEvent::Put(holder, Ok(entry.lease), id)
                }
                Err(reason) => {
                    // What was readable before and is no longer must not stay as it was.
                    warn!(key, reason, "no lease");
                    known.remove(&holder);
                    LeaseEvent::Gone(holder, id)
                }
            },
        };
        send(events, event).await
    }
}

/// Why a watch ended.
enum Interrupted {
    Compacted(i64),
    Failed(RegistryError),
    NobodyListens,
}

impl From<RegistryError> for Interrupted {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

async fn send(events: &mpsc::Sender<LeaseEvent>, event: LeaseEvent) -> Result<(), Interrupted> {
    events
        .send(event)
        .await
        .map_err(|_| Interrupted::NobodyListens)
}

fn id(key: &str, revision: i64) -> ChangeId {
    ChangeId {
        uid: key.to_owned(),
        resource_version: revision.to_string(),
    }
}
