//! Seats, and queues for those who find none.
//!
//! Each priority level has a number of seats. Who finds none waits in one of the level's queues, and which one follows
//! from the flow that the request belongs to: a flow is dealt a hand of queues and takes the shortest (shuffle
//! sharding), so that one that sends much fills its own hand and leaves the others' alone. Among the queues the one
//! whose requests have had the least seat-seconds is next (start-time fair queuing: Goyal, Vin and Cheng, 1996).
//! What a level may lend and does not use, others take; it has its nominal seats back as fast as requests end.
//!
//! No clock and no waiting: who enters gives what is handed back when it is its turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The seconds that a request is taken to hold its seats until it is known.
const GUESS: f64 = 0.003;

/// What a priority level has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seats of its own.
    pub nominal: u32,
    /// Of these, how many others may have while they are free.
    pub lendable: u32,
    /// Seats at most, with those of others.
    pub most: u32,
    /// `None`: who finds no seat is refused.
    pub queuing: Option<Queuing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    /// How many queues a flow may use.
    pub hand: usize,
    /// Requests that may wait in one queue.
    pub length: usize,
}

/// All priority levels; `T` is what waits.
#[derive(Debug)]
pub struct Levels<T> {
    levels: BTreeMap<Arc<str>, Level<T>>,
    next_id: u64,
}

#[derive(Debug)]
struct Level<T> {
    limits: Limits,
    /// Seats that are taken.
    executing: u32,
    queues: Vec<Queue<T>>,
    /// Requests in all queues.
    waiting: usize,
    /// The start tag of the request that was let in last.
    virtual_time: f64,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    /// Seat-seconds that its requests had, counted from a common zero.
    next_start: f64,
}

#[derive(Debug)]
struct Waiting<T> {
    id: u64,
    width: u32,
    who: T,
}

/// Seats that somebody has.
#[derive(Clone, Debug)]
pub struct Place {
    level: Arc<str>,
    queue: usize,
    width: u32,
}

/// Where somebody waits.
#[derive(Clone, Debug)]
pub struct Ticket {
    level: Arc<str>,
    id: u64,
}

/// What becomes of somebody who enters.
#[derive(Debug)]
pub enum Entry<T> {
    /// Go on at once.
    Seated(Place, T),
    Queued(Ticket),
    /// The words are those of Kubernetes' metric.
    Refused(&'static str),
}

impl Place {
    pub fn level(&self) -> &Arc<str> {
        &self.level
    }

    /// In seats.
    pub fn width(&self) -> u32 {
        self.width
    }
}

impl<T> Default for Levels<T> {
    fn default() -> Self {
        Self {
            levels: BTreeMap::new(),
            next_id: 0,
        }
    }
}

impl<T> Levels<T> {
    /// Takes other limits over. Who sits or waits stays; a level that is no longer wanted goes with its last request.
    pub fn configure(&mut self, wanted: &BTreeMap<Arc<str>, Limits>) {
        for (name, limits) in wanted {
            match self.levels.get_mut(name) {
                Some(level) => level.configure(limits.clone()),
                None => {
                    let level = Level::new(limits.clone());
                    self.levels.insert(name.clone(), level);
                }
            }
        }
        self.levels
            .retain(|name, level| wanted.contains_key(name) || !level.is_idle());
    }

    /// Seats that are taken in a level.
    #[cfg(test)]
    pub fn executing(&self, level: &str) -> u32 {
        self.levels.get(level).map_or(0, |level| level.executing)
    }

    /// Somebody of `flow` wants `width` seats.
    pub fn enter(&mut self, name: &Arc<str>, flow: u64, width: u32, who: T) -> Entry<T> {
        let (spare, borrowed) = self.loans(name);
        let Some(level) = self.levels.get_mut(name) else {
            return Entry::Refused("concurrency-limit");
        };
        let width = width.clamp(1, level.limits.nominal.max(1));
        let queue = level.choose(flow);
        if level.waiting == 0 && level.has_room(width, spare, borrowed) {
            level.seat(queue, width);
            let place = Place {
                level: name.clone(),
                queue,
                width,
            };
            return Entry::Seated(place, who);
        }
        let Some(queuing) = &level.limits.queuing else {
            return Entry::Refused("concurrency-limit");
        };
        if level.queues[queue].waiting.len() >= queuing.length {
            return Entry::Refused("queue-full");
        }
        self.next_id += 1;
        let id = self.next_id;
        let virtual_time = level.virtual_time;
        let line = &mut level.queues[queue];
        if line.waiting.is_empty() {
            // Who was away saves nothing up.
            line.next_start = line.next_start.max(virtual_time);
        }
        line.waiting.push_back(Waiting { id, width, who });
        level.waiting += 1;
        Entry::Queued(Ticket {
            level: name.clone(),
            id,
        })
    }

    /// Somebody no longer waits.
    pub fn give_up(&mut self, ticket: &Ticket) {
        if let Some(level) = self.levels.get_mut(&ticket.level) {
            for queue in &mut level.queues {
                let before = queue.waiting.len();
                queue.waiting.retain(|w| w.id != ticket.id);
                level.waiting -= before - queue.waiting.len();
            }
        }
    }

