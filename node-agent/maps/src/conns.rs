//! The connection table as user space sees it: the memory that the programs work on, mapped into the process, and
//! changed by their rules (`ebpf_abi::conn_word`).

use std::{
    hash::{BuildHasher, RandomState},
    io,
    marker::PhantomData,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

use ebpf_abi::{
    Conn, ConnBucket, ConnKey, ConnTable, Plain, SLOTS_PER_WORD, conn_generation, conn_word,
    used_words_for,
};
use ebpf_packet::{
    ConnState, Inserted, Ip,
    conn_table::{self, ConnMemory, ConnWords, NO_SLOT},
};

use crate::{
    MapError, MapUsage, Table,
    sys::{Access, Mapping},
    table::RawMap,
};

/// How often a record is read that changes meanwhile.
const READS: u32 = 8;

/// The connections of one family; a cheap handle.
#[derive(Clone, Debug)]
pub struct Conns<A: Ip> {
    table: ConnTable,
    heads: Area<ConnTable>,
    /// Of this family in `heads`.
    entry: u32,
    conns: Area<Conn<A>>,
    index: Area<ConnBucket>,
    fill: Area<u64>,
    used: Area<u64>,
    access: Access,
}

/// The maps of a table.
pub(crate) struct ConnMaps {
    pub heads: SharedMap,
    /// Of the family in `heads`.
    pub entry: u32,
    pub conns: SharedMap,
    pub index: SharedMap,
    pub fill: SharedMap,
    pub used: SharedMap,
}

/// A map that is to be mapped. The kernel maps no descriptor that is for reading only, so there is one for writing too,
/// which is closed as soon as it is mapped: what protects the maps then is the mapping's own protection.
pub(crate) struct SharedMap {
    pub raw: Arc<RawMap>,
    pub writable: OwnedFd,
}

/// A map's values in this process.
#[derive(Debug)]
struct Area<T> {
    raw: Arc<RawMap>,
    mapping: Arc<Mapping>,
    types: PhantomData<fn() -> T>,
}

/// A bucket of the index.
#[derive(Debug)]
pub struct Bucket<'a> {
    bucket: NonNull<ConnBucket>,
    borrowed: PhantomData<&'a Mapping>,
}

impl<A: Ip> Conns<A> {
    pub(crate) fn open(maps: ConnMaps, access: Access) -> Result<Self, MapError> {
        let heads = Table::<u32, ConnTable>::new(Arc::clone(&maps.heads.raw));
        Ok(Self {
            table: heads.get(&maps.entry)?.unwrap_or_default(),
            heads: Area::new(maps.heads, access)?,
            entry: maps.entry,
            conns: Area::new(maps.conns, access)?,
            index: Area::new(maps.index, access)?,
            fill: Area::new(maps.fill, access)?,
            used: Area::new(maps.used, access)?,
            access,
        })
    }

