//! Pinned maps that get another size. The kernel fixes a map's size when it is made, so a new map takes its place, and
//! what the old one holds is copied. Connection tables keep their size: the place of a connection depends on it, and
//! programs move connections in a table of one size while others would in one of another.
//!
//! The old map stays pinned as `<name>_old` until programs that use the new one are attached everywhere, since those that
//! run meanwhile still write to it; then what they added is copied too. A start that ends in between is taken up by the
//! next one.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use ebpf_abi::maps as names;

use crate::{
    Error, MapError, MapLayout, Maps,
    layout::map_type,
    load::file_error,
    sys::{self, Access},
    table::RawMap,
};

/// What the programs write: only that is copied again at the end. What the agent writes would come back from the dead.
const WRITTEN_BY_PROGRAMS: [&str; 5] = [
    names::SOCKET4,
    names::SOCKET6,
    names::AFFINITY,
    names::FRAGMENT4,
    names::FRAGMENT6,
];

/// Puts a pinned map aside, so that one of the wanted size can be pinned in its place.
///
/// # Errors
///
/// When it holds more than fits into the new one.
pub(crate) fn set_aside(
    pin_dir: &Path,
    name: &'static str,
    wanted: &MapLayout,
) -> Result<(), Error> {
    let path = pin_dir.join(name);
    let old = open(name, &path)?;
    let needed = old.map_or(Ok(0), |old| needed(&old))?;
    if needed > wanted.max_entries {
        return Err(Error::TooSmall {
            map: name,
            needed,
            wanted: wanted.max_entries,
        });
    }
    fs::rename(&path, aside(pin_dir, name)).map_err(file_error("put aside", &path))
}

const CONN_TABLES: [&str; 9] = [
    names::CONN_TABLE,
    names::CONN4,
    names::CONN6,
    names::CONN_INDEX4,
    names::CONN_INDEX6,
    names::CONN_FILL4,
    names::CONN_FILL6,
    names::CONN_USED4,
    names::CONN_USED6,
];

/// Why a pinned map cannot get another size now.
pub(crate) fn why_not(pin_dir: &Path, name: &str) -> Option<&'static str> {
    if CONN_TABLES.contains(&name) {
        return Some(
            "its connections would be lost; `fairlead cleanup` ends them, and the next start has the new size",
        );
    }
    let under_way = aside(pin_dir, name).exists();
    under_way
        .then_some("an earlier change of its size was interrupted: the next start has the new size")
}

/// Copies what the maps that were put aside hold and the new ones lack.
pub(crate) fn copy(pin_dir: &Path, maps: &Maps) -> Result<(), Error> {
    copy_if(pin_dir, maps, |_| true)
}

/// Copies what programs that are detached by now have added, and gives the old maps up; their names.
pub(crate) fn finish(pin_dir: &Path, maps: &Maps) -> Result<Vec<&'static str>, Error> {
    copy_if(pin_dir, maps, |name| WRITTEN_BY_PROGRAMS.contains(&name))?;
    let mut given_up = Vec::new();
    for map in maps.all() {
        let path = aside(pin_dir, map.name());
        if path.exists() {
            fs::remove_file(&path).map_err(file_error("remove", &path))?;
            given_up.push(map.name());
        }
    }
    Ok(given_up)
}

fn copy_if(pin_dir: &Path, maps: &Maps, which: impl Fn(&str) -> bool) -> Result<(), Error> {
    for new in maps.all().filter(|map| which(map.name())) {
        if let Some(old) = open(new.name(), &aside(pin_dir, new.name()))? {
            copy_map(&old, new)?;
        }
    }
    Ok(())
}

fn copy_map(old: &RawMap, new: &RawMap) -> Result<(), MapError> {
    let is_array = new.layout().map_type == map_type::ARRAY;
    let mut result = Ok(());
    old.for_each(&mut |key, value| {
        if result.is_err() {
            return;
        }
        result = if !is_array {
            new.insert(key, value)
        } else if value.iter().any(|&byte| byte != 0) {
            new.update(key, value, 1)
        } else {
            Ok(())
        };
    })?;
    result
}

/// Entries that a map must have to hold what this one does: of an array up to the last that is in use.
fn needed(map: &RawMap) -> Result<u32, MapError> {
    let is_array = map.layout().map_type == map_type::ARRAY;
    let (mut count, mut end) = (0, 0);
    map.for_each(&mut |_, value| {
        count += 1;
        if value.iter().any(|&byte| byte != 0) {
            end = count;
        }
    })?;
    Ok(if is_array { end } else { count })
}

fn open(name: &'static str, path: &Path) -> Result<Option<RawMap>, Error> {
    let fd = sys::obj_get(path, Access::ReadWrite).map_err(file_error("open pinned map", path))?;
    let map = fd.map(|fd| RawMap::new(name, fd)).transpose()?;
    Ok(map)
}

fn aside(pin_dir: &Path, name: &str) -> PathBuf {
    pin_dir.join(format!("{name}_old"))
}

/// The layout of a pinned map; `None` if it is not there.
pub(crate) fn pinned_layout(path: &Path) -> Result<Option<MapLayout>, Error> {
    let pinned = sys::obj_get(path, Access::ReadOnly)
        .and_then(|fd| fd.map(|fd| sys::map_info(fd.as_fd())).transpose())
        .map_err(file_error("open pinned map", path))?;
    Ok(pinned.map(|(_, layout)| layout))
}