    /// Seats become free after `took` seconds.
    pub fn leave(&mut self, place: &Place, took: f64) {
        if let Some(level) = self.levels.get_mut(&place.level) {
            level.executing = level.executing.saturating_sub(place.width);
            if let Some(queue) = level.queues.get_mut(place.queue) {
                queue.next_start += f64::from(place.width) * (took - GUESS);
            }
        }
    }

    /// Those whose turn it is.
    pub fn start(&mut self) -> Vec<(Place, T)> {
        let mut starting = Vec::new();
        if self.levels.values().all(|level| level.waiting == 0) {
            return starting;
        }
        let names: Vec<Arc<str>> = self.levels.keys().cloned().collect();
        // Everybody's own seats first, then what is lent.
        for own in [true, false] {
            for name in &names {
                while let Some(next) = self.next_of(name, own) {
                    starting.push(next);
                }
            }
        }
        starting
    }

    fn next_of(&mut self, name: &Arc<str>, own: bool) -> Option<(Place, T)> {
        let (spare, borrowed) = match own {
            true => (0, 0),
            false => self.loans(name),
        };
        let level = self.levels.get_mut(name)?;
        let queue = level.fairest()?;
        let width = level.queues[queue].waiting.front()?.width;
        if !level.has_room(width, spare, borrowed) {
            return None;
        }
        let next = level.queues[queue].waiting.pop_front()?;
        level.waiting -= 1;
        level.seat(queue, width);
        let place = Place {
            level: name.clone(),
            queue,
            width,
        };
        Some((place, next.who))
    }

    /// Free seats that others than `name` lend, and how many are borrowed now.
    fn loans(&self, name: &Arc<str>) -> (u32, u32) {
        let mut spare = 0;
        let mut borrowed = 0;
        for (other, level) in &self.levels {
            let limits = &level.limits;
            borrowed += level.executing.saturating_sub(limits.nominal);
            if other != name {
                let free = limits.nominal.saturating_sub(level.executing);
                spare += free.min(limits.lendable);
            }
        }
        (spare, borrowed)
    }
}

impl<T> Level<T> {
    fn new(limits: Limits) -> Self {
        let count = limits.queuing.as_ref().map_or(1, |q| q.queues.max(1));
        let mut queues = Vec::new();
        queues.resize_with(count, Queue::default);
        Self {
            limits,
            executing: 0,
            queues,
            waiting: 0,
            virtual_time: 0.0,
        }
    }

    fn configure(&mut self, limits: Limits) {
        if limits == self.limits {
            return;
        }
        let new = Self::new(limits);
        let old = std::mem::replace(&mut self.queues, new.queues);
        self.limits = new.limits;
        for (at, queue) in old.into_iter().enumerate() {
            let count = self.queues.len();
            let into = &mut self.queues[at % count];
            into.next_start = into.next_start.max(queue.next_start);
            into.waiting.extend(queue.waiting);
        }
    }

    fn is_idle(&self) -> bool {
        self.executing == 0 && self.waiting == 0
    }

    fn has_room(&self, width: u32, spare: u32, borrowed: u32) -> bool {
        let after = self.executing + width;
        let limits = &self.limits;
        if after <= limits.nominal {
            return true;
        }
        let more = after - limits.nominal.max(self.executing);
        after <= limits.most && borrowed + more <= spare
    }

    fn seat(&mut self, queue: usize, width: u32) {
        self.executing += width;
        let queue = &mut self.queues[queue];
        let start = queue.next_start.max(self.virtual_time);
        self.virtual_time = start;
        queue.next_start = start + f64::from(width) * GUESS;
    }

    /// The queue that a request of `flow` goes to: the shortest of its hand, the one that had least among equals.
    fn choose(&self, flow: u64) -> usize {
        if self.waiting == 0 {
            // All are equally short: the first of the hand.
            let count = self.queues.len() as u64;
            return usize::try_from(flow % count).unwrap_or(0);
        }
        let hand = self.limits.queuing.as_ref().map_or(1, |q| q.hand);
        let hand = deal(flow, self.queues.len(), hand);
        let burden = |at: &usize| {
            let queue = &self.queues[*at];
            let seats: u32 = queue.waiting.iter().map(|w| w.width).sum();
            (seats, queue.next_start)
        };
        let least = hand.into_iter().min_by(|a, b| {
            let (a, b) = (burden(a), burden(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        least.unwrap_or(0)
    }

    /// The queue that is next.
    fn fairest(&self) -> Option<usize> {
        let waiting = self.queues.iter().enumerate();
        waiting
            .filter(|(_, queue)| !queue.waiting.is_empty())
            .min_by(|(_, a), (_, b)| a.next_start.total_cmp(&b.next_start))
            .map(|(at, _)| at)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            next_start: 0.0,
        }
    }
}

/// `hand` different numbers below `deck`, the same for the same `flow`.
fn deal(flow: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut rest = flow;
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for taken in 0..hand.min(deck) {
        let left = (deck - taken) as u64;
        let mut card = usize::try_from(rest % left).unwrap_or(0);
        rest /= left;
        // The card counts those that are still in the deck.
        let mut at = 0;
        while at < dealt.len() && dealt[at] <= card {
            card += 1;
            at += 1;
        }
        dealt.insert(at, card);
    }
    dealt
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
