//! A pod's volumes: directories on this machine that its containers share.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use bollard::models::{Mount, MountType};
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, KeyToPath, Pod, Volume};

use crate::{env::ConfigError, objects::Objects};

/// A volume that is ready to be mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Prepared {
    path: PathBuf,
    /// What the kubelet writes, containers only read (as Kubernetes mounts ConfigMaps and Secrets).
    read_only: bool,
}

/// Where the kubelet keeps volumes.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    /// `STATE_DIR/pods`.
    root: PathBuf,
}

impl Volumes {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("pods"),
        }
    }

    /// Makes the pod's volumes; answers where each of them is. ConfigMaps and Secrets are written anew.
    pub async fn prepare(
        &self,
        objects: &Objects,
        pod: &Pod,
    ) -> Result<BTreeMap<String, Prepared>, ConfigError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut paths = BTreeMap::new();
        for volume in pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
        {
            let directory = |kind: &str| {
                self.root
                    .join(uid)
                    .join("volumes")
                    .join(kind)
                    .join(&volume.name)
            };
            let path = if volume.empty_dir.is_some() {
                let path = directory("kubernetes.io~empty-dir");
                make_directory(&path, 0o777)?;
                path
            } else if let Some(source) = &volume.host_path {
                host_path(volume, source)?
            } else if let Some(source) = &volume.config_map {
                let data = objects.data("ConfigMap", namespace, &source.name).await?;
                let path = directory("kubernetes.io~configmap");
                let optional = source.optional == Some(true);
                let files = files(
                    "ConfigMap",
                    &source.name,
                    data,
                    optional,
                    source.items.as_deref(),
                )?;
                write_files(&path, &files, source.default_mode)?;
                path
            } else if let Some(source) = &volume.secret {
                let name = source.secret_name.as_deref().unwrap_or_default();
                let data = objects.data("Secret", namespace, name).await?;
                let path = directory("kubernetes.io~secret");
                let optional = source.optional == Some(true);
                let files = files("Secret", name, data, optional, source.items.as_deref())?;
                write_files(&path, &files, source.default_mode)?;
                path
            } else {
                return Err(ConfigError::VolumeKind {
                    volume: volume.name.clone(),
                });
            };
            let read_only = volume.config_map.is_some() || volume.secret.is_some();
            paths.insert(volume.name.clone(), Prepared { path, read_only });
        }
        Ok(paths)
    }

    /// Removes what [`Volumes::prepare`] made for a pod.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.root.join(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The uids of the pods that have volumes here.
    pub fn pods(&self) -> io::Result<Vec<String>> {
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect(),
        }
    }
}

/// The container's mounts of the pod's volumes.
pub(crate) fn mounts(
    container: &Container,
    volumes: &BTreeMap<String, Prepared>,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes
            .get(&mount.name)
            .ok_or_else(|| ConfigError::NoVolume {
                mount: mount.mount_path.clone(),
                volume: mount.name.clone(),
            })?;
        let source = match mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
            None => volume.path.clone(),
            Some(path) => sub_path(&volume.path, path)?.ok_or_else(|| ConfigError::SubPath {
                mount: mount.mount_path.clone(),
                path: path.to_owned(),
            })?,
        };
        mounts.push(Mount {
            target: Some(mount.mount_path.clone()),
            source: Some(source.display().to_string()),
            typ: Some(MountType::BIND),
            read_only: Some(volume.read_only || mount.read_only == Some(true)),
            ..Mount::default()
        });
    }
    Ok(mounts)
}

/// The place of `path` in a volume, made if it is not there; `None` if it leads out of the volume, be it by a link
/// that a container has laid.
fn sub_path(volume: &Path, path: &str) -> Result<Option<PathBuf>, ConfigError> {
    if !Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Ok(None);
    }
    let resolve = |path: &Path| {
        fs::canonicalize(path).map_err(io_error(format!("resolve {}", path.display())))
    };
    let root = resolve(volume)?;
    let mut place = root.clone();
    for part in Path::new(path).components() {
        place.push(part);
        if fs::symlink_metadata(&place).is_err() {
            make_directory(&place, 0o755)?;
        }
        place = resolve(&place)?;
        if !place.starts_with(&root) {
            return Ok(None);
        }
    }
    Ok(Some(place))
}

