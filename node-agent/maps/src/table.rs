//! One pinned map, typed: reads, writes and counts what was written.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ebpf_abi::Plain;

use crate::{
    MapLayout,
    bytes::{as_bytes, from_bytes},
    counters::Operations,
    layout::map_type,
    sys,
};

/// A map with keys `K` and values `V`; a cheap handle.
pub struct Table<K, V> {
    map: Arc<RawMap>,
    types: PhantomData<fn() -> (K, V)>,
}

/// A map operation failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {action}")]
pub struct MapError {
    pub map: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// In a batch: the element that failed; the earlier ones are in force.
    pub index: usize,
    #[source]
    pub source: io::Error,
}

/// A map as bytes.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    name: &'static str,
    layout: MapLayout,
    updates: AtomicU64,
    deletes: AtomicU64,
    calls: AtomicU64,
}

/// Elements that one `BPF_MAP_LOOKUP_BATCH` asks for. A hash bucket that holds more makes the kernel answer ENOSPC;
/// then the buffers grow.
const BATCH: u32 = 4096;

impl<K: Plain, V: Plain> Table<K, V> {
    /// # Panics
    ///
    /// When the map's sizes are not those of the types: the layout is compared before.
    pub(crate) fn new(map: Arc<RawMap>) -> Self {
        assert_eq!(
            map.layout.key_size as usize,
            size_of::<K>(),
            "key of map {}",
            map.name
        );
        assert_eq!(
            map.layout.value_size as usize,
            size_of::<V>(),
            "value of map {}",
            map.name
        );
        Self {
            map,
            types: PhantomData,
        }
    }

    pub fn name(&self) -> &'static str {
        self.map.name
    }

    /// The number of entries that fit.
    pub fn capacity(&self) -> u32 {
        self.map.layout.max_entries
    }

    /// # Errors
    ///
    /// When the map cannot be read; a missing key is `Ok(None)`.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = vec![0; size_of::<V>()];
        let found = self.map.lookup(as_bytes(key), &mut value)?;
        Ok(found.then(|| from_bytes(&value)))
    }

    /// Writes one entry, whether the key was there or not.
    ///
    /// # Errors
    ///
    /// When the map is full ([`MapError::full`]) or cannot be written.
    pub fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.map.update(as_bytes(key), as_bytes(value), 1)
    }

    /// Deletes one entry; a missing key is no error.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn remove(&self, key: &K) -> Result<(), MapError> {
        self.map.delete(as_bytes(key), 1)
    }

    /// Every entry, of an array every index. Entries that change meanwhile may be met with either value, and a hash
    /// that is written to may show an entry twice or not at all.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((key, value)))?;
        Ok(entries)
    }

    /// As [`Table::entries`], without holding them all.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn for_each(&self, mut visit: impl FnMut(K, V)) -> Result<(), MapError> {
        self.map
            .for_each(&mut |key, value| visit(from_bytes(key), from_bytes(value)))
    }
}

impl<K, V> Table<K, V> {
    pub(crate) fn raw(&self) -> &RawMap {
        &self.map
    }
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self {
            map: Arc::clone(&self.map),
            types: PhantomData,
        }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({}: {})", self.map.name, self.map.layout)
    }
}

impl MapError {
    /// The map is full: trying again will not help until something is removed. The kernel says E2BIG for a hash,
    /// ENOSPC for an LPM trie, ENOMEM where elements are allocated as they come.
    pub fn full(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM)
        )
    }
}

