//! Where the slots of a service lie: in their range as long as few of them change, else in another one.
//!
//! A visible slot may be written only if clients see nothing half done. A write of one slot replaces one backend by
//! another at once. So a set of which one backend changes, or few of many, is changed in place: what is new is written
//! over what is gone; or beyond the end, before the service's entry says that there is more; and what comes last is
//! written into a gap, before it says that there is less. Whenever a client looks, every slot that it may take holds a
//! backend of the set before or of the set after. A set that differs more is written beside the old one, and the
//! service's entry switches: that costs no more than some slots for each that changed.

use std::time::Duration;

use crate::Applied;
use crate::applied::PlacedSet;
use crate::ranges::SlotRange;
use crate::turns::{Changes, Turns};

/// Of so many backends one may change in place, where more than one changes.
const FEW: usize = 8;
/// A range with so many slots for each that is used is given up, unless it is short.
const WASTE: u32 = 4;
const SHORT: u32 = 64;

impl Applied {
    /// Puts these turns in the place of the set's; false, and nothing has changed, if there are no slots for them.
    /// `in_place`: programs read the slots before and after in the same way.
    pub(crate) fn place_turns(
        &mut self,
        set: &mut PlacedSet,
        next: Turns,
        changes: &Changes,
        in_place: bool,
        now: Duration,
    ) -> bool {
        let (was, len) = (set.turns.len(), next.len());
        if was == len && changes.slots == 0 && next.listed() == set.turns.listed() {
            set.turns = next;
            return true;
        }
        let wasteful = set.range.len > SHORT && set.range.len / WASTE > len;
        let in_place = in_place && !wasteful && was > 0 && len > 0;
        if !(in_place && few(&set.turns, &next, changes) && self.has_room(&mut set.range, len, now))
        {
            let Some(range) = self.allocate(&next, now) else {
                return false;
            };
            self.slot_ranges.release(set.range, now);
            set.range = range;
        }
        self.touched.services.insert(set.id);
        set.turns = next;
        true
    }

    fn has_room(&mut self, range: &mut SlotRange, len: u32, now: Duration) -> bool {
        len <= range.len
            || self.slot_ranges.extend(range, with_reserve(len), now)
            || self.slot_ranges.extend(range, len, now)
    }

    fn allocate(&mut self, turns: &Turns, now: Duration) -> Option<SlotRange> {
        let len = turns.len();
        let ranges = &mut self.slot_ranges;
        let reserved = match turns.is_plain() {
            true => ranges.allocate(with_reserve(len), now),
            false => None,
        };
        reserved.or_else(|| ranges.allocate(len, now))
    }
}

/// Whether so little changes that clients may meet what lies between. Backends count, not slots: two backends of unequal
/// weight have many. Where a slot that is seen changes and their number too, clients meet the one change without the
/// other: that leaves whole sets only if every backend has one slot.
fn few(before: &Turns, next: &Turns, changes: &Changes) -> bool {
    match changes.count() {
        0 | 1 => {
            let plain = before.is_plain() && next.is_plain();
            plain || changes.slots == 0 || before.len() == next.len()
        }
        count => count * FEW <= before.ids.len().min(next.ids.len()),
    }
}

/// A quarter more: a set that grows one by one is written anew so seldom that each costs a few slots. Short ones are
/// written anew, for they are many.
fn with_reserve(len: u32) -> u32 {
    match len / 4 {
        0 | 1 => len,
        quarter => len.saturating_add(quarter),
    }
}