fn host_path(volume: &Volume, source: &HostPathVolumeSource) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let wrong = || ConfigError::HostPath {
        volume: volume.name.clone(),
        path: source.path.clone(),
        wanted: if kind.is_empty() {
            "path that exists".to_owned()
        } else {
            kind.to_owned()
        },
    };
    let right = match kind {
        "DirectoryOrCreate" => {
            if !path.exists() {
                make_directory(&path, 0o755)?;
            }
            path.is_dir()
        }
        "FileOrCreate" => {
            if !path.exists() {
                fs::File::create(&path).map_err(io_error(format!("create {}", path.display())))?;
            }
            path.is_file()
        }
        "Directory" => path.is_dir(),
        "File" => path.is_file(),
        _ => {
            // Docker refuses to bind what does not exist; Kubernetes' default checks nothing.
            if kind.is_empty() && !path.exists() {
                make_directory(&path, 0o755)?;
            }
            path.exists()
        }
    };
    if right { Ok(path) } else { Err(wrong()) }
}

fn files(
    kind: &'static str,
    name: &str,
    data: Option<BTreeMap<String, Vec<u8>>>,
    optional: bool,
    items: Option<&[KeyToPath]>,
) -> Result<BTreeMap<String, Vec<u8>>, ConfigError> {
    let Some(mut data) = data else {
        if optional {
            return Ok(BTreeMap::new());
        }
        return Err(ConfigError::NoObject {
            kind,
            name: name.to_owned(),
        });
    };
    let Some(items) = items else { return Ok(data) };
    let mut files = BTreeMap::new();
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                files.insert(item.path.clone(), value);
            }
            None if optional => {}
            None => {
                return Err(ConfigError::NoKey {
                    kind,
                    name: name.to_owned(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(files)
}

fn write_files(
    directory: &Path,
    files: &BTreeMap<String, Vec<u8>>,
    mode: Option<i32>,
) -> Result<(), ConfigError> {
    make_directory(directory, 0o755)?;
    for (name, value) in files {
        if !Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(ConfigError::SubPath {
                mount: directory.display().to_string(),
                path: name.clone(),
            });
        }
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            make_directory(parent, 0o755)?;
        }
        let failed = || io_error(format!("write {}", path.display()));
        fs::write(&path, value).map_err(failed())?;
        let mode = mode
            .and_then(|mode| u32::try_from(mode).ok())
            .unwrap_or(0o644);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed())?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<(), ConfigError> {
    let failed = || io_error(format!("make the directory {}", path.display()));
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed())
}

fn io_error(operation: String) -> impl FnOnce(io::Error) -> ConfigError {
    move |source| ConfigError::Io { operation, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let root = fs::canonicalize(&volume).unwrap();
        assert_eq!(sub_path(&volume, "a/b").unwrap(), Some(root.join("a/b")));
        assert!(root.join("a/b").is_dir());
        symlink("a", volume.join("inside")).unwrap();
        assert_eq!(
            sub_path(&volume, "inside/b").unwrap(),
            Some(root.join("a/b"))
        );
        symlink("/etc", volume.join("outside")).unwrap();
        for path in ["..", "a/../..", "/etc", "outside", "outside/ssl"] {
            assert_eq!(sub_path(&volume, path).unwrap(), None, "{path}");
        }
        assert!(!Path::new("/etc/new").exists());
    }

    #[test]
    fn items_choose_the_files_and_must_exist_unless_optional() {
        let data = || {
            Some(BTreeMap::from([
                ("a".to_owned(), b"1".to_vec()),
                ("b".to_owned(), b"2".to_vec()),
            ]))
        };
        let item = |key: &str| KeyToPath {
            key: key.to_owned(),
            path: format!("x/{key}"),
            ..KeyToPath::default()
        };
        let all = files("ConfigMap", "m", data(), false, None).unwrap();
        assert_eq!(all.len(), 2);
        let some = files("ConfigMap", "m", data(), false, Some(&[item("b")])).unwrap();
        assert_eq!(some, BTreeMap::from([("x/b".to_owned(), b"2".to_vec())]));
        let error = files("ConfigMap", "m", data(), false, Some(&[item("c")])).unwrap_err();
        assert_eq!(error.to_string(), "ConfigMap \"m\" has no key \"c\"");
        assert!(
            files("ConfigMap", "m", data(), true, Some(&[item("c")]))
                .unwrap()
                .is_empty()
        );
        assert!(files("Secret", "s", None, false, None).is_err());
        assert!(files("Secret", "s", None, true, None).unwrap().is_empty());
    }

    #[test]
    fn files_are_written_with_their_mode_and_not_outside() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| BTreeMap::from([(name.to_owned(), b"text".to_vec())]);
        write_files(directory.path(), &file("sub/key"), Some(0o400)).unwrap();
        let written = directory.path().join("sub/key");
        assert_eq!(fs::read(&written).unwrap(), b"text");
        assert_eq!(
            fs::metadata(&written).unwrap().permissions().mode() & 0o777,
            0o400
        );
        assert!(write_files(directory.path(), &file("../key"), None).is_err());
    }
}
