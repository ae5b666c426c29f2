//! `store backup`, `store restore` and `store migrate`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use control_plane_registry::ROOT;
use control_plane_store::{
    EmbeddedStore, EtcdStore, KeyRange, Snapshot, Store, StoreError, backup, embedded, snapshot,
};

use super::flags::StoreFlags;
use super::place::Place;
use super::socket;

/// How far a restored file is ahead of its backup (as in etcd's advice for restores): what was written after the
/// backup has had revisions that clients may remember.
const AHEAD_IN_FILE: u64 = 1_000_000_000;
/// The same for etcd, where each step is a write.
const AHEAD_IN_ETCD: u64 = 10_000;
const PROGRESS_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Write the state of the cluster to FILE, at one moment, while the control plane runs or not
    Backup {
        /// Made by this; must not be there. It holds every secret of the cluster
        file: PathBuf,
    },
    /// Put the state of a backup in the place of --data-dir or --etcd-servers. No control plane may run
    Restore {
        /// What `store backup` wrote
        file: PathBuf,
        /// Replace the state that is there. An old file is kept beside the new one; keys in etcd are deleted
        #[arg(long)]
        overwrite: bool,
        /// How many revisions the restored store leaves out after those of the backup, since clients may remember
        /// them; default: 1000000000 in a file, 10000 in etcd
        #[arg(long, value_name = "N")]
        bump_revision: Option<u64>,
    },
    /// Copy the state from one store to another. No control plane may run over either
    Migrate {
        /// A data folder, a file ….redb, or client URLs of etcd with commas between (with the --etcd flags)
        #[arg(long, value_name = "PLACE")]
        from: String,
        /// Likewise
        #[arg(long, value_name = "PLACE")]
        to: String,
        /// Replace the state that is there. An old file is kept beside the new one; keys in etcd are deleted
        #[arg(long)]
        overwrite: bool,
    },
}

/// Does what the command says; `flags` and `data_dir` say where the control plane's state is.
pub async fn run(command: &StoreCommand, flags: &StoreFlags, data_dir: &Path) -> Result<()> {
    match command {
        StoreCommand::Backup { file } => {
            let snapshot = take(&Place::of_flags(flags, data_dir)?).await?;
            write_backup(&snapshot, file)?;
            say("backed up", &snapshot, file.display());
        }
        StoreCommand::Restore {
            file,
            overwrite,
            bump_revision,
        } => {
            let place = Place::of_flags(flags, data_dir)?;
            let open =
                File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
            let snapshot = backup::read(BufReader::new(open))
                .with_context(|| format!("{} cannot be restored", file.display()))?;
            let ahead = bump_revision.unwrap_or(match &place {
                Place::File(_) => AHEAD_IN_FILE,
                Place::Etcd(_) => AHEAD_IN_ETCD,
            });
            put(&snapshot, &place, ahead, *overwrite).await?;
            say("restored", &snapshot, place);
        }
        StoreCommand::Migrate {
            from,
            to,
            overwrite,
        } => {
            let from = Place::parse("--from", from, flags)?;
            let to = Place::parse("--to", to, flags)?;
            let snapshot = take(&from).await?;
            put(&snapshot, &to, 0, *overwrite).await?;
            ensure!(
                take(&from).await?.kvs == snapshot.kvs,
                "{from} was written to while it was copied: stop every control plane that uses it, and migrate again with --overwrite"
            );
            say("migrated", &snapshot, to);
        }
    }
    Ok(())
}

fn say(done: &str, snapshot: &Snapshot, place: impl std::fmt::Display) {
    let (keys, revision) = (snapshot.kvs.len(), snapshot.revision);
    println!("{done} {keys} keys of revision {revision}: {place}");
}