impl RawMap {
    /// # Errors
    ///
    /// When the kernel does not tell the map's layout.
    pub fn new(name: &'static str, fd: OwnedFd) -> Result<Self, MapError> {
        let (_, layout) = sys::map_info(fd.as_fd()).map_err(|source| MapError {
            map: name,
            action: "read the layout",
            index: 0,
            source,
        })?;
        Ok(Self {
            fd,
            name,
            layout,
            updates: AtomicU64::new(0),
            deletes: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn layout(&self) -> MapLayout {
        self.layout
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn operations(&self) -> Operations {
        Operations {
            updates: self.updates.load(Ordering::Relaxed),
            deletes: self.deletes.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
        }
    }

    /// Reads one value into `value`; `false` if the key is missing.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<bool, MapError> {
        assert_eq!(
            key.len(),
            self.layout.key_size as usize,
            "key of map {}",
            self.name
        );
        assert!(
            value.len() >= self.lookup_size(),
            "value of map {}",
            self.name
        );
        // SAFETY: the sizes are the map's, checked in the two lines above.
        match unsafe { sys::lookup_elem(self.fd(), key, value) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(self.error("look up", 0, source)),
        }
    }

    /// Writes `count` elements in order.
    pub fn update(&self, keys: &[u8], values: &[u8], count: usize) -> Result<(), MapError> {
        let (key_size, value_size) = self.sizes();
        assert_eq!(keys.len(), count * key_size, "keys of map {}", self.name);
        assert_eq!(
            values.len(),
            count * value_size,
            "values of map {}",
            self.name
        );
        let result = if count == 1 || self.layout.map_type == map_type::LPM_TRIE {
            let pairs = keys
                .chunks_exact(key_size)
                .zip(values.chunks_exact(value_size));
            one_by_one(pairs, |(key, value)| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                // SAFETY: chunks of the map's sizes.
                unsafe { sys::update_elem(self.fd(), key, value, 0) }
            })
        } else {
            self.calls.fetch_add(1, Ordering::Relaxed);
            // SAFETY: `count` elements of the map's sizes, asserted above.
            unsafe { sys::update_batch(self.fd(), keys, values, count as u32) }
                .map_err(|(done, error)| (done as usize, error))
        };
        let done = result.as_ref().map_or_else(|(done, _)| *done, |()| count);
        self.updates.fetch_add(done as u64, Ordering::Relaxed);
        result.map_err(|(index, source)| self.error("update", index, source))
    }

    /// Makes one value all zero, on every CPU where the map has one for each.
    pub fn clear(&self, key: &[u8]) -> Result<(), MapError> {
        assert_eq!(
            key.len(),
            self.layout.key_size as usize,
            "key of map {}",
            self.name
        );
        let zero = vec![0; self.lookup_size()];
        self.calls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the key has the map's size, and the value the size that the map has on all CPUs together.
        let done = unsafe { sys::update_elem(self.fd(), key, &zero, 0) };
        done.map_err(|source| self.error("clear", 0, source))
    }

    /// Writes one element of a hash, unless its key is there.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), MapError> {
        assert_eq!((key.len(), value.len()), self.sizes(), "map {}", self.name);
        // SAFETY: the sizes are the map's, checked in the line above.
        match unsafe { sys::update_elem(self.fd(), key, value, sys::NOEXIST) } {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                Err(self.error("insert", 0, error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes `count` keys in order; missing ones are passed over.
    pub fn delete(&self, keys: &[u8], count: usize) -> Result<(), MapError> {
        let key_size = self.layout.key_size as usize;
        assert_eq!(keys.len(), count * key_size, "keys of map {}", self.name);
        let mut done = 0;
        while done < count {
            match self.delete_some(&keys[done * key_size..], count - done) {
                Ok(()) => {
                    self.deletes
                        .fetch_add((count - done) as u64, Ordering::Relaxed);
                    done = count;
                }
                Err((deleted, error)) => {
                    self.deletes.fetch_add(deleted as u64, Ordering::Relaxed);
                    if error.raw_os_error() != Some(libc::ENOENT) {
                        return Err(self.error("delete", done + deleted, error));
                    }
                    done += deleted + 1;
                }
            }
        }
        Ok(())
    }

    /// Visits every element: in batches, of an LPM trie key by key.
    pub fn for_each(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), MapError> {
        if self.layout.map_type == map_type::LPM_TRIE {
            self.walk(visit)
        } else {
            self.walk_in_batches(visit)
        }
    }

    fn delete_some(&self, keys: &[u8], count: usize) -> Result<(), (usize, io::Error)> {
        let key_size = self.layout.key_size as usize;
        if count == 1 || self.layout.map_type == map_type::LPM_TRIE {
            one_by_one(keys.chunks_exact(key_size), |key| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                // SAFETY: a chunk of the map's key size.
                unsafe { sys::delete_elem(self.fd(), key) }
            })
        } else {
            self.calls.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller asserted that `keys` holds `count` keys of the map's size.
            unsafe { sys::delete_batch(self.fd(), keys, count as u32) }
                .map_err(|(done, error)| (done as usize, error))
        }
    }

    fn walk(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), MapError> {
        let (key_size, value_size) = self.sizes();
        let mut key: Option<Vec<u8>> = None;
        let mut next = vec![0; key_size];
        let mut value = vec![0; value_size];
        loop {
            // SAFETY: both buffers have the map's key size.
            let more = unsafe { sys::next_key(self.fd(), key.as_deref(), &mut next) }
                .map_err(|source| self.error("walk", 0, source))?;
            if !more {
                return Ok(());
            }
            if self.lookup(&next, &mut value)? {
                visit(&next, &value);
            }
            key = Some(next.clone());
        }
    }

    fn walk_in_batches(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), MapError> {
        let (key_size, value_size) = self.sizes();
        let mut size = BATCH.min(self.layout.max_entries).max(1);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut token = vec![0; key_size.max(4)];
        let mut first = true;
        loop {
            keys.resize(size as usize * key_size, 0);
            values.resize(size as usize * value_size, 0);
            // SAFETY: buffers for `size` elements of the map's sizes, and a token of at least four bytes and a key.
            let batch = unsafe {
                sys::lookup_batch(self.fd(), &mut token, first, &mut keys, &mut values, size)
            };
            let batch = match batch {
                Ok(batch) => batch,
                // One hash bucket holds more than fits: nothing was read, the position has not moved.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    size = size.saturating_mul(2);
                    continue;
                }
                Err(source) => return Err(self.error("read", 0, source)),
            };
            let pairs = keys
                .chunks_exact(key_size)
                .zip(values.chunks_exact(value_size));
            for (key, value) in pairs.take(batch.count as usize) {
                visit(key, value);
            }
            if batch.end {
                return Ok(());
            }
            first = false;
        }
    }

    fn sizes(&self) -> (usize, usize) {
        (
            self.layout.key_size as usize,
            self.layout.value_size as usize,
        )
    }

    /// Bytes that a lookup writes.
    fn lookup_size(&self) -> usize {
        let value_size = self.layout.value_size as usize;
        if self.layout.map_type == map_type::PERCPU_ARRAY {
            value_size.next_multiple_of(8) * crate::counters::possible_cpus()
        } else {
            value_size
        }
    }

    fn error(&self, action: &'static str, index: usize, source: io::Error) -> MapError {
        MapError {
            map: self.name,
            action,
            index,
            source,
        }
    }
}

/// Applies `call` until the first error, and tells how many succeeded before it.
fn one_by_one<T>(
    items: impl Iterator<Item = T>,
    mut call: impl FnMut(T) -> io::Result<()>,
) -> Result<(), (usize, io::Error)> {
    for (index, item) in items.enumerate() {
        call(item).map_err(|error| (index, error))?;
    }
    Ok(())
}