    /// The name of the map of records.
    pub fn name(&self) -> &'static str {
        self.conns.raw.name()
    }

    /// The number of connections that fit.
    pub fn capacity(&self) -> u32 {
        self.conns.raw.layout().max_entries
    }

    /// The number of connections.
    pub fn count(&self) -> u32 {
        let words = 0..used_words_for(self.table.conns);
        words.map(|word| self.used(word).count_ones()).sum()
    }

    pub(crate) fn usage(&self) -> MapUsage {
        MapUsage {
            map: self.name(),
            entries: self.count(),
            capacity: self.capacity(),
        }
    }

    /// The connection that has this tuple in either direction, and whether it is that of the answers.
    pub fn get(&self, key: &ConnKey<A>) -> Option<(Conn<A>, bool)> {
        let word = conn_table::find(self, key);
        if word == conn_word::NONE {
            return None;
        }
        Some((self.read(conn_word::slot(word))?, conn_word::is_reply(word)))
    }

    /// Every connection. One that comes or goes meanwhile may be there or not.
    pub fn entries(&self) -> Vec<Conn<A>> {
        let mut entries = Vec::new();
        self.for_each(|_, conn| entries.push(conn));
        entries
    }

    /// As [`Conns::entries`], each with its slot, without holding them all.
    pub fn for_each(&self, mut visit: impl FnMut(u32, Conn<A>)) {
        for word in 0..used_words_for(self.table.conns) {
            let mut used = self.used(word);
            while used != 0 {
                let slot = word * SLOTS_PER_WORD + used.trailing_zeros();
                used &= used - 1;
                if let Some(conn) = self.read(slot) {
                    visit(slot, conn);
                }
            }
        }
    }

    /// Inserts a connection as the programs do: that whose packets arrive with `key` and go on with `target`.
    ///
    /// # Errors
    ///
    /// When the maps were opened for reading only.
    pub fn insert(
        &self,
        key: &ConnKey<A>,
        target: &ConnKey<A>,
        state: &ConnState,
    ) -> Result<Inserted, MapError> {
        self.check_writable("insert")?;
        Ok(conn_table::insert(self, key, &target.reversed(), state))
    }

    /// Removes the connection that has this tuple in either direction; `false` if there is none.
    ///
    /// # Errors
    ///
    /// When the maps were opened for reading only.
    pub fn remove(&self, key: &ConnKey<A>) -> Result<bool, MapError> {
        self.check_writable("remove")?;
        Ok(conn_table::remove(self, key) != conn_word::NONE)
    }

    /// Marks the connection that was read from a slot as one that is about to be ended for being idle. `false` if it is
    /// gone. One that is marked already, by an agent that did not come to end it, counts.
    ///
    /// # Errors
    ///
    /// When the maps were opened for reading only.
    pub(crate) fn mark_idle(&self, slot: u32, conn: &Conn<A>) -> Result<bool, MapError> {
        self.check_writable("mark")?;
        Ok(
            conn_generation::of(conn.generation) == conn_generation::IDLE
                || conn_table::mark_idle(self, slot, conn.generation),
        )
    }

    /// Ends the connection of a slot if it is marked still and `is_over`, or else takes the mark away. Says whether it
    /// has ended it.
    pub(crate) fn end_idle(&self, slot: u32, is_over: impl FnOnce(&Conn<A>) -> bool) -> bool {
        let marked = self
            .read(slot)
            .filter(|conn| conn_generation::of(conn.generation) == conn_generation::IDLE);
        marked.is_some_and(|conn| {
            let ends = is_over(&conn);
            if ends {
                conn_table::release(self, slot, conn.generation)
            } else {
                conn_table::wake(self, slot, conn.generation);
                false
            }
        })
    }

    pub(crate) fn raw(&self) -> [&RawMap; 4] {
        [
            &self.conns.raw,
            &self.index.raw,
            &self.fill.raw,
            &self.used.raw,
        ]
    }

    /// The connection in a slot, as it was at one moment but for its flags and its time.
    fn read(&self, slot: u32) -> Option<Conn<A>> {
        let element = self.conns.element(slot)?;
        for _ in 0..READS {
            let generation = self.generation(slot);
            if conn_generation::of(generation) == conn_generation::FREE {
                return None;
            }
            // SAFETY: an element of the mapping, of plain data. Others may write to it meanwhile; what is torn is not
            // used, since the generation has changed then.
            let conn = unsafe { element.read_volatile() };
            fence(Ordering::Acquire);
            if self.generation(slot) == generation {
                return Some(conn);
            }
        }
        None
    }

    fn key(&self, slot: u32, reply: bool) -> Option<ConnKey<A>> {
        let offset = if reply {
            offset_of!(Conn<A>, reply)
        } else {
            offset_of!(Conn<A>, original)
        };
        let conn = self.conns.element(slot)?;
        // SAFETY: a field of an element of the mapping, of plain data that others may write meanwhile.
        Some(unsafe { conn.byte_add(offset).cast::<ConnKey<A>>().read_volatile() })
    }

    fn check_writable(&self, action: &'static str) -> Result<(), MapError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(MapError {
                map: self.name(),
                action,
                index: 0,
                source: io::ErrorKind::PermissionDenied.into(),
            }),
        }
    }

    fn generation_of(&self, slot: u32) -> Option<&AtomicU32> {
        let conn = self.conns.element(slot)?;
        // SAFETY: a field of an element of the mapping.
        Some(unsafe { word(conn.byte_add(offset_of!(Conn<A>, generation)).cast()) })
    }

    fn head(&self, offset: usize) -> Option<&AtomicU32> {
        let head = self.heads.element(self.entry)?;
        // SAFETY: a field of an element of the mapping.
        Some(unsafe { word(head.byte_add(offset).cast()) })
    }
}

/// A word of a mapping.
///
/// # Safety
///
/// `place` is an aligned word that stays mapped for `'a`, and that everybody changes by atomic operations.
unsafe fn word<'a>(place: NonNull<u32>) -> &'a AtomicU32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(place.as_ptr()) }
}

/// Gives a table that is new its size and its seed. The programs take no connections before.
///
/// # Errors
///
/// When the map cannot be read or written.
pub(crate) fn prepare(heads: &Arc<RawMap>, conns: [u32; 2]) -> Result<(), MapError> {
    let heads = Table::<u32, ConnTable>::new(Arc::clone(heads));
    for (entry, conns) in (0..).zip(conns) {
        if heads.get(&entry)?.is_none_or(|table| table.seed == 0) {
            // The standard library's hasher begins with random numbers of the system.
            let seed = RandomState::new().hash_one(entry) | 1;
            heads.set(&entry, &ConnTable::new(seed, conns))?;
        }
    }
    Ok(())
}

impl<A: Ip> ConnMemory<A> for Conns<A> {
    type Bucket<'a> = Bucket<'a>;

    fn table(&self) -> Option<&ConnTable> {
        (self.table.seed != 0).then_some(&self.table)
    }

