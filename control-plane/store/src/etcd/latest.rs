//! The latest revision, asked once for all who want to know it at the same moment.
//!
//! Every read of an API server begins with this question. An answer holds for whoever wanted it before it was asked, so
//! all who come while one is under way share the next.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::{Result, Revision};

#[derive(Debug, Default)]
pub(super) struct Latest {
    /// How many questions were begun.
    begun: AtomicU64,
    /// The last answered question, and its answer; held while one is under way.
    answered: Mutex<Option<(u64, Revision)>>,
}

impl Latest {
    /// A revision that the store had reached when this was called, or later.
    ///
    /// # Errors
    /// Those of `ask`.
    pub(super) async fn get<F>(&self, ask: impl FnOnce() -> F) -> Result<Revision>
    where
        F: Future<Output = Result<Revision>>,
    {
        // One that is under way already may have been answered before we came.
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        let mut answered = self.answered.lock().await;
        if let Some((question, revision)) = *answered
            && question >= wanted
        {
            return Ok(revision);
        }
        if self.begun.load(Ordering::SeqCst) >= wanted {
            // The question that we waited for failed. Whoever waited asks alone, so that nobody waits for more.
            drop(answered);
            return ask().await;
        }
        let question = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let revision = ask().await?;
        *answered = Some((question, revision));
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;
    use crate::StoreError;

    const ANSWER_TAKES: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_comes_while_a_question_is_under_way_shares_the_next() {
        let latest = Arc::new(Latest::default());
        let store = Arc::new(AtomicU64::new(1));
        let asked = Arc::new(AtomicU64::new(0));
        let readers = (0..50_u64).map(|at| {
            let (latest, store, asked) = (latest.clone(), store.clone(), asked.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(2 * (at % 25))).await;
                let had = store.fetch_add(1, Ordering::SeqCst) + 1;
                let ask = || async {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let now = store.load(Ordering::SeqCst);
                    tokio::time::sleep(ANSWER_TAKES).await;
                    Ok(now)
                };
                assert!(latest.get(ask).await.unwrap() >= had, "an old answer");
            })
        });
        for reader in join_all(readers).await {
            reader.unwrap();
        }
        assert!(asked.load(Ordering::SeqCst) <= 25, "{asked:?} for 50");
    }

    #[tokio::test]
    async fn a_question_that_fails_costs_nobody_more_than_one_of_their_own() {
        let latest = Arc::new(Latest::default());
        let begun = tokio::time::Instant::now();
        let readers = (0..20).map(|_| {
            let latest = latest.clone();
            tokio::spawn(async move {
                let ask = || async {
                    tokio::time::sleep(ANSWER_TAKES).await;
                    Err(StoreError::Closed)
                };
                latest.get(ask).await.unwrap_err();
            })
        });
        for reader in join_all(readers).await {
            reader.unwrap();
        }
        // One after the other would take twenty times.
        assert!(
            begun.elapsed() <= 10 * ANSWER_TAKES,
            "{:?}",
            begun.elapsed()
        );
    }
}
