//! Taking what is pinned as it is, without the seconds that the verifier takes, when it comes from this very object.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fs,
    hash::Hasher,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use ebpf_abi::maps as names;

use crate::{
    Dataplane, Error, Maps, OBJECT, Program,
    load::{Loaded, file_error, map_ids, programs_dir},
    sys::{self, Access},
};

/// What the name of a mark begins with.
const MARK: &str = "object-";

/// The pinned dataplane; `None` if it comes from another object, if anything is missing, or if a program uses a map
/// that is no longer the pinned one.
pub(crate) fn adopt(pin_dir: &Path) -> Result<Option<Dataplane>, Error> {
    if !mark(pin_dir).exists() {
        return Ok(None);
    }
    let maps = match Maps::open(pin_dir, Access::ReadWrite) {
        Err(Error::NotPinned { .. }) => return Ok(None),
        result => result?,
    };
    let pinned_maps = map_ids(&maps).map_err(file_error("read the ids of the maps in", pin_dir))?;
    let mut programs = BTreeMap::new();
    for program in Program::ALL {
        let failed = |action| {
            move |source| Error::Program {
                action,
                program,
                source,
            }
        };
        let path = programs_dir(pin_dir).join(program.name());
        let fd = sys::obj_get(&path, Access::ReadWrite).map_err(failed("open pinned"))?;
        let Some(fd) = fd else { return Ok(None) };
        let loaded = Loaded::new(fd, &pinned_maps).map_err(failed("read the identity of"))?;
        if uses_stale_map(&loaded, &pinned_maps).map_err(failed("read the maps of"))? {
            return Ok(None);
        }
        programs.insert(program, loaded);
    }
    Ok(Some(Dataplane {
        pin_dir: pin_dir.into(),
        maps,
        programs,
    }))
}

/// Notes that every pinned program comes from this object.
pub(crate) fn set_mark(pin_dir: &Path) -> Result<(), Error> {
    let mark = mark(pin_dir);
    fs::create_dir_all(&mark).map_err(file_error("create", &mark))
}

/// Takes the note back, whichever object it names.
pub(crate) fn remove_marks(pin_dir: &Path) -> Result<(), Error> {
    let dir = programs_dir(pin_dir);
    for entry in fs::read_dir(&dir).map_err(file_error("list", &dir))? {
        let entry = entry.map_err(file_error("list", &dir))?;
        if entry.file_name().to_string_lossy().starts_with(MARK) {
            fs::remove_dir(entry.path()).map_err(file_error("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// A directory, since a bpffs holds no files; its name tells the object.
fn mark(pin_dir: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    hasher.write(OBJECT);
    programs_dir(pin_dir).join(format!("{MARK}{:016x}", hasher.finish()))
}

/// Whether a program uses a map that has the name of a pinned one, but is another.
fn uses_stale_map(program: &Loaded, pinned_maps: &[u32]) -> io::Result<bool> {
    for id in sys::prog_map_ids(program.fd())? {
        let map = sys::map_by_id(id)?;
        let name = sys::map_name(map.as_fd())?;
        if names::ALL.contains(&name.as_str()) && !pinned_maps.contains(&id) {
            return Ok(true);
        }
    }
    Ok(false)
}
