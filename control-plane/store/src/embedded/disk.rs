//! The file: a log of versions in a redb table, one redb transaction for each batch of ours.
//!
//! Table `log` maps (revision, index in the revision) to a record; table `meta` holds the file's format and the
//! oldest retained revision. Commits are two-phase: redb's one-phase commit would repair a damaged newest page by
//! going back one commit without a word, and a write that was acknowledged would be gone.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};

use super::mvcc::{Change, FIRST_REVISION, Mvcc, RecordId, Version};
use super::verify;
use crate::error::Source;
use crate::{Event, EventKind, Key, KeyValue, Result, Revision, StoreError};

const LOG: TableDefinition<RecordId, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const OLDEST: &str = "oldest_revision";
const FORMAT_VERSION: u64 = 1;

/// Reads come from memory, so redb only needs to keep the pages that it changes often.
pub(super) const CACHE_BYTES: usize = 16 << 20;
/// A file this large that is less than half full is made smaller when it is opened.
const SHRINK_FROM_BYTES: u64 = 32 << 20;

/// Where history begins from now on, and the records that nobody needs then.
pub(super) type Compaction = (Revision, Vec<RecordId>);

pub(super) struct Disk {
    database: Database,
}

/// One version of one key as the log holds it: fixed fields in little-endian order, then the key, then the value.
struct Record {
    key: Key,
    create_revision: Revision,
    version: u64,
    value: Option<Bytes>,
}

/// kind (1 byte), create_revision (8), version (8), length of the key (4).
const HEADER_BYTES: usize = 21;

