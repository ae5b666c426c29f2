//! The connection table: finding, inserting and taking out, over arrays that many processors change at once.
//!
//! `ebpf_abi::conn_word` has the layout and the rules. The eBPF programs and the agent run this same code, each on its
//! own view of the memory ([`ConnMemory`]).

use ebpf_abi::{
    BUCKET_WORDS, ConnKey, ConnTable, SLOTS_PER_WORD, conn_fill, conn_flag, conn_generation,
    conn_word,
};

use crate::{ConnState, Inserted, Ip, parse::protocol};

/// Connections that are looked at to find one that must give way to a new one.
const VICTIMS: u32 = 16;
/// How long a connection that was closed or reset is left alone, for its last packets.
const CLOSING_NS: u64 = 5_000_000_000;
/// No slot: this number is beyond every table.
pub const NO_SLOT: u32 = u32::MAX;

/// The arrays of one address family's table.
pub trait ConnMemory<A: Ip>: Sized {
    type Bucket<'a>: ConnWords
    where
        Self: 'a;

    /// `None` while the agent has not made the table ready.
    fn table(&self) -> Option<&ConnTable>;
    fn bucket(&self, index: u32) -> Option<Self::Bucket<'_>>;
    /// The fills of four buckets, see `conn_fill`; 0 if there is no such word.
    fn fill(&self, word: u32) -> u64;
    /// Adds to the fills, wrapping.
    fn add_fill(&self, word: u32, amount: u64);
    /// Whether the slot holds a connection whose tuple in this direction is `key`.
    fn holds(&self, slot: u32, reply: bool, key: &ConnKey<A>) -> bool;
    /// The hash of a slot's tuple in this direction.
    fn hash(&self, slot: u32, reply: bool, seed: u64) -> u64;
    /// See `Conn::generation`; 0 if there is no such slot.
    fn generation(&self, slot: u32) -> u32;
    /// Of a slot that is the caller's own.
    fn set_generation(&self, slot: u32, generation: u32);
    /// Replaces the generation; `false` if `old` was not there.
    fn replace_generation(&self, slot: u32, old: u32, new: u32) -> bool;
    /// Makes an idle connection held, for the packet that found it. `false` if it has ended.
    #[inline(always)]
    fn wake(&self, slot: u32, idle: u32) -> bool {
        wake(self, slot, idle)
    }
    fn state(&self, slot: u32) -> Option<ConnState>;
    /// Writes all of a slot but its generation.
    fn write(&self, slot: u32, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState);

    /// Bits of 64 slots, the lowest is the first one's; all set if there is no such word.
    fn used(&self, word: u32) -> u64;
    /// Sets bits; returns what was there.
    fn set_used(&self, word: u32, bits: u64) -> u64;
    fn clear_used(&self, word: u32, bits: u64);
    /// A slot that was free and is the caller's now: [`claim_in`] on the words of the map, from where one was found
    /// last, until it finds one. [`NO_SLOT`] if none is free.
    fn claim(&self) -> u32;
    /// The next slot to look at when a connection must give way.
    fn next_victim(&self) -> u32;
}

/// The words of a bucket, `at` below [`BUCKET_WORDS`].
pub trait ConnWords {
    fn word(&self, at: u32) -> u32;
    /// The words at an even place and the next one, in any order.
    fn pair(&self, at: u32) -> u64;
    /// `false` if `old` was not there.
    fn replace(&self, at: u32, old: u32, new: u32) -> bool;
}

/// The word of the connection that this tuple belongs to, or [`conn_word::NONE`].
#[inline(always)]
pub fn find<A: Ip, M: ConnMemory<A>>(memory: &M, key: &ConnKey<A>) -> u32 {
    let Some((bucket, hash)) = place(memory, key) else {
        return conn_word::NONE;
    };
    let word = find_in(memory, bucket, hash, key);
    if word != conn_word::NONE {
        let slot = conn_word::slot(word);
        let generation = memory.generation(slot);
        let is_idle = conn_generation::of(generation) == conn_generation::IDLE;
        if is_idle && !memory.wake(slot, generation) {
            return conn_word::NONE;
        }
    }
    word
}

