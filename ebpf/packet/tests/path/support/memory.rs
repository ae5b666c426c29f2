//! The memory of a connection table, as the programs have it in their maps.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use ebpf_abi::{
    BUCKET_WORDS, Conn, ConnKey, ConnTable, SLOTS_PER_WORD, buckets_for, conn_fill,
    conn_generation, fill_words_for, used_words_for,
};
use ebpf_packet::{
    ConnState, Ip,
    conn_table::{self, ConnMemory, ConnWords, NO_SLOT},
};

type Words = [AtomicU32; BUCKET_WORDS as usize];

pub struct Memory<A: Ip> {
    table: ConnTable,
    conns: Vec<Mutex<Conn<A>>>,
    generations: Vec<AtomicU32>,
    index: Vec<Words>,
    fills: Vec<AtomicU64>,
    used: Vec<AtomicU64>,
    cursor: AtomicU32,
    hand: AtomicU32,
}

pub struct Bucket<'a>(&'a Words);

impl<A: Ip> Memory<A> {
    pub fn new(conns: u32) -> Self {
        assert!(ConnTable::fits(conns));
        let many = |count: u32| 0..count;
        Self {
            table: ConnTable::new(0x1234_5678_9abc_def1, conns),
            conns: many(conns).map(|_| Mutex::default()).collect(),
            generations: many(conns).map(|_| AtomicU32::default()).collect(),
            fills: many(fill_words_for(conns))
                .map(|_| AtomicU64::default())
                .collect(),
            index: many(buckets_for(conns)).map(|_| Words::default()).collect(),
            used: many(used_words_for(conns))
                .map(|_| AtomicU64::default())
                .collect(),
            cursor: AtomicU32::default(),
            hand: AtomicU32::default(),
        }
    }

    /// A table in which only this many slots can be had.
    pub fn limited(free: u32) -> Self {
        let memory = Self::new(SLOTS_PER_WORD);
        memory.used[0].store(u64::MAX << free, SeqCst);
        memory
    }

    pub fn conn(&self, slot: u32) -> Conn<A> {
        *self.conns[slot as usize]
            .lock()
            .expect("no test panics with it")
    }

    fn key(&self, slot: u32, reply: bool) -> ConnKey<A> {
        let conn = self.conn(slot);
        if reply { conn.reply } else { conn.original }
    }

    pub fn change(&self, slot: u32, change: impl FnOnce(&mut Conn<A>)) {
        change(
            &mut self.conns[slot as usize]
                .lock()
                .expect("no test panics with it"),
        );
    }

    /// The connections, by what says that they hold.
    pub fn count(&self) -> usize {
        let holds = |generation: &&AtomicU32| {
            matches!(
                conn_generation::of(generation.load(SeqCst)),
                conn_generation::HELD | conn_generation::IDLE
            )
        };
        self.generations.iter().filter(holds).count()
    }

    /// Words of the index that are in use, two a connection.
    pub fn index_words(&self) -> usize {
        let words = self.index.iter().flatten();
        words.filter(|word| word.load(SeqCst) != 0).count()
    }

    /// The sum of the fills that the buckets have.
    pub fn fill_sum(&self) -> usize {
        let of = |bucket| conn_fill::of(self.fill(bucket / conn_fill::BUCKETS_PER_WORD), bucket);
        (0..self.table.buckets)
            .map(|bucket| usize::from(of(bucket)))
            .sum()
    }

    pub fn used_slots(&self) -> u32 {
        self.used
            .iter()
            .map(|word| word.load(SeqCst).count_ones())
            .sum()
    }
}

impl<A: Ip> ConnMemory<A> for Memory<A> {
    type Bucket<'a> = Bucket<'a>;

    fn table(&self) -> Option<&ConnTable> {
        Some(&self.table)
    }

    fn bucket(&self, index: u32) -> Option<Bucket<'_>> {
        self.index.get(index as usize).map(Bucket)
    }

    fn fill(&self, word: u32) -> u64 {
        self.fills[word as usize].load(SeqCst)
    }

    fn add_fill(&self, word: u32, amount: u64) {
        self.fills[word as usize].fetch_add(amount, SeqCst);
    }

    fn holds(&self, slot: u32, reply: bool, key: &ConnKey<A>) -> bool {
        conn_generation::of(self.generation(slot)) != conn_generation::FREE
            && self.key(slot, reply) == *key
    }

    fn hash(&self, slot: u32, reply: bool, seed: u64) -> u64 {
        self.key(slot, reply).hash(seed)
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generations[slot as usize].load(SeqCst)
    }

    fn set_generation(&self, slot: u32, generation: u32) {
        self.generations[slot as usize].store(generation, SeqCst);
    }

    fn replace_generation(&self, slot: u32, old: u32, new: u32) -> bool {
        let generation = &self.generations[slot as usize];
        generation
            .compare_exchange(old, new, SeqCst, SeqCst)
            .is_ok()
    }

    fn state(&self, slot: u32) -> Option<ConnState> {
        let conn = self.conn(slot);
        Some(ConnState {
            last_seen_ns: conn.last_seen_ns,
            backend_id: conn.backend_id,
            backend_epoch: conn.backend_epoch,
            flags: conn.flags,
            protocol: conn.original.protocol.into(),
        })
    }

    fn write(&self, slot: u32, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState) {
        self.change(slot, |conn| {
            *conn = Conn {
                last_seen_ns: state.last_seen_ns,
                original: *key,
                reply: *reply,
                flags: state.flags,
                backend_id: state.backend_id,
                backend_epoch: state.backend_epoch,
                ..Conn::default()
            }
        });
    }

    fn used(&self, word: u32) -> u64 {
        self.used[word as usize].load(SeqCst)
    }

    fn set_used(&self, word: u32, bits: u64) -> u64 {
        self.used[word as usize].fetch_or(bits, SeqCst)
    }

    fn clear_used(&self, word: u32, bits: u64) {
        self.used[word as usize].fetch_and(!bits, SeqCst);
    }

    fn claim(&self) -> u32 {
        let words = used_words_for(self.table.conns);
        let start = self.cursor.load(SeqCst);
        for step in 0..words {
            let word = (start + step) % words;
            let slot = conn_table::claim_in(self, word);
            if slot != NO_SLOT {
                self.cursor.store(word, SeqCst);
                return slot;
            }
        }
        NO_SLOT
    }

    fn next_victim(&self) -> u32 {
        self.hand.fetch_add(1, SeqCst) % self.table.conns
    }
}

impl ConnWords for Bucket<'_> {
    fn word(&self, at: u32) -> u32 {
        self.0[at as usize].load(SeqCst)
    }

    fn pair(&self, at: u32) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 1)) << 32
    }

    fn replace(&self, at: u32, old: u32, new: u32) -> bool {
        self.0[at as usize]
            .compare_exchange(old, new, SeqCst, SeqCst)
            .is_ok()
    }
}
