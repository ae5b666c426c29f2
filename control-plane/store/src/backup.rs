//! A backup: a [`Snapshot`] as bytes, in a file or over a socket.
//!
//! All numbers are unsigned and in little-endian order.
//!
//! | part | bytes |
//! |---|---|
//! | [`MAGIC`] | 24 |
//! | revision | 8 |
//! | for each key: 1, create_revision, mod_revision, version, length of the key, length of the value, key, value | 1, 8, 8, 8, 4, 4, … |
//! | 0, number of keys | 1, 8 |
//! | SHA-256 of all of this | 32 |

use std::io::{self, Read, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::snapshot::{Snapshot, fault};
use crate::{Key, KeyValue};

pub const MAGIC: &[u8; 24] = b"fairlead-store-backup-1\n";

const KEY: u8 = 1;
const END: u8 = 0;
/// No key or value is longer: what a damaged length asks for is not allocated.
const LONGEST: usize = 64 << 20;

/// Why bytes are no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    #[error("this is no backup of a store: it does not begin as one")]
    Foreign,

    #[error(
        "the backup ends before its end: it was cut off, or the program that wrote it was ended"
    )]
    CutOff,

    #[error("the backup is damaged: {0}")]
    Damaged(String),

    #[error("cannot read the backup")]
    Read(#[source] io::Error),
}

/// Passes bytes on and adds them to a checksum.
struct Summed<T> {
    inner: T,
    sum: Sha256,
}

/// Writes the snapshot as a backup.
///
/// # Errors
/// Those of `out`; [`io::ErrorKind::InvalidInput`] for a key or value of more than 64 MiB.
pub fn write(snapshot: &Snapshot, out: impl Write) -> io::Result<()> {
    let mut out = Summed {
        inner: out,
        sum: Sha256::new(),
    };
    out.put(MAGIC)?;
    out.put(&snapshot.revision.to_le_bytes())?;
    for kv in &snapshot.kvs {
        out.put(&[KEY])?;
        for number in [kv.create_revision, kv.mod_revision, kv.version] {
            out.put(&number.to_le_bytes())?;
        }
        out.put(&length(kv.key.len())?)?;
        out.put(&length(kv.value.len())?)?;
        out.put(kv.key.as_bytes())?;
        out.put(&kv.value)?;
    }
    out.put(&[END])?;
    out.put(&(snapshot.kvs.len() as u64).to_le_bytes())?;
    let Summed { mut inner, sum } = out;
    inner.write_all(&sum.finalize())?;
    inner.flush()
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= LONGEST => Ok(length.to_le_bytes()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a key or value is longer than 64 MiB",
        )),
    }
}

/// Reads a backup to its end and verifies it, so that nothing of a damaged one is ever used.
///
/// # Errors
/// What is wrong with the bytes.
pub fn read(input: impl Read) -> Result<Snapshot, BackupError> {
    let mut input = Summed {
        inner: input,
        sum: Sha256::new(),
    };
    let begin = input.array::<24>();
    if !matches!(&begin, Ok(begin) if begin == MAGIC) {
        return Err(match begin {
            Err(BackupError::Read(error)) => BackupError::Read(error),
            _ => BackupError::Foreign,
        });
    }
    let revision = input.number()?;
    let mut kvs = Vec::new();
    loop {
        match input.array::<1>()? {
            [KEY] => kvs.push(input.key_value()?),
            [END] => break,
            [other] => return Err(damaged(format!("it holds a part of unknown kind {other}"))),
        }
    }
    if input.number()? != kvs.len() as u64 {
        return Err(damaged("keys are missing"));
    }
    let Summed { mut inner, sum } = input;
    let mut written = [0; 32];
    fill(&mut inner, &mut written)?;
    if written != *sum.finalize() {
        return Err(damaged("its checksum is wrong"));
    }
    if fill(&mut inner, &mut [0]).is_ok() {
        return Err(damaged("something comes after its end"));
    }
    match fault(revision, &kvs) {
        Some(fault) => Err(damaged(fault)),
        None => Ok(Snapshot { revision, kvs }),
    }
}

fn damaged(what: impl Into<String>) -> BackupError {
    BackupError::Damaged(what.into())
}

fn fill(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), BackupError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::CutOff,
        _ => BackupError::Read(error),
    })
}

impl<W: Write> Summed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Summed<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        fill(&mut self.inner, &mut bytes)?;
        self.sum.update(bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, BackupError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<usize, BackupError> {
        match usize::try_from(u32::from_le_bytes(self.array()?)) {
            Ok(length) if length <= LONGEST => Ok(length),
            _ => Err(damaged("a length is beyond all bounds")),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; length];
        fill(&mut self.inner, &mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn key_value(&mut self) -> Result<KeyValue, BackupError> {
        let (create_revision, mod_revision, version) =
            (self.number()?, self.number()?, self.number()?);
        let (key, value) = (self.length()?, self.length()?);
        let key = String::from_utf8(self.bytes(key)?).map_err(|_| damaged("a key is no text"))?;
        Ok(KeyValue {
            key: Key::from(key),
            value: Bytes::from(self.bytes(value)?),
            create_revision,
            mod_revision,
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        let revisions = (2u64..100, 0u64..100, 1u64..9);
        let kvs = btree_map("[a-z/é]{1,12}", (vec(any::<u8>(), 0..40), revisions), 0..12);
        kvs.prop_map(|kvs| {
            let kvs: Vec<KeyValue> = kvs
                .into_iter()
                .map(
                    |(key, (value, (create_revision, later, version)))| KeyValue {
                        key: key.into(),
                        value: value.into(),
                        create_revision,
                        mod_revision: create_revision + later,
                        version,
                    },
                )
                .collect();
            let newest = kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(1);
            Snapshot {
                revision: newest + 3,
                kvs,
            }
        })
    }

    fn bytes(snapshot: &Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(snapshot, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn what_was_backed_up_comes_back(snapshot in snapshots()) {
            prop_assert_eq!(read(&bytes(&snapshot)[..]).unwrap(), snapshot);
        }

        #[test]
        fn no_damage_goes_unnoticed(snapshot in snapshots(), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = bytes(&snapshot);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(read(&bytes[..]).is_err());
        }

        #[test]
        fn a_part_of_a_backup_is_refused(snapshot in snapshots(), at: prop::sample::Index) {
            let whole = bytes(&snapshot);
            let part = &whole[..at.index(whole.len())];
            prop_assert!(matches!(read(part), Err(BackupError::CutOff | BackupError::Foreign)));
            let more = [&whole[..], b"x"].concat();
            prop_assert!(matches!(read(&more[..]), Err(BackupError::Damaged(_))));
        }

        #[test]
        fn any_bytes_are_refused_without_harm(bytes in vec(any::<u8>(), 0..200), ours: bool) {
            let bytes = if ours { [&MAGIC[..], &bytes].concat() } else { bytes };
            prop_assert!(read(&bytes[..]).is_err());
        }
    }
}