/// Inserts the connection whose packets arrive with `key`, their answers with `reply`. It is found by the answers first: a
/// packet that finds it can rely on its answer being translated. Nothing stays behind when it fails.
#[inline(always)]
pub fn insert<A: Ip, M: ConnMemory<A>>(
    memory: &M,
    key: &ConnKey<A>,
    reply: &ConnKey<A>,
    state: &ConnState,
) -> Inserted {
    let mut slot = memory.claim();
    if slot == NO_SLOT {
        slot = displace(memory, state.last_seen_ns);
    }
    if slot == NO_SLOT {
        return Inserted::Full;
    }
    memory.write(slot, key, reply, state);
    let free = memory.generation(slot);
    memory.set_generation(slot, free | conn_generation::ENTERING);
    let mut code = publish(memory, reply, slot, true);
    if code == PUBLISHED {
        code = publish(memory, key, slot, false);
        if code == PUBLISHED {
            memory.set_generation(slot, free | conn_generation::HELD);
            return Inserted::Done;
        }
        unpublish(memory, slot, true);
        if code == TAKEN {
            code = TRACKED;
        }
    }
    memory.set_generation(slot, conn_generation::next_free(free));
    give_back(memory, slot);
    match code {
        TAKEN => Inserted::ReplyTaken,
        TRACKED => Inserted::Tracked,
        _ => Inserted::Full,
    }
}

/// Takes out the connection that this tuple belongs to, in both directions.
#[inline(always)]
pub fn remove<A: Ip, M: ConnMemory<A>>(memory: &M, key: &ConnKey<A>) -> u32 {
    let word = find(memory, key);
    if word != conn_word::NONE {
        let slot = conn_word::slot(word);
        release(memory, slot, memory.generation(slot));
    }
    word
}

/// Marks the connection of this generation as one that is about to be ended for being idle. `false` if it is gone, or
/// marked already.
pub fn mark_idle<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32, generation: u32) -> bool {
    conn_generation::of(generation) == conn_generation::HELD
        && memory.replace_generation(slot, generation, conn_generation::idle(generation))
}

/// Takes the mark of an idle connection away. `false` if it has ended; another processor may have been faster.
#[inline(always)]
pub fn wake<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32, idle: u32) -> bool {
    let awake = conn_generation::awake(idle);
    memory.replace_generation(slot, idle, awake) || memory.generation(slot) == awake
}

/// Takes the connection of this generation out of its slot and gives the slot back. `false` if it is gone, or another
/// processor does it just now.
#[inline(always)]
pub fn release<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32, generation: u32) -> bool {
    let ended = end(memory, slot, generation);
    if ended {
        give_back(memory, slot);
    }
    ended
}

#[inline(always)]
fn give_back<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32) {
    memory.clear_used(slot / SLOTS_PER_WORD, 1 << (slot % SLOTS_PER_WORD));
}

/// Claims a free slot among those of a word of the map; [`NO_SLOT`] if there is none.
#[inline(always)]
pub fn claim_in<A: Ip, M: ConnMemory<A>>(memory: &M, word: u32) -> u32 {
    let used = memory.used(word);
    if used == u64::MAX {
        return NO_SLOT;
    }
    let bit = (!used).trailing_zeros();
    // Another processor may have been faster: there are other words.
    if memory.set_used(word, 1 << bit) & (1 << bit) != 0 {
        return NO_SLOT;
    }
    word * SLOTS_PER_WORD + bit
}

/// Results of [`publish`]: numbers, as the verifier takes enums apart that travel in registers.
const PUBLISHED: u32 = 0;
const TAKEN: u32 = 1;
const BUCKET_FULL: u32 = 2;
/// The connection itself is there already.
const TRACKED: u32 = 3;

/// Puts the word of a slot's direction into the index.
///
/// The first free place is taken, and whoever wants the same tuple wants the same place: it fails there and finds the
/// other's word.
#[inline(never)]
fn publish<A: Ip, M: ConnMemory<A>>(memory: &M, key: &ConnKey<A>, slot: u32, reply: bool) -> u32 {
    let Some((index, hash)) = place(memory, key) else {
        return BUCKET_FULL;
    };
    if find_in(memory, index, hash, key) != conn_word::NONE {
        return TAKEN;
    }
    add_fill(memory, index, 1);
    let code = enter(memory, index, hash, key, conn_word::new(hash, slot, reply));
    if code != PUBLISHED {
        add_fill(memory, index, -1);
    }
    code
}

#[inline(always)]
fn enter<A: Ip, M: ConnMemory<A>>(
    memory: &M,
    index: u32,
    hash: u64,
    key: &ConnKey<A>,
    new: u32,
) -> u32 {
    let Some(bucket) = memory.bucket(index) else {
        return BUCKET_FULL;
    };
    for at in 0..BUCKET_WORDS {
        if bucket.word(at) == conn_word::NONE && bucket.replace(at, conn_word::NONE, new) {
            return PUBLISHED;
        }
        if is_of(memory, bucket.word(at), hash, key) {
            return TAKEN;
        }
    }
    BUCKET_FULL
}