/// Reads the state of a place; that of a file also while a control plane has it open.
async fn take(place: &Place) -> Result<Snapshot> {
    match place {
        Place::File(path) => {
            // Opening would make an empty one.
            ensure!(path.exists(), "there is no store {}", path.display());
            match EmbeddedStore::open(path, embedded::Options::default()) {
                Ok(store) => Ok(Snapshot::take(&store, ROOT).await?),
                Err(StoreError::Locked { .. }) => socket::fetch(path),
                Err(error) => Err(error.into()),
            }
        }
        Place::Etcd(options) => {
            let store = EtcdStore::connect(options.clone()).await?;
            Ok(Snapshot::take(&store, ROOT).await?)
        }
    }
}

/// Writes the file so that it appears under its name only when it is whole.
fn write_backup(snapshot: &Snapshot, file: &Path) -> Result<()> {
    let context = || format!("cannot write {}", file.display());
    ensure!(
        !file.exists(),
        "{} is there already; give another name",
        file.display()
    );
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .with_context(context)?;
    let written = backup::write(snapshot, BufWriter::new(&open)).and_then(|()| open.sync_all());
    if written.is_err() {
        // What went wrong is in the error; a part of a backup is of no use.
        let _ = fs::remove_file(&unfinished);
    }
    written.with_context(context)?;
    fs::rename(&unfinished, file).with_context(context)?;
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).with_context(context)?;
    folder.sync_all().with_context(context)
}

/// Puts the state into a place that holds none, or in the stead of what it holds.
async fn put(snapshot: &Snapshot, place: &Place, ahead: u64, overwrite: bool) -> Result<()> {
    let floor = snapshot
        .revision
        .checked_add(ahead)
        .context("--bump-revision leads beyond all revisions")?;
    match place {
        Place::File(path) => {
            let newest = make_room(path, overwrite).await?;
            place.make_folder()?;
            EmbeddedStore::create(path, snapshot, floor.max(newest.saturating_add(ahead)))?;
        }
        Place::Etcd(options) => {
            let store = EtcdStore::connect(options.clone()).await?;
            let there = store.range(KeyRange::prefix(ROOT), 1, None).await?.count;
            ensure!(
                there == 0 || overwrite,
                "{place} holds {there} keys below {ROOT}: give --overwrite to delete them first"
            );
            if there > 0 {
                snapshot::clear(&store, ROOT).await?;
            }
            let mut told = Instant::now();
            let progress = |what: &str, done: u64, of: u64| {
                if told.elapsed() > PROGRESS_EVERY {
                    told = Instant::now();
                    eprintln!("{done} of {of} {what}");
                }
            };
            snapshot.put_into(&store, ROOT, floor, progress).await?;
            let copied = Snapshot::take(&store, ROOT).await?;
            let same = copied.kvs.len() == snapshot.kvs.len()
                && copied
                    .kvs
                    .iter()
                    .zip(&snapshot.kvs)
                    .all(|(copy, own)| copy.key == own.key && copy.value == own.value);
            ensure!(
                same,
                "{place} was written to while the state was put into it: stop every control plane that uses it, and do this again with --overwrite"
            );
        }
    }
    Ok(())
}

/// Moves a file that may go out of the way; answers the newest revision that it is known to have handed out.
async fn make_room(path: &Path, overwrite: bool) -> Result<u64> {
    if !path.exists() {
        return Ok(0);
    }
    let newest = match EmbeddedStore::open(path, embedded::Options::default()) {
        Ok(store) => {
            let all = store.range(KeyRange::prefix(""), 1, None).await?;
            if all.count > 0 && !overwrite {
                let (path, count) = (path.display(), all.count);
                bail!("{path} holds {count} keys: give --overwrite to replace it");
            }
            all.revision
        }
        Err(error @ StoreError::Corrupted { .. }) if !overwrite => {
            return Err(error)
                .context("give --overwrite to replace it; it is kept beside the new one");
        }
        Err(StoreError::Corrupted { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut kept = path.as_os_str().to_owned();
    kept.push(format!(".replaced-{now}"));
    let kept = PathBuf::from(kept);
    match fs::hard_link(path, &kept) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already; try again in a second", kept.display())
        }
        linked => linked.with_context(|| format!("cannot keep {}", path.display()))?,
    }
    fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    eprintln!("the old store is kept as {}", kept.display());
    Ok(newest)
}
