//! A new store file with the content of a snapshot, keys with the revisions that they had.

use std::path::{Path, PathBuf};

use super::EmbeddedStore;
use super::disk::{self, Disk};
use super::mvcc::RecordId;
use crate::snapshot::{Snapshot, fault};
use crate::{KeyValue, Result, Revision, StoreError};

impl EmbeddedStore {
    /// Makes the store file `path` with the keys of `snapshot`; it goes on from `revision`, or from the snapshot's if
    /// that is later, and its history begins there.
    ///
    /// Blocks. The file appears under its name only when it is complete and durable.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is a file, [`StoreError::Open`] and [`StoreError::DiskFull`] when the file
    /// system refuses, [`StoreError::Corrupted`] for keys that no store can hold.
    pub fn create(path: impl AsRef<Path>, snapshot: &Snapshot, revision: Revision) -> Result<()> {
        let path = path.as_ref();
        if let Some(reason) = fault(snapshot.revision, &snapshot.kvs) {
            return Err(disk::corrupted(path, reason));
        }
        let failed = |source: std::io::Error| StoreError::Open {
            path: path.to_path_buf(),
            source: source.into(),
        };
        if path.try_exists().map_err(failed)? {
            return Err(StoreError::Exists {
                path: path.to_path_buf(),
            });
        }
        let unfinished = unfinished(path);
        // Left over from a run that was ended: nobody has it, since it never got its name.
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let revision = revision.max(snapshot.revision);
        Disk::fill(&unfinished, &records(snapshot), revision).inspect_err(|_| {
            // What it was is in the error; a part of a store is of no use.
            let _ = std::fs::remove_file(&unfinished);
        })?;
        // A link refuses to replace a file that came meanwhile; a rename would not.
        std::fs::hard_link(&unfinished, path).map_err(failed)?;
        std::fs::remove_file(&unfinished).map_err(failed)?;
        disk::sync_folder(path).map_err(failed)
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

/// The snapshot's keys as the log holds them: by revision, those of one revision counted.
fn records(snapshot: &Snapshot) -> Vec<(RecordId, &KeyValue)> {
    let mut kvs: Vec<&KeyValue> = snapshot.kvs.iter().collect();
    kvs.sort_by_key(|kv| kv.mod_revision);
    let parts = kvs.chunk_by(|one, other| one.mod_revision == other.mod_revision);
    parts
        .flat_map(|part| (0..).zip(part))
        .map(|(index, kv)| ((kv.mod_revision, index), *kv))
        .collect()
}
