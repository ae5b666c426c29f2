//! Puts the plugin where container runtimes look for it: the binary, then the configuration that names it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Version;

/// The plugin's name, as `type` of a configuration and as file.
pub const PLUGIN: &str = "fairlead-cni";
/// Runtimes take the first file by name.
const CONF_FILE: &str = "10-fairlead.conflist";

#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct InstallError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies `plugin` into `bin_dir` and writes the configuration into `conf_dir`; files that are right already are not
/// touched. A runtime sees each file whole or not at all.
///
/// # Errors
///
/// [`InstallError`] names the file.
pub fn install(
    plugin: &Path,
    bin_dir: &Path,
    conf_dir: &Path,
    socket: &Path,
) -> Result<(), InstallError> {
    let binary = fs::read(plugin).map_err(at("read", plugin))?;
    put(bin_dir, PLUGIN, &binary, 0o755)?;
    put(conf_dir, CONF_FILE, conflist(socket).as_bytes(), 0o644)
}

/// The files that [`install`] makes, the configuration first: without it no runtime asks for the plugin.
pub fn installed_files(bin_dir: &Path, conf_dir: &Path) -> [PathBuf; 2] {
    [conf_dir.join(CONF_FILE), bin_dir.join(PLUGIN)]
}

/// `cniVersion` is for runtimes that know one version; those of 1.1 choose from the list.
fn conflist(socket: &Path) -> String {
    let conf = json!({
        "cniVersion": Version::V1_0_0.text(),
        "cniVersions": Version::ALL.map(Version::text),
        "name": "fairlead",
        "plugins": [{"type": PLUGIN, "socket": socket, "capabilities": {"portMappings": true, "bandwidth": true}}],
    });
    format!("{conf:#}\n")
}

fn put(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let path = directory.join(name);
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::create_dir_all(directory).map_err(at("create", directory))?;
    // Runtimes read names that end in .conf, .conflist and .json only.
    let pending = directory.join(format!(".{name}.pending"));
    let write = || {
        let mut file = File::create(&pending)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write().map_err(at("write", &pending))?;
    fs::rename(&pending, &path).map_err(at("write", &path))
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_finds_the_plugin_and_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let (bin, conf) = (directory.path().join("bin"), directory.path().join("net.d"));
        let plugin = directory.path().join("built");
        fs::write(&plugin, "v1").unwrap();
        let socket = Path::new("/run/fairlead/cni.sock");
        install(&plugin, &bin, &conf, socket).unwrap();
        let installed = bin.join(PLUGIN);
        assert_eq!(
            installed.metadata().unwrap().permissions().mode() & 0o777,
            0o755
        );
        let text = fs::read(conf.join(CONF_FILE)).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(list["plugins"][0]["type"], PLUGIN);
        let capabilities = json!({"portMappings": true, "bandwidth": true});
        assert_eq!(list["plugins"][0]["capabilities"], capabilities);
        assert_eq!(list["cniVersions"][3], "1.1.0");
        // A newer plugin takes the old one's place, and what is right stays.
        let written = conf.join(CONF_FILE).metadata().unwrap().modified().unwrap();
        fs::write(&plugin, "v2").unwrap();
        install(&plugin, &bin, &conf, socket).unwrap();
        assert_eq!(fs::read_to_string(installed).unwrap(), "v2");
        assert_eq!(
            conf.join(CONF_FILE).metadata().unwrap().modified().unwrap(),
            written
        );
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
        let missing = install(&directory.path().join("none"), &bin, &conf, socket).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
