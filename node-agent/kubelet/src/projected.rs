//! A volume whose files the kubelet writes, replaced as a whole: what a container finds there is of one version.
//!
//! The layout is that of Kubernetes' kubelet, which some programs know: `..data` is a link to a directory that holds one
//! version, and each name in the volume is a link into `..data`. Replacing that one link is the update.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    env::ConfigError,
    volumes::{io_error, make_directory},
};

const DATA: &str = "..data";
const NEXT: &str = "..data_next";
/// What a file's mode is unless the volume says otherwise.
const MODE: u32 = 0o644;

/// Files by their paths in the volume.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Makes a volume hold exactly these files; says whether it had others before.
pub(crate) fn write(volume: &Path, files: &Files, mode: Option<i32>) -> Result<bool, ConfigError> {
    let mode = mode
        .and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(MODE);
    for path in files.keys() {
        check(volume, path)?;
    }
    make_directory(volume, 0o755)?;
    let failed = || io_error(format!("write the files of volume {}", volume.display()));
    if read(&volume.join(DATA)).is_ok_and(|current| current == with_mode(files, mode)) {
        return Ok(false);
    }
    let version = version();
    write_version(&volume.join(&version), files, mode)?;
    let next = volume.join(NEXT);
    remove(&next).map_err(failed())?;
    symlink(&version, &next).map_err(failed())?;
    fs::rename(&next, volume.join(DATA)).map_err(failed())?;
    let names: BTreeSet<&OsStr> = files.keys().filter_map(|path| first(path)).collect();
    for name in &names {
        link(volume, name).map_err(failed())?;
    }
    clean(volume, &names, &version).map_err(failed())?;
    Ok(true)
}

/// A path must lie in the volume, and not among the names of this layout.
fn check(volume: &Path, path: &str) -> Result<(), ConfigError> {
    let mut parts = Path::new(path).components();
    let inside = parts.all(|part| matches!(part, Component::Normal(_)));
    if inside && !path.is_empty() && !path.starts_with("..") {
        return Ok(());
    }
    Err(ConfigError::SubPath {
        mount: volume.display().to_string(),
        path: path.to_owned(),
    })
}

fn first(path: &str) -> Option<&OsStr> {
    Path::new(path)
        .components()
        .next()
        .map(Component::as_os_str)
}

/// A name that no earlier version had.
fn version() -> OsString {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("..{}_{:09}", now.as_secs(), now.subsec_nanos()).into()
}

fn write_version(directory: &Path, files: &Files, mode: u32) -> Result<(), ConfigError> {
    make_directory(directory, 0o755)?;
    for (name, value) in files {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            make_directory(parent, 0o755)?;
        }
        let failed = || io_error(format!("write {}", path.display()));
        fs::write(&path, value).map_err(failed())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed())?;
    }
    Ok(())
}

/// The link by which a container finds a name; anything else of that name goes.
fn link(volume: &Path, name: &OsStr) -> io::Result<()> {
    let (path, target) = (volume.join(name), Path::new(DATA).join(name));
    if fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    remove(&path)?;
    symlink(target, path)
}

/// Removes the links of names that are no more, and the versions before.
fn clean(volume: &Path, names: &BTreeSet<&OsStr>, version: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name();
        if name != DATA && name != version && !names.contains(name.as_os_str()) {
            remove(&volume.join(name))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn with_mode(files: &Files, mode: u32) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let files = files.iter();
    files
        .map(|(path, value)| (path.into(), (mode, value.clone())))
        .collect()
}

/// All files below a directory, with their modes.
fn read(directory: &Path) -> io::Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(directory.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(path);
            } else {
                let mode = metadata.permissions().mode() & 0o7777;
                found.insert(path, (mode, fs::read(entry.path())?));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        let pairs = pairs.iter();
        pairs
            .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))
            .collect()
    }

    fn names(volume: &Path) -> Vec<String> {
        let entries = fs::read_dir(volume).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_changes_as_a_whole_and_only_if_it_must() {
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        let text = |path: &str| fs::read_to_string(volume.join(path)).unwrap();
        let first = files(&[("a", "1"), ("sub/b", "1")]);
        assert!(write(volume, &first, None).unwrap());
        assert_eq!((text("a"), text("sub/b")), ("1".into(), "1".into()));
        let data = fs::read_link(volume.join(DATA)).unwrap();
        assert!(!write(volume, &first, None).unwrap());
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), data);
        // Who has the directory open sees the new files by the old path.
        assert!(write(volume, &files(&[("a", "2"), ("c", "2")]), None).unwrap());
        assert_eq!((text("a"), text("c")), ("2".into(), "2".into()));
        assert_eq!(names(volume), ["a", "c"]);
        assert!(
            !volume.join(data).exists(),
            "the version before is still there"
        );
    }

    #[test]
    fn what_an_earlier_agent_wrote_plainly_is_taken_over() {
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        fs::create_dir(volume.join("sub")).unwrap();
        for path in ["a", "gone", "sub/b"] {
            fs::write(volume.join(path), "plain").unwrap();
        }
        write(volume, &files(&[("a", "1"), ("sub/b", "1")]), None).unwrap();
        assert_eq!(names(volume), ["a", "sub"]);
        assert_eq!(fs::read(volume.join("sub/b")).unwrap(), b"1");
    }

    #[test]
    fn files_have_their_mode_and_do_not_leave_the_volume() {
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        let mode = |path: &str| {
            let metadata = fs::metadata(volume.join(path)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        write(volume, &files(&[("key", "text")]), Some(0o400)).unwrap();
        assert_eq!(mode("key"), 0o400);
        assert!(write(volume, &files(&[("key", "text")]), Some(0o440)).unwrap());
        assert_eq!(mode("key"), 0o440);
        for path in ["../key", "/key", "..data", "..key", ""] {
            assert!(
                write(volume, &files(&[(path, "")]), None).is_err(),
                "{path}"
            );
        }
    }
}
