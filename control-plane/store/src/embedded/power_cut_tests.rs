//! A disk whose power fails: of what was written but not yet synced, any part may be there afterwards, torn at any
//! sector, and no acknowledged change may be missing. `kill -9` cannot show this, since the kernel keeps its pages.

use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::*;

const SECTOR: usize = 512;
/// Disks, and cuts of each.
const LIVES: usize = 10;
const CUTS: usize = 25;

#[derive(Debug, Default)]
struct Platter {
    /// What a read sees.
    image: Vec<u8>,
    /// What survives for certain.
    durable: Vec<u8>,
    /// What was written since the last sync, in sectors: offset and bytes.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// How many more operations there is power for.
    power: u64,
}

#[derive(Clone, Debug)]
struct FailingDisk(Arc<Mutex<Platter>>);

/// A generator of the test's own, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

impl Platter {
    fn consume(&mut self) -> io::Result<()> {
        self.power = self.power.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(())
    }

    /// The power is gone: each unsynced sector made it to the platter or did not.
    fn cut(&mut self, dice: &mut Dice) {
        let chance = 1 + dice.roll(4);
        let mut survivor = std::mem::take(&mut self.durable);
        // The length of a file and its content are not written together either.
        if survivor.len() < self.image.len() && dice.roll(2) == 0 {
            survivor.resize(self.image.len(), 0);
        }
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            if dice.roll(5) < chance {
                let end = offset + bytes.len();
                if survivor.len() < end {
                    survivor.resize(end, 0);
                }
                survivor[offset..end].copy_from_slice(&bytes);
            }
        }
        self.image.clone_from(&survivor);
        self.durable = survivor;
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let bytes = platter.image.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.consume()?;
        let len = usize::try_from(len).unwrap();
        platter.image.resize(len, 0);
        if platter.durable.len() > len {
            platter.durable.truncate(len);
            platter
                .unsynced
                .retain(|(offset, bytes)| offset + bytes.len() <= len);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.consume()?;
        platter.durable = platter.image.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.consume()?;
        let from = usize::try_from(offset).unwrap();
        let hole = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let range = platter.image.get_mut(from..from + data.len());
        range.ok_or_else(hole)?.copy_from_slice(data);
        let mut at = from;
        for sector in data.chunks(SECTOR) {
            platter.unsynced.push((at, sector.to_vec()));
            at += sector.len();
        }
        Ok(())
    }
}

fn open(disk: &FailingDisk) -> Result<(Disk, Mvcc)> {
    let path = Path::new("failing disk");
    let database = Database::builder().create_with_backend(disk.clone());
    let database = database.map_err(|error| open_error(path, error))?;
    let opened = Disk { database };
    opened.check_format(path)?;
    let (mvcc, _) = opened.load(path)?;
    Ok((opened, mvcc))
}

/// The next revision: puts and deletes of a few keys.
fn change(mvcc: &Mvcc, dice: &mut Dice) -> Change {
    let revision = mvcc.revision() + 1;
    let first = dice.roll(20);
    let events = (first..=first + dice.roll(3)).map(|number| {
        let key: Key = format!("key/{number}").into();
        let old = mvcc.get(&key);
        let delete = old.is_some() && dice.roll(4) == 0;
        let value = vec![dice.roll(256) as u8; dice.roll(3_000) as usize];
        Event {
            kind: if delete {
                EventKind::Delete
            } else {
                EventKind::Put
            },
            key: key.clone(),
            revision,
            kv: (!delete).then(|| KeyValue {
                key,
                value: value.into(),
                create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                mod_revision: revision,
                version: old.as_ref().map_or(1, |old| old.version + 1),
            }),
            prev_kv: old,
        }
    });
    let events = events.collect();
    Change { revision, events }
}

fn history(mvcc: &Mvcc) -> Vec<(Revision, Vec<Event>)> {
    let all = mvcc.changes_from(mvcc.oldest());
    all.map(|(revision, events)| (revision, events.to_vec()))
        .collect()
}

/// One disk, cut off again and again; counts the acknowledged changes, and those that were done but not acknowledged.
fn live(dice: &mut Dice) -> (usize, usize) {
    let disk = FailingDisk(Arc::default());
    let mut known = Mvcc::new(FIRST_REVISION);
    let mut in_flight: Option<Change> = None;
    let (mut acknowledged, mut half_done) = (0, 0);
    for cut in 0..CUTS {
        // The power may also fail while the file is being made, or repaired after the last cut.
        let power = dice.roll(150);
        disk.0.lock().unwrap().power = power;
        if let Ok((mut opened, mvcc)) = open(&disk) {
            // The change that the cut interrupted is there wholly or not at all.
            if let Some(change) = in_flight.take()
                && mvcc.revision() > known.revision()
            {
                known.apply(change, Instant::now());
                half_done += 1;
            }
            assert_eq!(history(&mvcc), history(&known), "cut {cut}");
            loop {
                let change = change(&known, dice);
                if opened.write(std::slice::from_ref(&change), None).is_err() {
                    in_flight = Some(change);
                    break;
                }
                known.apply(change, Instant::now());
                acknowledged += 1;
            }
            // A process without power cannot tidy up: what redb does from here on fails.
        }
        let mut platter = disk.0.lock().unwrap();
        assert_eq!(platter.power, 0, "cut {cut}: it failed with power left");
        platter.cut(dice);
    }
    disk.0.lock().unwrap().power = u64::MAX;
    let (_, mvcc) = open(&disk).unwrap();
    assert!(mvcc.revision() >= known.revision());
    (acknowledged, half_done)
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let mut dice = Dice(0x5eed);
    let (mut acknowledged, mut half_done) = (0, 0);
    for _ in 0..LIVES {
        let (more, halves) = live(&mut dice);
        acknowledged += more;
        half_done += halves;
    }
    assert!(
        acknowledged > 100,
        "only {acknowledged} changes were acknowledged"
    );
    assert!(
        half_done > 0,
        "no cut came between a change and its acknowledgement"
    );
}
