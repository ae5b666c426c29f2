//! The connection table in the kernel: arrays whose look-ups the verifier turns into plain arithmetic.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use ebpf_abi::{
    Addr4, Addr6, Conn, ConnBucket, ConnKey, ConnTable, conn_generation, conn_word, used_words_for,
};
use ebpf_packet::{
    ConnState, Entry, Inserted, Ip,
    conn_table::{self, ConnMemory, ConnWords, NO_SLOT},
};

use crate::{atomic, maps};

/// A connection's time is written at most this often.
const TIME_RESOLUTION_NS: u64 = 1_000_000_000;

/// The maps of the connection tables.
pub struct Memory;

/// A bucket of an index.
pub struct Bucket(*mut ConnBucket);

/// A connection that was found, by the tuple of one direction.
pub struct Found<A: Ip> {
    conn: *mut Conn<A>,
    word: u32,
}

/// A family's table. Its operations are global functions to the verifier, which looks at each of them once and not at
/// every place that calls it.
pub trait Records: Ip {
    fn record(slot: u32) -> Option<*mut Conn<Self>>;
    /// As [`conn_table::find`].
    fn find(key: &ConnKey<Self>) -> u32;
    /// As [`conn_table::insert`].
    fn insert(key: &ConnKey<Self>, reply: &ConnKey<Self>, state: &ConnState) -> Inserted;
    /// As [`conn_table::release`].
    fn release(slot: u32, generation: u32);
}

/// The connection that has this tuple in either direction.
#[inline(always)]
pub fn find<A: Records>(key: &ConnKey<A>) -> Option<Found<A>> {
    let word = A::find(key);
    if word == conn_word::NONE {
        return None;
    }
    Some(Found {
        conn: A::record(conn_word::slot(word))?,
        word,
    })
}

impl<A: Records> Entry<A> for Found<A> {
    #[inline(always)]
    fn is_reply(&self) -> bool {
        conn_word::is_reply(self.word)
    }

    #[inline(always)]
    fn answers(&self) -> &ConnKey<A> {
        // SAFETY: an array's element lives as long as the map; a torn read of one that another processor gives to
        // another connection at this moment is one packet of a connection that just ended.
        unsafe { key_of(self.conn, !self.is_reply()) }
    }

    #[inline(always)]
    fn state(&self) -> ConnState {
        // SAFETY: as in `answers`.
        unsafe { state_of(self.conn) }
    }

    #[inline(always)]
    fn record(&self, state: &ConnState, now_ns: u64, flags: u32) {
        if now_ns.wrapping_sub(state.last_seen_ns) >= TIME_RESOLUTION_NS {
            // SAFETY: as in `answers`; the word is aligned, so that it is written at once.
            unsafe { (&raw mut (*self.conn).last_seen_ns).write_volatile(now_ns) };
        }
        if flags & !state.flags != 0 {
            // SAFETY: as in `answers`; every processor changes the flags by atomic operations only.
            unsafe { atomic::or(&raw mut (*self.conn).flags, flags) };
        }
    }

    #[inline(always)]
    fn forget(&self) {
        // SAFETY: as in `answers`.
        let generation = unsafe { (&raw const (*self.conn).generation).read_volatile() };
        A::release(conn_word::slot(self.word), generation);
    }
}

/// # Safety
///
/// `conn` points to an element of the array.
#[inline(always)]
unsafe fn key_of<'a, A: Ip>(conn: *mut Conn<A>, reply: bool) -> &'a ConnKey<A> {
    // SAFETY: the caller's promise.
    unsafe {
        if reply {
            &(*conn).reply
        } else {
            &(*conn).original
        }
    }
}

/// # Safety
///
/// As for [`key_of`].
#[inline(always)]
unsafe fn state_of<A: Ip>(conn: *mut Conn<A>) -> ConnState {
    // SAFETY: the caller's promise.
    let conn = unsafe { &*conn };
    ConnState {
        last_seen_ns: conn.last_seen_ns,
        backend_id: conn.backend_id,
        backend_epoch: conn.backend_epoch,
        flags: conn.flags,
        protocol: conn.original.protocol.into(),
    }
}

impl ConnWords for Bucket {
    #[inline(always)]
    fn word(&self, at: u32) -> u32 {
        // SAFETY: an element of the array, `at` within it; read each time, since other processors write to it.
        unsafe { (&raw const (*self.0).words[at as usize]).read_volatile() }
    }

    #[inline(always)]
    fn pair(&self, at: u32) -> u64 {
        // SAFETY: as in `word`; a bucket is aligned to a line, so that two words from an even place on are a double word.
        unsafe {
            let word = &raw const (*self.0).words[at as usize];
            word.cast::<u64>().read_volatile()
        }
    }

