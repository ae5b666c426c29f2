//! When a container that ended, or could not be started, is tried again: after 10 s, then twice as long each time, at
//! most 300 s. The first restart comes at once.
//!
//! As in Kubernetes (`k8s.io/kubernetes/pkg/kubelet/kubelet.go`, `MaxCrashLoopBackOff`), who has run well for twice
//! the longest delay starts from the beginning.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// The delays of one pod, by container and by what failed.
#[derive(Debug, Default)]
pub(crate) struct Backoffs {
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

impl Backoffs {
    /// How long a try for `key` must still wait, and the whole delay, if the last one failed at `failed_at`.
    pub fn wait(
        &self,
        key: &str,
        failed_at: Instant,
        now: Instant,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if now.saturating_duration_since(entry.updated) > 2 * LONGEST {
            return None;
        }
        let left = (failed_at + entry.delay).saturating_duration_since(now);
        (!left.is_zero()).then_some((left, entry.delay))
    }

    /// A try for `key` is made now: the next one waits longer.
    pub fn next(&mut self, key: &str, now: Instant) {
        let fresh = Entry {
            delay: FIRST,
            updated: now,
        };
        match self.entries.get_mut(key) {
            Some(entry) if now.saturating_duration_since(entry.updated) <= 2 * LONGEST => {
                *entry = Entry {
                    delay: (entry.delay * 2).min(LONGEST),
                    updated: now,
                };
            }
            _ => {
                self.entries.insert(key.to_owned(), fresh);
            }
        }
    }

    /// `key` has succeeded.
    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes_and_the_first_restart_is_at_once() {
        let mut backoffs = Backoffs::default();
        let mut now = Instant::now();
        assert_eq!(backoffs.wait("a", now, now), None);
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            backoffs.next("a", now);
            let delay = Duration::from_secs(seconds);
            assert_eq!(backoffs.wait("a", now, now), Some((delay, delay)));
            assert_eq!(backoffs.wait("a", now, now + delay), None);
            now += delay;
        }
        assert_eq!(backoffs.wait("b", now, now), None);
    }

    #[test]
    fn ten_good_minutes_are_rewarded() {
        let mut backoffs = Backoffs::default();
        let start = Instant::now();
        for _ in 0..5 {
            backoffs.next("a", start);
        }
        let later = start + Duration::from_secs(601);
        assert_eq!(backoffs.wait("a", later, later), None);
        backoffs.next("a", later);
        assert_eq!(backoffs.wait("a", later, later).unwrap().1, FIRST);
    }
}
