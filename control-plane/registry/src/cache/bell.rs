//! Waking the watches of a kind: at once after some quiet, and while changes come fast only so often that there is time
//! between for the writes that make them. A change that wakes a thousand watches takes milliseconds, in which whoever
//! writes waits with them; several changes that go out together take little more than one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch::{Receiver, Sender};
use tokio::time::Instant;

/// From one waking to the next, for each watch: twice what it takes to wake it and to send it a change.
const PER_WATCH: Duration = Duration::from_micros(8);
/// Fewer watches are woken by each change: a timer is no finer.
const SHORTEST: Duration = Duration::from_millis(1);
/// However many there are.
const LONGEST: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub struct Bell {
    bell: Sender<()>,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    /// It rings when the rest is over.
    owed: bool,
}

impl Bell {
    pub fn listen(&self) -> Receiver<()> {
        self.bell.subscribe()
    }

    /// Tells of a change: now, or within [`LONGEST`].
    pub fn ring(bell: &Arc<Self>) {
        let rest = bell.rest_between();
        if rest < SHORTEST {
            bell.bell.send_replace(());
            return;
        }
        let mut state = bell.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if state.owed {
            return;
        }
        match state.until.filter(|until| Instant::now() < *until) {
            None => {
                state.until = Some(Instant::now() + rest);
                bell.bell.send_replace(());
            }
            Some(until) => {
                state.owed = true;
                let bell = bell.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(until).await;
                    let mut state = bell.rest.lock().unwrap_or_else(PoisonError::into_inner);
                    *state = Rest {
                        until: Some(Instant::now() + rest),
                        owed: false,
                    };
                    bell.bell.send_replace(());
                });
            }
        }
    }

    fn rest_between(&self) -> Duration {
        let watches = u32::try_from(self.bell.receiver_count()).unwrap_or(u32::MAX);
        LONGEST.min(PER_WATCH.saturating_mul(watches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often one of so many watches is woken by a hundred changes that come fast, and how long these took.
    async fn wakings(watches: usize) -> (u32, Duration) {
        let bell = Arc::new(Bell::default());
        let mut all: Vec<_> = (0..watches).map(|_| bell.listen()).collect();
        let mut one = all.pop().unwrap();
        let counted = tokio::spawn(async move {
            let mut count = 0;
            let quiet = Duration::from_secs(1);
            while let Ok(Ok(())) = tokio::time::timeout(quiet, one.changed()).await {
                count += 1;
            }
            count
        });
        let begun = Instant::now();
        for _ in 0..100 {
            tokio::time::sleep(SHORTEST).await;
            Bell::ring(&bell);
        }
        let took = begun.elapsed();
        (counted.await.unwrap(), took)
    }

    #[tokio::test]
    async fn few_watches_are_woken_by_each_change_and_many_by_several() {
        tokio::time::pause();
        assert!(wakings(10).await.0 > 90);
        let (many, took) = wakings(1000).await;
        let rests = (took.as_micros() / (PER_WATCH * 1000).as_micros()) as u32;
        // The rest is that of one watch less, and the first and the last change are told outside of it.
        assert!(
            (rests / 2..=rests + 2).contains(&many),
            "{many} in {took:?}"
        );
    }

    #[tokio::test]
    async fn what_comes_alone_comes_at_once_and_what_comes_last_is_not_lost() {
        tokio::time::pause();
        let bell = Arc::new(Bell::default());
        let mut watches: Vec<_> = (0..1000).map(|_| bell.listen()).collect();
        for _ in 0..3 {
            Bell::ring(&bell);
            assert!(watches[0].has_changed().unwrap());
            watches[0].borrow_and_update();
            Bell::ring(&bell);
            assert!(!watches[0].has_changed().unwrap());
            let within = tokio::time::timeout(2 * LONGEST, watches[0].changed());
            within.await.unwrap().unwrap();
            tokio::time::sleep(2 * LONGEST).await;
        }
    }
}