/// Makes room: ends a connection that was never established or is over, and leaves its slot to the caller.
#[inline(never)]
fn displace<A: Ip, M: ConnMemory<A>>(memory: &M, now_ns: u64) -> u32 {
    for _ in 0..VICTIMS {
        let slot = memory.next_victim();
        let generation = memory.generation(slot);
        let gives_way = memory
            .state(slot)
            .is_some_and(|state| gives_way(&state, now_ns));
        if gives_way && end(memory, slot, generation) {
            return slot;
        }
    }
    NO_SLOT
}

/// Whether a connection must give way to a new one when the table is full: one that nobody answered, one of TCP that
/// its client did not confirm, one that is closed. What is established never does, so that forged packets, which get no
/// further than this, cannot push it out.
#[inline(always)]
pub fn gives_way(state: &ConnState, now_ns: u64) -> bool {
    let established = if state.protocol == protocol::TCP as u32 {
        conn_flag::CONFIRMED
    } else {
        conn_flag::ANSWERED
    };
    let over = state.has_ended() && now_ns.saturating_sub(state.last_seen_ns) > CLOSING_NS;
    state.flags & established == 0 || over
}

/// Ends the connection of this generation in a slot: takes it out of the index and leaves the slot used.
#[inline(always)]
fn end<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32, generation: u32) -> bool {
    let free = conn_generation::next_free(generation);
    if generation & conn_generation::HELD == 0 || !memory.replace_generation(slot, generation, free)
    {
        return false;
    }
    unpublish(memory, slot, false);
    unpublish(memory, slot, true);
    true
}

/// Takes the word of a slot's direction out of the index, if it is there.
#[inline(never)]
fn unpublish<A: Ip, M: ConnMemory<A>>(memory: &M, slot: u32, reply: bool) -> u32 {
    let Some(table) = memory.table() else {
        return conn_word::NONE;
    };
    let hash = memory.hash(slot, reply, table.seed);
    let index = conn_word::bucket(hash, table.buckets);
    let Some(bucket) = memory.bucket(index) else {
        return conn_word::NONE;
    };
    let word = conn_word::new(hash, slot, reply);
    for at in 0..BUCKET_WORDS {
        if bucket.word(at) == word && bucket.replace(at, word, conn_word::NONE) {
            add_fill(memory, index, -1);
            return word;
        }
    }
    conn_word::NONE
}

#[inline(always)]
fn add_fill<A: Ip, M: ConnMemory<A>>(memory: &M, bucket: u32, amount: i64) {
    let amount = conn_fill::one(bucket).wrapping_mul(amount as u64);
    memory.add_fill(bucket / conn_fill::BUCKETS_PER_WORD, amount);
}

/// As [`find`]. Most words are free, so that looking at two at once saves half of the work.
#[inline(always)]
fn find_in<A: Ip, M: ConnMemory<A>>(memory: &M, index: u32, hash: u64, key: &ConnKey<A>) -> u32 {
    let fill = memory.fill(index / conn_fill::BUCKETS_PER_WORD);
    if conn_fill::of(fill, index) == 0 {
        return conn_word::NONE;
    }
    let Some(bucket) = memory.bucket(index) else {
        return conn_word::NONE;
    };
    for at in (0..BUCKET_WORDS).step_by(2) {
        let pair = bucket.pair(at);
        if pair == 0 {
            continue;
        }
        for word in [pair as u32, (pair >> 32) as u32] {
            if is_of(memory, word, hash, key) {
                return word;
            }
        }
    }
    conn_word::NONE
}

/// The bucket in which a tuple is looked for, and its hash.
#[inline(always)]
fn place<A: Ip, M: ConnMemory<A>>(memory: &M, key: &ConnKey<A>) -> Option<(u32, u64)> {
    let table = memory.table()?;
    let hash = key.hash(table.seed);
    Some((conn_word::bucket(hash, table.buckets), hash))
}

#[inline(always)]
fn is_of<A: Ip, M: ConnMemory<A>>(memory: &M, word: u32, hash: u64, key: &ConnKey<A>) -> bool {
    conn_word::may_be(word, hash) && is_held(memory, word, key)
}

#[inline(always)]
fn is_held<A: Ip, M: ConnMemory<A>>(memory: &M, word: u32, key: &ConnKey<A>) -> bool {
    memory.holds(conn_word::slot(word), conn_word::is_reply(word), key)
}
