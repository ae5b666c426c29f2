//! What is pinned in a directory, whichever version pinned it, and taking it all away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    load::{file_error, links_dir, programs_dir},
};

/// A pin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    pub kind: PinKind,
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinKind {
    Link,
    Program,
    Map,
}

/// Every pin below a pin directory, in the order in which they may go: links, so that no program meets a missing map,
/// then programs, then maps. Empty if the directory is not there.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn pins(pin_dir: &Path) -> Result<Vec<Pin>, Error> {
    let mut pins = Vec::new();
    for (kind, directory) in [
        (PinKind::Link, links_dir(pin_dir)),
        (PinKind::Program, programs_dir(pin_dir)),
        (PinKind::Map, pin_dir.to_path_buf()),
    ] {
        let paths = list(&directory)?.into_iter().filter(|path| !path.is_dir());
        pins.extend(paths.map(|path| Pin { kind, path }));
    }
    Ok(pins)
}

/// Removes every pin and the directory itself: the programs are detached, and with them goes what the maps held. What
/// was removed, in order. The caller has the lock ([`crate::PinLock`]).
///
/// # Errors
///
/// When something cannot be removed.
pub fn remove_pins(pin_dir: &Path) -> Result<Vec<Pin>, Error> {
    if !pin_dir.exists() {
        return Ok(Vec::new());
    }
    let pins = pins(pin_dir)?;
    for pin in &pins {
        fs::remove_file(&pin.path).map_err(file_error("remove", &pin.path))?;
    }
    // The marks of objects are directories.
    let marks = list(&programs_dir(pin_dir))?;
    let directories = [programs_dir(pin_dir), links_dir(pin_dir), pin_dir.into()];
    for directory in marks.into_iter().chain(directories) {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(file_error("remove", &directory))?,
        }
    }
    Ok(pins)
}

/// What is in a directory, sorted; nothing if it is not there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = || file_error("list", directory);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(failed())?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<io::Result<_>>().map_err(failed())?;
    paths.sort();
    Ok(paths)
}
