//! Ids of one array: given, taken back, and not given again before no reader can hold them any more.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::QUARANTINE;

/// Ids from 1 up to a limit; 0 is never given.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdPool {
    /// First id above every one that was ever given.
    fresh: u32,
    /// One past the greatest id.
    end: u32,
    free: BTreeSet<u32>,
    /// In the order of their release.
    resting: VecDeque<(Duration, u32)>,
}

impl IdPool {
    /// Ids `1..size`, `used` of which are in use.
    pub(crate) fn new(size: usize, used: &BTreeSet<u32>) -> Self {
        let end = u32::try_from(size).unwrap_or(u32::MAX);
        let fresh = used.last().map_or(1, |last| (last + 1).max(1));
        let free = (1..fresh.min(end))
            .filter(|id| !used.contains(id))
            .collect();
        Self {
            fresh,
            end,
            free,
            resting: VecDeque::new(),
        }
    }

    /// How many ids can be given at this time.
    pub(crate) fn available(&mut self, now: Duration) -> usize {
        self.wake(now);
        self.free.len() + self.end.saturating_sub(self.fresh) as usize
    }

    pub(crate) fn allocate(&mut self, now: Duration) -> Option<u32> {
        self.wake(now);
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        let id = self.fresh;
        (id < self.end).then(|| {
            self.fresh += 1;
            id
        })
    }

    pub(crate) fn release(&mut self, id: u32, now: Duration) {
        self.resting.push_back((now + QUARANTINE, id));
    }

    /// Takes back an id that was given and never used.
    pub(crate) fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }

    fn wake(&mut self, now: Duration) {
        while let Some(&(until, id)) = self.resting.front() {
            if until > now {
                break;
            }
            self.resting.pop_front();
            self.free.insert(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_id_rests_before_it_is_given_again() {
        let mut pool = IdPool::new(3, &BTreeSet::new());
        let start = Duration::from_secs(9);
        assert_eq!(pool.allocate(start), Some(1));
        assert_eq!(pool.allocate(start), Some(2));
        assert_eq!(pool.allocate(start), None);
        pool.release(1, start);
        assert_eq!(pool.allocate(start), None);
        assert_eq!(pool.available(start + QUARANTINE), 1);
        assert_eq!(pool.allocate(start + QUARANTINE), Some(1));
    }

    #[test]
    fn ids_in_use_at_the_start_are_not_given() {
        let mut pool = IdPool::new(10, &BTreeSet::from([2, 4]));
        let given: Vec<_> = std::iter::from_fn(|| pool.allocate(Duration::ZERO)).collect();
        assert_eq!(given, [1, 3, 5, 6, 7, 8, 9]);
    }
}
