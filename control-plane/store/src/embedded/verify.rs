//! The check of every page of a file, beside the reading of its log.
//!
//! redb checks a file while it opens it, and nothing can be read until that is done. A file that was closed properly is
//! therefore opened twice: by its owner, who reads, and here, where redb's check goes over what the owner has not
//! changed yet. It ends with a repair, which is thrown away.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{Database, DatabaseError, StorageBackend};

use super::disk::CACHE_BYTES;

/// Verifies every checksum of a file that its owner holds open and does not write to meanwhile.
///
/// # Errors
/// redb's word for the damage, or that of the file system. redb may also panic where it meets damage.
pub(super) fn every_page(path: &Path) -> Result<(), DatabaseError> {
    let file = File::open(path).map_err(redb::StorageError::from)?;
    let size = file.metadata().map_err(redb::StorageError::from)?.len();
    let unchanged = Unchanged {
        file,
        length: size,
        change: Mutex::new(Change {
            size,
            writes: Vec::new(),
        }),
    };
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    builder.create_with_backend(unchanged).map(drop)
}

/// A file that keeps what is written to it in memory.
#[derive(Debug)]
struct Unchanged {
    file: File,
    /// Of the file itself, in bytes: it stays, and to ask at each page would be a system call more.
    length: u64,
    change: Mutex<Change>,
}

#[derive(Debug)]
struct Change {
    /// The length, in bytes.
    size: u64,
    /// Where each begins, oldest first: a repair writes a few pages.
    writes: Vec<(u64, Vec<u8>)>,
}

impl StorageBackend for Unchanged {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|change| change.size))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        let size = self.with(|change| change.size);
        if end > size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = self.length.clamp(offset, end) - offset;
        let (own, beyond) = out.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX));
        self.file.read_exact_at(own, offset)?;
        beyond.fill(0);
        self.with(|change| change.lay_over(offset, out));
        Ok(())
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.with(|change| change.size = size);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|change| change.writes.push((offset, data.to_vec())));
        Ok(())
    }
}

impl Unchanged {
    fn with<T>(&self, act: impl FnOnce(&mut Change) -> T) -> T {
        act(&mut self.change.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Change {
    /// Puts what was written between `offset` and the end of `out` there.
    fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        for (start, bytes) in &self.writes {
            let stop = start + bytes.len() as u64;
            let (from, to) = (offset.max(*start), end.min(stop));
            if from < to {
                let place = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
                let written = &bytes[place(from, *start)..place(to, *start)];
                out[place(from, offset)..place(to, offset)].copy_from_slice(written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_file_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let unchanged = Unchanged {
            file: File::open(&path).unwrap(),
            length: 10,
            change: Mutex::new(Change {
                size: 10,
                writes: Vec::new(),
            }),
        };
        unchanged.write(2, b"abcd").unwrap();
        unchanged.write(5, b"XY").unwrap();
        unchanged.set_len(14).unwrap();
        let mut seen = [b'?'; 12];
        unchanged.read(1, &mut seen).unwrap();
        assert_eq!(&seen, b"1abcXY789\0\0\0");
        assert_eq!(unchanged.len().unwrap(), 14);
        assert!(unchanged.read(4, &mut seen).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789");
    }
}
