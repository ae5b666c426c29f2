//! What the registry does by itself: it brings back what every cluster has, and removes what is over.

use std::time::Duration;

use crate::kinds;
use crate::options::DeleteOptions;
use crate::registry::Registry;

/// How often somebody looks whether the objects are there that every cluster has.
const RESTORE: Duration = Duration::from_secs(10);
/// Every so many times also expired objects are removed.
const EXPIRE_EVERY: u32 = 6;

impl Registry {
    /// Runs as long as the registry is open.
    pub(crate) async fn keep_house(&self) {
        let mut tick = tokio::time::interval(RESTORE);
        // The first tick comes at once; opening does its work.
        tick.tick().await;
        for round in 1u32.. {
            tick.tick().await;
            if let Err(error) = self.restore().await {
                tracing::warn!(%error, "cannot restore the objects that every cluster has; trying again");
            }
            self.clean_up_all().await;
            if round.is_multiple_of(EXPIRE_EVERY) {
                self.expire().await;
            }
        }
    }

    async fn restore(&self) -> crate::errors::Result<()> {
        self.settle(None).await?;
        self.bootstrap().await?;
        let published = self.published().clone();
        match published {
            Some(addresses) => self.publish(&addresses).await,
            None => Ok(()),
        }
    }

    /// Removes objects of kinds that do not live for ever (Events) when their time is over.
    async fn expire(&self) {
        for kind in kinds::all() {
            let Some(seconds) = kind.strategy.time_to_live else {
                continue;
            };
            let (objects, _) = self.cache().list(kind, "", "");
            let old = objects
                .iter()
                .filter(|o| o.received.elapsed().as_secs() >= seconds);
            for object in old {
                let options = DeleteOptions::default();
                let deleted = self.delete(kind, &object.namespace, &object.name, &options);
                if let Err(error) = deleted.await {
                    tracing::debug!(%error, name = object.name, "an expired object stays");
                }
            }
        }
    }
}
