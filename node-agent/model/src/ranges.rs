//! Ranges of `slot_v1`: the smallest free one that fits, neighbours merged, rested before they are used again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::QUARANTINE;

/// A range of slots. A length of 0 has the base 0.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct SlotRange {
    pub(crate) base: u32,
    pub(crate) len: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct RangePool {
    /// Base to length.
    free: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    resting: VecDeque<(Duration, SlotRange)>,
}

impl RangePool {
    pub(crate) fn new(size: usize) -> Self {
        let mut pool = Self::default();
        pool.insert(SlotRange {
            base: 0,
            len: u32::try_from(size).unwrap_or(u32::MAX),
        });
        pool
    }

    /// Takes exactly this range; false if any part of it is not free.
    pub(crate) fn claim(&mut self, range: SlotRange) -> bool {
        if range.len == 0 {
            return true;
        }
        let Some((&base, &len)) = self.free.range(..=range.base).next_back() else {
            return false;
        };
        let (Some(range_end), Some(end)) =
            (range.base.checked_add(range.len), base.checked_add(len))
        else {
            return false;
        };
        if range_end > end {
            return false;
        }
        self.remove(SlotRange { base, len });
        self.insert(SlotRange {
            base,
            len: range.base - base,
        });
        self.insert(SlotRange {
            base: range_end,
            len: end - range_end,
        });
        true
    }

    /// Adds what lies behind a range that was given, up to this length; false if any part of that is not free.
    pub(crate) fn extend(&mut self, range: &mut SlotRange, len: u32, now: Duration) -> bool {
        self.wake(now);
        let behind = SlotRange {
            base: range.base.saturating_add(range.len),
            len: len.saturating_sub(range.len),
        };
        let free = self.claim(behind);
        if free {
            range.len = range.len.max(len);
        }
        free
    }

    pub(crate) fn allocate(&mut self, len: u32, now: Duration) -> Option<SlotRange> {
        self.wake(now);
        if len == 0 {
            return Some(SlotRange::default());
        }
        let &(free_len, base) = self.by_len.range((len, 0)..).next()?;
        self.remove(SlotRange {
            base,
            len: free_len,
        });
        self.insert(SlotRange {
            base: base + len,
            len: free_len - len,
        });
        Some(SlotRange { base, len })
    }

    pub(crate) fn release(&mut self, range: SlotRange, now: Duration) {
        if range.len > 0 {
            self.resting.push_back((now + QUARANTINE, range));
        }
    }

    fn wake(&mut self, now: Duration) {
        while let Some(&(until, range)) = self.resting.front() {
            if until > now {
                break;
            }
            self.resting.pop_front();
            self.merge(range);
        }
    }

    fn merge(&mut self, mut range: SlotRange) {
        if let Some((&base, &len)) = self.free.range(..range.base).next_back()
            && base + len == range.base
        {
            self.remove(SlotRange { base, len });
            range = SlotRange {
                base,
                len: len + range.len,
            };
        }
        let end = range.base + range.len;
        if let Some(&len) = self.free.get(&end) {
            self.remove(SlotRange { base: end, len });
            range.len += len;
        }
        self.insert(range);
    }

    fn insert(&mut self, range: SlotRange) {
        if range.len > 0 {
            self.free.insert(range.base, range.len);
            self.by_len.insert((range.len, range.base));
        }
    }

    fn remove(&mut self, range: SlotRange) {
        self.free.remove(&range.base);
        self.by_len.remove(&(range.len, range.base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_that_overlaps_another_is_refused() {
        let mut pool = RangePool::new(10);
        assert!(pool.claim(SlotRange { base: 3, len: 4 }));
        assert!(!pool.claim(SlotRange { base: 6, len: 2 }));
        assert!(!pool.claim(SlotRange { base: 9, len: 2 }));
        assert!(!pool.claim(SlotRange {
            base: u32::MAX,
            len: 2
        }));
        assert!(pool.claim(SlotRange { base: 7, len: 3 }));
    }

    #[test]
    fn a_range_grows_into_what_is_free_behind_it() {
        let mut pool = RangePool::new(10);
        let mut first = SlotRange { base: 0, len: 4 };
        assert!(pool.claim(first));
        assert!(pool.extend(&mut first, 6, Duration::ZERO));
        assert_eq!(first, SlotRange { base: 0, len: 6 });
        assert!(pool.claim(SlotRange { base: 6, len: 2 }));
        assert!(!pool.extend(&mut first, 7, Duration::ZERO));
        assert!(pool.extend(&mut first, 5, Duration::ZERO), "it is longer");
        assert_eq!(first, SlotRange { base: 0, len: 6 });
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(steps in prop::collection::vec((0_u32..20, any::<bool>()), 1..200)) {
            const SIZE: u32 = 100;
            let mut pool = RangePool::new(SIZE as usize);
            let mut held: Vec<SlotRange> = Vec::new();
            let mut now = Duration::ZERO;
            for (len, release) in steps {
                now += QUARANTINE / 3;
                if release && !held.is_empty() {
                    pool.release(held.swap_remove(len as usize % held.len()), now);
                } else if let Some(range) = pool.allocate(len, now) {
                    prop_assert!(range.base + range.len <= SIZE);
                    for other in &held {
                        let apart = range.base + range.len <= other.base || other.base + other.len <= range.base;
                        prop_assert!(apart || range.len == 0 || other.len == 0);
                    }
                    held.push(range);
                }
            }
            for range in held.drain(..) {
                pool.release(range, now);
            }
            prop_assert_eq!(pool.allocate(SIZE, now + QUARANTINE), Some(SlotRange { base: 0, len: SIZE }));
        }
    }
}
