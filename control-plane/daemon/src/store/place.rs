//! A place where state can be: a file, or etcd.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use control_plane_store::{EmbeddedStore, EtcdStore, Store, embedded, etcd};

use super::flags::StoreFlags;
use super::socket::BackupSocket;

const FILE: &str = "store.redb";

/// Where state is, or shall be.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file of the embedded store.
    File(PathBuf),
    Etcd(etcd::Options),
}

impl Place {
    /// The place that the control plane uses with these flags.
    pub fn of_flags(flags: &StoreFlags, data_dir: &Path) -> Result<Self> {
        if flags.etcd_servers.is_empty() {
            return Ok(Self::File(data_dir.join(FILE)));
        }
        let options = flags.options("--etcd-servers", &flags.etcd_servers)?;
        Ok(Self::Etcd(options))
    }

    /// The place that the value of the flag `name` names: URLs of etcd, a data folder, or a file `….redb`.
    pub fn parse(name: &str, text: &str, flags: &StoreFlags) -> Result<Self> {
        if text.contains("://") {
            let servers: Vec<String> = text.split(',').map(str::to_owned).collect();
            return Ok(Self::Etcd(flags.options(name, &servers)?));
        }
        let path = PathBuf::from(text);
        let is_file = path.extension().is_some_and(|ending| ending == "redb");
        Ok(Self::File(if is_file { path } else { path.join(FILE) }))
    }

    /// Opens the store; a file is made if there is none, and so is its folder.
    pub async fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::File(path) => {
                self.make_folder()?;
                let path = path.clone();
                let open = || EmbeddedStore::open(path, embedded::Options::default());
                Ok(Arc::new(tokio::task::spawn_blocking(open).await??))
            }
            Self::Etcd(options) => Ok(Arc::new(EtcdStore::connect(options.clone()).await?)),
        }
    }

    pub fn make_folder(&self) -> Result<()> {
        match self {
            Self::File(path) => {
                let folder = path.parent().unwrap_or(Path::new("."));
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("cannot make the folder {}", folder.display()))
            }
            Self::Etcd(_) => Ok(()),
        }
    }

    /// Lets `store backup` have the state while this process has the file; etcd serves it itself.
    pub fn serve_backups(&self, store: &Arc<dyn Store>) -> Option<BackupSocket> {
        let Self::File(path) = self else {
            return None;
        };
        let served = BackupSocket::serve(path, store);
        // The cluster matters more: a path may be too long for a socket.
        let warn = |error| tracing::warn!(error = format!("{error:#}"), "backups need a stop");
        served.map_err(warn).ok()
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Etcd(options) => write!(f, "{}", options.servers.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let parse = |text| Place::parse("--to", text, &StoreFlags::default()).unwrap();
        for (text, shown) in [
            ("/var/lib/fairlead", "/var/lib/fairlead/store.redb"),
            ("old.redb", "old.redb"),
            ("http://a:2379,http://b:2379", "http://a:2379,http://b:2379"),
        ] {
            assert_eq!(parse(text).to_string(), shown);
        }
        let refused = Place::parse("--to", "redis://a", &StoreFlags::default());
        let said = refused.unwrap_err().to_string();
        assert!(
            said.starts_with("--to \"redis://a\": give client URLs"),
            "{said}"
        );
    }
}