    #[inline(always)]
    fn replace(&self, at: u32, old: u32, new: u32) -> bool {
        // SAFETY: as in `word`; every processor writes to it by atomic operations only.
        unsafe { atomic::compare_exchange(&raw mut (*self.0).words[at as usize], old, new) == old }
    }
}

/// What a walk over the map of used slots looks for and finds; the callback's context.
#[repr(C)]
struct Scan {
    start: u32,
    words: u32,
    slot: u32,
    pad: u32,
}

/// [`Inserted`] as a number.
const DONE: u32 = 0;
const REPLY_TAKEN: u32 = 1;
const TRACKED: u32 = 2;
const FULL: u32 = 3;

macro_rules! memory {
    ($addr:ty, $entry:literal, $conn:ident, $index:ident, $fill:ident, $used:ident, $find:ident, $insert:ident, $release:ident) => {
        impl Records for $addr {
            #[inline(always)]
            fn record(slot: u32) -> Option<*mut Conn<Self>> {
                maps::$conn.get_ptr_mut(slot)
            }

            #[inline(always)]
            fn find(key: &ConnKey<Self>) -> u32 {
                $find(key)
            }

            #[inline(always)]
            fn insert(key: &ConnKey<Self>, reply: &ConnKey<Self>, state: &ConnState) -> Inserted {
                match $insert(key, reply, state) {
                    DONE => Inserted::Done,
                    REPLY_TAKEN => Inserted::ReplyTaken,
                    TRACKED => Inserted::Tracked,
                    _ => Inserted::Full,
                }
            }

            #[inline(always)]
            fn release(slot: u32, generation: u32) {
                // Gone already is as good.
                let _ = $release(slot, generation);
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(key: *const ConnKey<$addr>) -> u32 {
            // SAFETY: null, or a tuple of the caller's.
            unsafe { key.as_ref() }.map_or(conn_word::NONE, |key| conn_table::find(&Memory, key))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $insert(
            key: *const ConnKey<$addr>,
            reply: *const ConnKey<$addr>,
            state: *const ConnState,
        ) -> u32 {
            // SAFETY: null, or the caller's.
            let arguments = unsafe { (key.as_ref(), reply.as_ref(), state.as_ref()) };
            let (Some(key), Some(reply), Some(state)) = arguments else {
                return FULL;
            };
            match conn_table::insert(&Memory, key, reply, state) {
                Inserted::Done => DONE,
                Inserted::ReplyTaken => REPLY_TAKEN,
                Inserted::Tracked => TRACKED,
                Inserted::Full => FULL,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $release(slot: u32, generation: u32) -> u32 {
            conn_table::release::<$addr, _>(&Memory, slot, generation) as u32
        }

        impl ConnMemory<$addr> for Memory {
            type Bucket<'a> = Bucket;

            #[inline(always)]
            fn table(&self) -> Option<&ConnTable> {
                maps::CONN_TABLE.get($entry)
            }

            #[inline(always)]
            fn bucket(&self, index: u32) -> Option<Bucket> {
                maps::$index.get_ptr_mut(index).map(Bucket)
            }

            #[inline(always)]
            fn fill(&self, word: u32) -> u64 {
                maps::$fill.get_ptr(word).map_or(0, |fill| {
                    // SAFETY: an element of the array.
                    unsafe { fill.read_volatile() }
                })
            }

            #[inline(always)]
            fn add_fill(&self, word: u32, amount: u64) {
                if let Some(fill) = maps::$fill.get_ptr_mut(word) {
                    // SAFETY: an element of the array, which every processor changes atomically.
                    unsafe { atomic::add64(fill, amount) };
                }
            }

            #[inline(always)]
            fn holds(&self, slot: u32, reply: bool, key: &ConnKey<$addr>) -> bool {
                let Some(conn) = <$addr>::record(slot) else {
                    return false;
                };
                // SAFETY: an element of the array.
                let (there, generation) = unsafe { (key_of(conn, reply), (*conn).generation) };
                there.is(key) && conn_generation::of(generation) != conn_generation::FREE
            }

            #[inline(always)]
            fn hash(&self, slot: u32, reply: bool, seed: u64) -> u64 {
                // SAFETY: an element of the array.
                <$addr>::record(slot).map_or(0, |conn| unsafe { key_of(conn, reply) }.hash(seed))
            }

            #[inline(always)]
            fn generation(&self, slot: u32) -> u32 {
                // SAFETY: an element of the array.
                <$addr>::record(slot).map_or(0, |conn| unsafe {
                    (&raw const (*conn).generation).read_volatile()
                })
            }

            #[inline(always)]
            fn set_generation(&self, slot: u32, generation: u32) {
                if let Some(conn) = <$addr>::record(slot) {
                    // SAFETY: an element of the array.
                    unsafe { (&raw mut (*conn).generation).write_volatile(generation) };
                }
            }

            #[inline(always)]
            fn replace_generation(&self, slot: u32, old: u32, new: u32) -> bool {
                <$addr>::record(slot).is_some_and(|conn| {
                    // SAFETY: an element of the array; who does not own the slot changes this word atomically.
                    unsafe {
                        let generation = &raw mut (*conn).generation;
                        atomic::compare_exchange(generation, old, new) == old
                    }
                })
            }

            #[inline(always)]
            fn state(&self, slot: u32) -> Option<ConnState> {
                // SAFETY: an element of the array.
                <$addr>::record(slot).map(|conn| unsafe { state_of(conn) })
            }

            #[inline(always)]
            fn write(
                &self,
                slot: u32,
                key: &ConnKey<$addr>,
                reply: &ConnKey<$addr>,
                state: &ConnState,
            ) {
                let Some(conn) = <$addr>::record(slot) else {
                    return;
                };
                // SAFETY: an element of the array, the caller's own while its generation is even.
                let conn = unsafe { &mut *conn };
                conn.last_seen_ns = state.last_seen_ns;
                conn.original = *key;
                conn.reply = *reply;
                conn.flags = state.flags;
                conn.backend_id = state.backend_id;
                conn.backend_epoch = state.backend_epoch;
            }

            #[inline(always)]
            fn used(&self, word: u32) -> u64 {
                maps::$used.get_ptr(word).map_or(u64::MAX, |used| {
                    // SAFETY: an element of the array.
                    unsafe { used.read_volatile() }
                })
            }

            #[inline(always)]
            fn set_used(&self, word: u32, bits: u64) -> u64 {
                maps::$used.get_ptr_mut(word).map_or(u64::MAX, |used| {
                    // SAFETY: an element of the array, which every processor changes atomically.
                    unsafe { atomic::fetch_or64(used, bits) }
                })
            }

            #[inline(always)]
            fn clear_used(&self, word: u32, bits: u64) {
                if let Some(used) = maps::$used.get_ptr_mut(word) {
                    // SAFETY: as in `set_used`.
                    unsafe { atomic::and64(used, !bits) };
                }
            }

            #[inline(always)]
            fn claim(&self) -> u32 {
                /// Ends the walk with 1.
                extern "C" fn look(step: u64, scan: *mut Scan) -> i64 {
                    // SAFETY: the context that `claim` hands over.
                    let scan = unsafe { &mut *scan };
                    let at = scan.start.wrapping_add(step as u32);
                    let Some(word) = at.checked_rem(scan.words) else {
                        return 1;
                    };
                    scan.slot = conn_table::claim_in::<$addr, _>(&Memory, word);
                    if scan.slot == NO_SLOT { 0 } else { 1 }
                }
                let Some(table) = maps::CONN_TABLE.get_ptr_mut($entry) else {
                    return NO_SLOT;
                };
                // SAFETY: an element of the array.
                let (cursor, words) = unsafe {
                    let cursor = &raw mut (*table).cursor;
                    (cursor, used_words_for((*table).conns))
                };
                // SAFETY: as above.
                let start = unsafe { cursor.read_volatile() };
                // Mostly there is one where there was one before.
                let slot = conn_table::claim_in::<$addr, _>(&Memory, start);
                if slot != NO_SLOT {
                    return slot;
                }
                let mut scan = Scan {
                    start,
                    words,
                    slot: NO_SLOT,
                    pad: 0,
                };
                let look = look as extern "C" fn(u64, *mut Scan) -> i64;
                // SAFETY: the callback takes what the helper gives it, and the context outlives the call.
                unsafe { bpf_loop(words, look as *mut c_void, (&raw mut scan).cast(), 0) };
                let word = scan.slot / ebpf_abi::SLOTS_PER_WORD;
                if scan.slot != NO_SLOT {
                    // SAFETY: as above.
                    unsafe { cursor.write_volatile(word) };
                }
                scan.slot
            }

            #[inline(always)]
            fn next_victim(&self) -> u32 {
                let Some(table) = maps::CONN_TABLE.get_ptr_mut($entry) else {
                    return NO_SLOT;
                };
                // SAFETY: an element of the array, whose word every processor changes atomically.
                unsafe {
                    let hand = atomic::fetch_add(&raw mut (*table).hand, 1);
                    hand.checked_rem((*table).conns).unwrap_or(NO_SLOT)
                }
            }
        }
    };
}

memory!(
    Addr4,
    0,
    CONN4,
    CONN_INDEX4,
    CONN_FILL4,
    CONN_USED4,
    conn_find4,
    conn_insert4,
    conn_release4
);
memory!(
    Addr6,
    1,
    CONN6,
    CONN_INDEX6,
    CONN_FILL6,
    CONN_USED6,
    conn_find6,
    conn_insert6,
    conn_release6
);