    fn bucket(&self, index: u32) -> Option<Bucket<'_>> {
        Some(Bucket {
            bucket: self.index.element(index)?,
            borrowed: PhantomData,
        })
    }

    fn fill(&self, word: u32) -> u64 {
        self.fill
            .double_word(word)
            .map_or(0, |fill| fill.load(Ordering::Acquire))
    }

    fn add_fill(&self, word: u32, amount: u64) {
        if let Some(fill) = self.fill.double_word(word) {
            fill.fetch_add(amount, Ordering::AcqRel);
        }
    }

    fn holds(&self, slot: u32, reply: bool, key: &ConnKey<A>) -> bool {
        conn_generation::of(self.generation(slot)) != conn_generation::FREE
            && self.key(slot, reply).is_some_and(|there| there == *key)
    }

    fn hash(&self, slot: u32, reply: bool, seed: u64) -> u64 {
        self.key(slot, reply).map_or(0, |key| key.hash(seed))
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generation_of(slot)
            .map_or(0, |generation| generation.load(Ordering::Acquire))
    }

    fn set_generation(&self, slot: u32, generation: u32) {
        if let Some(place) = self.generation_of(slot) {
            place.store(generation, Ordering::Release);
        }
    }

    fn replace_generation(&self, slot: u32, old: u32, new: u32) -> bool {
        self.generation_of(slot).is_some_and(|generation| {
            generation
                .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Whoever looks is no packet, and may have the maps for reading only.
    fn wake(&self, _slot: u32, _idle: u32) -> bool {
        true
    }

    fn state(&self, slot: u32) -> Option<ConnState> {
        let conn = self.read(slot)?;
        Some(ConnState {
            last_seen_ns: conn.last_seen_ns,
            backend_id: conn.backend_id,
            backend_epoch: conn.backend_epoch,
            flags: conn.flags,
            protocol: conn.original.protocol.into(),
        })
    }

    fn write(&self, slot: u32, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState) {
        let Some(element) = self.conns.element(slot) else {
            return;
        };
        let conn = Conn {
            last_seen_ns: state.last_seen_ns,
            original: *key,
            reply: *reply,
            flags: state.flags,
            generation: self.generation(slot),
            backend_id: state.backend_id,
            backend_epoch: state.backend_epoch,
            reserve: A::ConnReserve::default(),
        };
        // SAFETY: an element of the mapping, the caller's own while its generation is even.
        unsafe { element.write_volatile(conn) };
    }

    fn used(&self, word: u32) -> u64 {
        self.used
            .double_word(word)
            .map_or(u64::MAX, |used| used.load(Ordering::Acquire))
    }

    fn set_used(&self, word: u32, bits: u64) -> u64 {
        self.used
            .double_word(word)
            .map_or(u64::MAX, |used| used.fetch_or(bits, Ordering::AcqRel))
    }

    fn clear_used(&self, word: u32, bits: u64) {
        if let Some(used) = self.used.double_word(word) {
            used.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    fn claim(&self) -> u32 {
        let Some(cursor) = self.head(offset_of!(ConnTable, cursor)) else {
            return NO_SLOT;
        };
        let words = used_words_for(self.table.conns);
        let start = cursor.load(Ordering::Relaxed);
        for step in 0..words {
            let word = start.wrapping_add(step) % words;
            let slot = conn_table::claim_in(self, word);
            if slot != NO_SLOT {
                cursor.store(word, Ordering::Relaxed);
                return slot;
            }
        }
        NO_SLOT
    }

    fn next_victim(&self) -> u32 {
        self.head(offset_of!(ConnTable, hand))
            .map_or(NO_SLOT, |hand| {
                hand.fetch_add(1, Ordering::Relaxed) % self.table.conns.max(1)
            })
    }
}

impl ConnWords for Bucket<'_> {
    fn word(&self, at: u32) -> u32 {
        self.place(at).load(Ordering::Acquire)
    }

    fn pair(&self, at: u32) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 1)) << 32
    }

    fn replace(&self, at: u32, old: u32, new: u32) -> bool {
        self.place(at)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

impl Bucket<'_> {
    fn place(&self, at: u32) -> &AtomicU32 {
        let offset = at as usize * size_of::<u32>();
        assert!(offset < size_of::<ConnBucket>(), "{at} is beyond a bucket");
        // SAFETY: a word of an element of a mapping that is borrowed.
        unsafe { word(self.bucket.byte_add(offset).cast()) }
    }
}

impl<T: Plain> Area<T> {
    fn new(map: SharedMap, access: Access) -> Result<Self, MapError> {
        let SharedMap { raw, writable } = map;
        let layout = raw.layout();
        let len = layout.max_entries as usize * layout.value_size as usize;
        let mapping = Mapping::new(writable.as_fd(), len, access).map_err(|source| MapError {
            map: raw.name(),
            action: "map into memory",
            index: 0,
            source,
        })?;
        Ok(Self {
            raw,
            mapping: Arc::new(mapping),
            types: PhantomData,
        })
    }

    fn element(&self, index: u32) -> Option<NonNull<T>> {
        self.mapping.element(index)
    }
}

impl Area<u64> {
    fn double_word(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: an element of the mapping, which lives as long as `self`; everybody changes it by atomic operations.
        Some(unsafe { AtomicU64::from_ptr(self.element(index)?.as_ptr()) })
    }
}

impl<T> Clone for Area<T> {
    fn clone(&self) -> Self {
        Self {
            raw: Arc::clone(&self.raw),
            mapping: Arc::clone(&self.mapping),
            types: PhantomData,
        }
    }
}