impl Disk {
    /// Opens or makes the file, verifies it and reads its history.
    pub(super) fn open(path: &Path) -> Result<(Self, Mvcc)> {
        // redb answers damage with an error where it expects it, and with a panic elsewhere.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let (mut disk, checked) = Self::open_file(path)?;
            let (mvcc, bytes) = match checked {
                true => disk.load(path)?,
                false => disk.load_and_check(path)?,
            };
            disk.shrink(path, bytes)?;
            Ok((disk, mvcc))
        }));
        opened.unwrap_or_else(|panic| {
            let reason = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("the reader panicked");
            Err(corrupted(path, reason))
        })
    }

    /// Also answers whether redb had to repair the file, and has checked every page of it.
    fn open_file(path: &Path) -> Result<(Self, bool)> {
        let repaired = Arc::new(AtomicBool::new(false));
        let repairing = repaired.clone();
        let mut builder = Database::builder();
        builder
            .set_cache_size(CACHE_BYTES)
            .set_repair_callback(move |_| repairing.store(true, Ordering::Relaxed));
        let database = builder.create(path);
        let database = database.map_err(|error| open_error(path, error))?;
        // Every time: whoever made the file may have been killed before this.
        sync_folder(path).map_err(|source| StoreError::Open {
            path: path.to_path_buf(),
            source: source.into(),
        })?;
        let disk = Self { database };
        disk.check_format(path)?;
        Ok((disk, repaired.load(Ordering::Relaxed)))
    }

    /// Reads the file while a thread of its own checks it: either takes a good part of what a start does.
    fn load_and_check(&self, path: &Path) -> Result<(Mvcc, u64)> {
        std::thread::scope(|scope| {
            let check = scope.spawn(|| verify::every_page(path));
            let loaded = self.load(path);
            let checked = check.join().unwrap_or_else(|panic| resume_unwind(panic));
            // Damage is why anything else went wrong.
            checked.map_err(|error| open_error(path, error))?;
            loaded
        })
    }

    /// Makes a file that holds these versions, at `revision` and with no history before.
    pub(super) fn fill(
        path: &Path,
        records: &[(RecordId, &KeyValue)],
        revision: Revision,
    ) -> Result<()> {
        let (disk, _) = Self::open_file(path)?;
        let filled = disk.append(records, revision);
        filled.map_err(|error| storage_error(path, error))
    }

    fn append(
        &self,
        records: &[(RecordId, &KeyValue)],
        revision: Revision,
    ) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_two_phase_commit(true);
        {
            let mut log = write.open_table(LOG)?;
            let mut buffer = Vec::new();
            for (id, kv) in records {
                encode(&kv.key, Some(kv), &mut buffer);
                log.insert(id, buffer.as_slice())?;
            }
            write.open_table(META)?.insert(OLDEST, revision + 1)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Marks a file without any table as ours; refuses one that is somebody else's.
    fn check_format(&self, path: &Path) -> Result<()> {
        let fault = |error: redb::Error| storage_error(path, error);
        let read = self.database.begin_read().map_err(|e| fault(e.into()))?;
        let tables: Vec<String> = read
            .list_tables()
            .map_err(|e| fault(e.into()))?
            .map(|table| table.name().to_owned())
            .collect();
        if tables.is_empty() {
            return self.format().map_err(fault);
        }
        if ![META.name(), LOG.name()]
            .iter()
            .all(|ours| tables.iter().any(|table| table == ours))
        {
            let reason = format!("it is a redb file with other tables: {}", tables.join(", "));
            return Err(corrupted(path, reason));
        }
        let meta = read.open_table(META).map_err(|e| fault(e.into()))?;
        let format = meta.get(FORMAT).map_err(|e| fault(e.into()))?;
        match format.map(|format| format.value()) {
            Some(FORMAT_VERSION) => Ok(()),
            other => Err(corrupted(
                path,
                format!("its format is {other:?}, this version reads {FORMAT_VERSION}"),
            )),
        }
    }

    fn format(&self) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_two_phase_commit(true);
        {
            let mut meta = write.open_table(META)?;
            meta.insert(FORMAT, FORMAT_VERSION)?;
            meta.insert(OLDEST, FIRST_REVISION)?;
            write.open_table(LOG)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Gives space back to the file system when most of the file is free; its records have so many bytes.
    fn shrink(&mut self, path: &Path, bytes: u64) -> Result<()> {
        let fault = |error: redb::Error| storage_error(path, error);
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        // To count the pages costs a walk over all of them: not where the records alone are half of the file.
        if size < SHRINK_FROM_BYTES || bytes * 2 > size {
            return Ok(());
        }
        let write = self.database.begin_write().map_err(|e| fault(e.into()))?;
        let stats = write.stats().map_err(|e| fault(e.into()))?;
        write.abort().map_err(|e| fault(e.into()))?;
        let used = stats.allocated_pages() * stats.page_size() as u64;
        if used * 2 < size {
            self.database.compact().map_err(|e| fault(e.into()))?;
            let now = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            tracing::info!(path = %path.display(), from = size, to = now, "store file shrunk");
        }
        Ok(())
    }

    /// The history of the file, and how many bytes its records have.
    fn load(&self, path: &Path) -> Result<(Mvcc, u64)> {
        let fault = |error: redb::Error| storage_error(path, error);
        let read = self.database.begin_read().map_err(|e| fault(e.into()))?;
        let meta = read.open_table(META).map_err(|e| fault(e.into()))?;
        let oldest = meta
            .get(OLDEST)
            .map_err(|e| fault(e.into()))?
            .map(|oldest| oldest.value())
            .ok_or_else(|| corrupted(path, "it does not say where its history begins"))?;

        let mut loader = Loader::new(oldest);
        let mut bytes = 0;
        let log = read.open_table(LOG).map_err(|e| fault(e.into()))?;
        for entry in log.iter().map_err(|e| fault(e.into()))? {
            let (id, record) = entry.map_err(|e| fault(e.into()))?;
            let (revision, index) = id.value();
            bytes += record.value().len() as u64;
            let record = Record::decode(record.value()).ok_or_else(|| {
                corrupted(path, format!("record {revision}/{index} is malformed"))
            })?;
            loader
                .take(revision, index, record)
                .map_err(|reason| corrupted(path, reason))?;
        }
        Ok((loader.finish(), bytes))
    }

    /// Makes the changes durable, and removes what the compaction no longer needs, in one transaction.
    pub(super) fn write(
        &mut self,
        changes: &[Change],
        compact: Option<Compaction>,
    ) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_two_phase_commit(true);
        {
            let mut log = write.open_table(LOG)?;
            let mut buffer = Vec::new();
            for change in changes {
                for (index, event) in (0..).zip(&change.events) {
                    encode(&event.key, event.kv.as_ref(), &mut buffer);
                    log.insert((change.revision, index), buffer.as_slice())?;
                }
            }
            if let Some((oldest, obsolete)) = compact {
                for id in obsolete {
                    log.remove(id)?;
                }
                write.open_table(META)?.insert(OLDEST, oldest)?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

/// Rebuilds history from the log's records, which come in the order of their revisions.
struct Loader {
    mvcc: Mvcc,
    oldest: Revision,
    pending: Option<Change>,
    now: Instant,
}

impl Loader {
    fn new(oldest: Revision) -> Self {
        Self {
            mvcc: Mvcc::new(oldest),
            oldest,
            pending: None,
            now: Instant::now(),
        }
    }

    fn take(&mut self, revision: Revision, index: u32, record: Record) -> Result<(), String> {
        if revision < self.oldest {
            let version = Version {
                mod_revision: revision,
                index,
                create_revision: record.create_revision,
                version: record.version,
                value: record.value,
            };
            self.mvcc.load(record.key, version);
            return Ok(());
        }
        if self
            .pending
            .as_ref()
            .is_none_or(|change| change.revision != revision)
        {
            self.flush();
            let expected = self.mvcc.revision() + 1;
            if revision != expected {
                return Err(format!("revision {expected} is missing from its history"));
            }
        }
        let change = self.pending.get_or_insert_with(|| Change {
            revision,
            events: Vec::new(),
        });
        if usize::try_from(index) != Ok(change.events.len()) {
            return Err(format!("revision {revision} lost one of its changes"));
        }
        change.events.push(record.into_event(revision, &self.mvcc));
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(change) = self.pending.take() {
            self.mvcc.apply(change, self.now);
        }
    }

    fn finish(mut self) -> Mvcc {
        self.flush();
        self.mvcc
    }
}

impl Record {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let number = |from: usize| -> Option<u64> {
            Some(u64::from_le_bytes(
                header.get(from..from + 8)?.try_into().ok()?,
            ))
        };
        let key_length = u32::from_le_bytes(header.get(17..21)?.try_into().ok()?);
        let (key, value) = rest.split_at_checked(usize::try_from(key_length).ok()?)?;
        Some(Self {
            key: std::str::from_utf8(key).ok()?.into(),
            create_revision: number(1)?,
            version: number(9)?,
            value: match header[0] {
                0 if value.is_empty() => None,
                1 => Some(Bytes::copy_from_slice(value)),
                _ => return None,
            },
        })
    }

    fn into_event(self, revision: Revision, before: &Mvcc) -> Event {
        Event {
            kind: if self.value.is_some() {
                EventKind::Put
            } else {
                EventKind::Delete
            },
            revision,
            prev_kv: before.get(&self.key),
            kv: self.value.map(|value| KeyValue {
                key: self.key.clone(),
                value,
                create_revision: self.create_revision,
                mod_revision: revision,
                version: self.version,
            }),
            key: self.key,
        }
    }
}

fn encode(key: &Key, kv: Option<&KeyValue>, buffer: &mut Vec<u8>) {
    let key_length = u32::try_from(key.len()).expect("the writer refuses entries of gigabytes");
    buffer.clear();
    buffer.push(u8::from(kv.is_some()));
    buffer.extend(kv.map_or(0, |kv| kv.create_revision).to_le_bytes());
    buffer.extend(kv.map_or(0, |kv| kv.version).to_le_bytes());
    buffer.extend(key_length.to_le_bytes());
    buffer.extend(key.as_bytes());
    buffer.extend(kv.map_or(&[][..], |kv| &kv.value));
}

/// A new file survives a power cut only once its folder is synced too.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    File::open(folder)?.sync_all()
}

pub(super) fn corrupted(path: &Path, reason: impl Into<Source>) -> StoreError {
    StoreError::Corrupted {
        path: path.to_path_buf(),
        source: reason.into(),
    }
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked {
                path: path.to_path_buf(),
            }
        }
        other => storage_error(path, other.into()),
    }
}

/// Whether the file system has no room for the write.
pub(super) fn is_full(error: &redb::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded))
}

fn storage_error(path: &Path, error: redb::Error) -> StoreError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let damaged = match &error {
        redb::Error::Io(io) => matches!(io.kind(), InvalidData | UnexpectedEof),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_) => true,
        _ => false,
    };
    if damaged {
        corrupted(path, error)
    } else if is_full(&error) {
        StoreError::DiskFull {
            path: path.to_path_buf(),
            source: error.into(),
        }
    } else {
        StoreError::Open {
            path: path.to_path_buf(),
            source: error.into(),
        }
    }
}

#[cfg(test)]
#[path = "power_cut_tests.rs"]
mod power_cut_tests;
