//! How a connection is found: `conn_table_v1`, `conn_index4_v1`, `conn_fill4_v1`, `conn_used4_v1`, and for IPv6 as well.
//!
//! A connection has a slot in the array of records, and in the index one word for each direction, in the bucket that
//! the hash of that direction's tuple names. A bucket is one cache line, and a word holds enough of the hash to tell
//! nearly always without the record whether it is meant: so a packet that belongs to no connection costs one line, a
//! packet that does costs one more. Of the buckets that are empty a small array knows, which stays in the processor's
//! cache: a node that translates nothing hardly pays for the table.
//!
//! The programs on all CPUs and the agent (which maps the arrays into its memory) change the table without a lock:
//! - A slot is claimed and given back by its bit in `conn_used`.
//! - A record is written whole before a word of the index points to it. Its `generation` says what it holds.
//! - The agent marks a connection as idle before it ends it, and waits: a packet that finds it takes the mark away, so
//!   that none is translated by a connection which is gone when the answer comes.
//! - Who moves the generation from held or idle to free takes the connection out of the index and gives the slot back, nobody
//!   else.
//! - A bucket's fill is raised before a word comes, and lowered after it went: never too low, so 0 is sure.
//! - A word is put into the first free place of its bucket by compare-and-swap, and the first one that is met counts:
//!   two that track the same connection at once meet each other there.

use crate::Plain;

/// Words of a [`ConnBucket`].
pub const BUCKET_WORDS: u32 = 16;
/// Slots in a word of `conn_used4_v1` and `conn_used6_v1`.
pub const SLOTS_PER_WORD: u32 = 64;

/// Value of `conn_index4_v1` and `conn_index6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(64))]
pub struct ConnBucket {
    /// See [`conn_word`]; 0 is free.
    pub words: [u32; BUCKET_WORDS as usize],
}

// SAFETY: words that fill the alignment.
unsafe impl Plain for ConnBucket {}

/// Value of `conn_table_v1`, an array whose entry 0 is of IPv4 and 1 of IPv6. Written by the agent when the maps are
/// new, but for the last line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(64))]
pub struct ConnTable {
    /// Of the hash, so that nobody outside can tell which tuples meet in a bucket. 0: the table is not ready.
    pub seed: u64,
    /// Entries of `conn4_v2` or `conn6_v2`, a multiple of [`SLOTS_PER_WORD`].
    pub conns: u32,
    /// Entries of `conn_index4_v1` or `conn_index6_v1`.
    pub buckets: u32,
    /// What follows changes with every new connection and must not lie in the line that every packet reads.
    pub pad: [u32; 12],
    /// The word of `conn_used` where a free slot was found last.
    pub cursor: u32,
    /// The slot that is looked at next when a connection must give way.
    pub hand: u32,
    pub pad2: [u32; 14],
}

// SAFETY: a double word and words, which fill two lines.
unsafe impl Plain for ConnTable {}

impl ConnTable {
    /// A table of this many connections, which [`ConnTable::fits`].
    pub const fn new(seed: u64, conns: u32) -> Self {
        Self {
            seed,
            conns,
            buckets: buckets_for(conns),
            pad: [0; 12],
            cursor: 0,
            hand: 0,
            pad2: [0; 14],
        }
    }

    /// Whether a table can have this many connections.
    pub const fn fits(conns: u32) -> bool {
        conns > 0 && conns.is_multiple_of(SLOTS_PER_WORD) && conns <= conn_word::MAX_CONNS
    }
}

/// Buckets of the index of so many connections: a full table fills a quarter of the words, so that there is room in
/// practically every bucket (of a million buckets with four words in use on average, one has more than 16).
pub const fn buckets_for(conns: u32) -> u32 {
    conns * 8 / BUCKET_WORDS
}

/// Words of the fills of the buckets of so many connections.
pub const fn fill_words_for(conns: u32) -> u32 {
    buckets_for(conns) / conn_fill::BUCKETS_PER_WORD
}

/// Value of `conn_fill4_v1` and `conn_fill6_v1`: how many words four buckets have in use, 16 bits for each, the lowest
/// for the first: far more than a bucket has words and a machine processors, so that no sum runs over.
pub mod conn_fill {
    pub const BUCKETS_PER_WORD: u32 = 4;

    /// One of this bucket.
    #[inline(always)]
    pub const fn one(bucket: u32) -> u64 {
        1 << shift(bucket)
    }

    /// The fill of this bucket.
    #[inline(always)]
    pub const fn of(word: u64, bucket: u32) -> u16 {
        (word >> shift(bucket)) as u16
    }

    const fn shift(bucket: u32) -> u32 {
        bucket % BUCKETS_PER_WORD * 16
    }
}

/// Words of the map of used slots.
pub const fn used_words_for(conns: u32) -> u32 {
    conns / SLOTS_PER_WORD
}

/// A word of the index: bit 31 is set, 30 to 21 are of the hash, 20 is set for the direction of the answers, 19 to 0
/// are the slot.
pub mod conn_word {
    pub const NONE: u32 = 0;
    pub const MAX_CONNS: u32 = 1 << SLOT_BITS;

    const SLOT_BITS: u32 = 20;
    const REPLY: u32 = 1 << SLOT_BITS;
    const TAG_SHIFT: u32 = SLOT_BITS + 1;
    const USED: u32 = 1 << 31;

    #[inline(always)]
    pub const fn new(hash: u64, slot: u32, reply: bool) -> u32 {
        tag(hash) | if reply { REPLY } else { 0 } | slot
    }

    /// Whether the word may stand for a tuple with this hash.
    #[inline(always)]
    pub const fn may_be(word: u32, hash: u64) -> bool {
        word >> TAG_SHIFT == tag(hash) >> TAG_SHIFT
    }

    #[inline(always)]
    pub const fn slot(word: u32) -> u32 {
        word & (MAX_CONNS - 1)
    }

    #[inline(always)]
    pub const fn is_reply(word: u32) -> bool {
        word & REPLY != 0
    }

    /// The bucket of a tuple with this hash.
    #[inline(always)]
    pub const fn bucket(hash: u64, buckets: u32) -> u32 {
        (((hash >> 32) * buckets as u64) >> 32) as u32
    }

    #[inline(always)]
    const fn tag(hash: u64) -> u32 {
        USED | (hash as u32) << TAG_SHIFT
    }
}
