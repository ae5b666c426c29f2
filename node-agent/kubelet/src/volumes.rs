//! A pod's volumes: directories on this machine that its containers share.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use bollard::models::{Mount, MountType};
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, KeyToPath, Pod, Volume};

use crate::{env::ConfigError, objects::Objects, projected};

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

    /// Makes the pod's volumes; answers where each of them is.
    pub async fn prepare(
        &self,
        objects: &Objects,
        pod: &Pod,
    ) -> Result<BTreeMap<String, Prepared>, ConfigError> {
        let mut paths = BTreeMap::new();
        for volume in volumes_of(pod) {
            let path = if volume.empty_dir.is_some() {
                let path = self.directory(pod, "kubernetes.io~empty-dir", volume);
                make_directory(&path, 0o777)?;
                path
            } else if let Some(source) = &volume.host_path {
                host_path(volume, source)?
            } else if let Some(path) = self.write(objects, pod, volume).await? {
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

    /// Brings the volumes of ConfigMaps and Secrets up to date below the containers that read them.
    pub async fn refresh(&self, objects: &Objects, pod: &Pod) -> Result<(), ConfigError> {
        for volume in volumes_of(pod) {
            self.write(objects, pod, volume).await?;
        }
        Ok(())
    }

    /// Writes a volume that holds a ConfigMap or a Secret; `None` for any other.
    async fn write(
        &self,
        objects: &Objects,
        pod: &Pod,
        volume: &Volume,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let (kind, plugin, name, optional, items, mode) = if let Some(source) = &volume.config_map {
            let plugin = "kubernetes.io~configmap";
            let (items, mode) = (source.items.as_deref(), source.default_mode);
            let name = source.name.as_str();
            ("ConfigMap", plugin, name, source.optional, items, mode)
        } else if let Some(source) = &volume.secret {
            let plugin = "kubernetes.io~secret";
            let (items, mode) = (source.items.as_deref(), source.default_mode);
            let name = source.secret_name.as_deref().unwrap_or_default();
            ("Secret", plugin, name, source.optional, items, mode)
        } else {
            return Ok(None);
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let data = objects.data(kind, namespace, name).await?;
        let files = files(kind, name, data, optional == Some(true), items)?;
        let path = self.directory(pod, plugin, volume);
        if projected::write(&path, &files, mode)? {
            tracing::debug!(
                kind,
                namespace,
                name,
                volume = volume.name,
                "volume written"
            );
        }
        Ok(Some(path))
    }

    fn directory(&self, pod: &Pod, plugin: &str, volume: &Volume) -> PathBuf {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.root
            .join(uid)
            .join("volumes")
            .join(plugin)
            .join(&volume.name)
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

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.volumes.iter().flatten())
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

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), ConfigError> {
    let failed = || io_error(format!("make the directory {}", path.display()));
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed())
}

pub(crate) fn io_error(operation: String) -> impl FnOnce(io::Error) -> ConfigError {
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
}
