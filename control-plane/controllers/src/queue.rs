//! A work queue of keys, as client-go's: each key waits at most once, is worked on by one worker at a time, and comes
//! back later and later while its work fails.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::fault;

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    ready: VecDeque<T>,
    /// What is in `ready`, or is to go there once its worker is done.
    dirty: HashSet<T>,
    running: HashSet<T>,
    later: BTreeSet<(Instant, T)>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash + Ord + Display> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                running: HashSet::new(),
                later: BTreeSet::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }
    }

    pub(crate) fn add(&self, key: T) {
        self.state().add(key);
        self.changed.notify_one();
    }

    pub(crate) fn add_after(&self, key: T, delay: Duration) {
        self.state().later.insert((Instant::now() + delay, key));
        self.changed.notify_one();
    }

    /// Serves the queue with `workers` tasks in one, for ever. A key whose work fails is tried again.
    pub(crate) async fn serve<F, Fut>(&self, what: &'static str, workers: usize, work: F)
    where
        F: Fn(T) -> Fut,
        Fut: Future<Output = Result<(), kube::Error>>,
    {
        let worker = async || {
            loop {
                let key = self.next().await;
                match work(key.clone()).await {
                    Ok(()) => self.done(&key),
                    Err(error) => {
                        let delay = self.failed(&key);
                        if fault::is_conflict(&error) {
                            tracing::debug!(%key, ?delay, "{what}: changed meanwhile, trying again");
                        } else {
                            tracing::warn!(%key, ?delay, %error, "{what}: failed, trying again");
                        }
                    }
                }
            }
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }

    async fn next(&self) -> T {
        loop {
            let (key, wake) = self.state().take(Instant::now());
            if let Some(key) = key {
                // Another worker may have slept through a notification that came for both.
                self.changed.notify_one();
                return key;
            }
            match wake {
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn done(&self, key: &T) {
        let mut state = self.state();
        state.failures.remove(key);
        state.finish(key);
        drop(state);
        self.changed.notify_one();
    }

    fn failed(&self, key: &T) -> Duration {
        let delay = self.state().fail(key, Instant::now());
        self.changed.notify_one();
        delay
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // No code that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn add(&mut self, key: T) {
        if self.dirty.insert(key.clone()) && !self.running.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The next key to work on, else when to look again.
    fn take(&mut self, now: Instant) -> (Option<T>, Option<Instant>) {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.add(key);
            }
        }
        let Some(key) = self.ready.pop_front() else {
            return (None, self.later.first().map(|(at, _)| *at));
        };
        self.dirty.remove(&key);
        self.running.insert(key.clone());
        (Some(key), None)
    }

    /// Puts the key off; the longer, the more often it has failed in a row.
    fn fail(&mut self, key: &T, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = LAST_RETRY.min(FIRST_RETRY.saturating_mul(1 << (*failures).min(16)));
        *failures += 1;
        self.finish(key);
        self.later.insert((now + delay, key.clone()));
        delay
    }

    fn finish(&mut self, key: &T) {
        self.running.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_key_added_while_it_is_worked_on_is_worked_on_again_and_never_twice_at_once() {
        let queue = Queue::new();
        let now = Instant::now();
        queue.add("a");
        queue.add("a");
        let mut state = queue.state();
        assert_eq!(state.take(now), (Some("a"), None));
        assert_eq!(
            state.take(now),
            (None, None),
            "two adds are one piece of work"
        );
        state.add("a");
        assert_eq!(state.take(now), (None, None), "its worker is not done");
        state.finish(&"a");
        assert_eq!(state.take(now), (Some("a"), None));
        state.finish(&"a");
        assert_eq!(state.take(now), (None, None));
    }

    #[test]
    fn a_failing_key_comes_back_ever_later() {
        let queue = Queue::new();
        let mut now = Instant::now();
        queue.add("bad");
        let mut state = queue.state();
        let mut delays = Vec::new();
        for _ in 0..14 {
            assert_eq!(state.take(now).0, Some("bad"));
            let delay = state.fail(&"bad", now);
            assert_eq!(state.take(now), (None, Some(now + delay)));
            now += delay;
            delays.push(delay.as_millis());
        }
        assert_eq!(delays[..4], [10, 20, 40, 80]);
        assert_eq!(delays[12..], [30_000, 30_000]);
    }

    #[tokio::test]
    async fn failures_hold_up_nobody_and_end_with_the_first_success() {
        let queue = Queue::new();
        queue.add("bad");
        queue.add("good");
        queue.add_after("late", Duration::from_millis(100));
        let (tries, others) = (AtomicU32::new(0), AtomicU32::new(0));
        let serve = queue.serve("test", 1, async |key| {
            if key != "bad" {
                others.fetch_add(1, Ordering::SeqCst);
            } else if tries.fetch_add(1, Ordering::SeqCst) < 3 {
                let no = kube::core::Status::failure("no", "InternalError");
                return Err(kube::Error::Api(no.boxed()));
            }
            Ok(())
        });
        let all_done = async {
            while tries.load(Ordering::SeqCst) < 4 || others.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = serve => unreachable!("a queue is served for ever"),
            done = tokio::time::timeout(Duration::from_secs(20), all_done) => done.unwrap(),
        }
        assert!(queue.state().failures.is_empty());
    }
}
