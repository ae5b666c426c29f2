//! One cluster at a time on a machine: the lock of the one who runs it, and the list of what it made.
//!
//! The list is written before the things are made, so `down` also removes half of a cluster.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::place::{self, Place};

const LOCK: &str = "/run/fairlead/up.lock";
const STATE: &str = "/run/fairlead/up.json";

/// What there is to remove.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub nodes: u8,
    pub namespaces: Vec<String>,
    pub cgroup: String,
    pub mounts: Vec<PathBuf>,
    /// Removed with all that is in them.
    pub folders: Vec<PathBuf>,
}

/// Held as long as somebody builds, runs or removes the cluster.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    pub fn take() -> Result<Lock> {
        fs::create_dir_all("/run/fairlead").context("cannot make /run/fairlead")?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(LOCK)
            .with_context(|| format!("cannot open {LOCK}"))?;
        let mut holder = String::new();
        file.read_to_string(&mut holder)
            .with_context(|| format!("cannot read {LOCK}"))?;
        let Ok(mut locked) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "a development cluster is already run by process {}: stop it there with Ctrl-C",
                holder.trim()
            );
        };
        locked.set_len(0)?;
        // The position is behind the old holder's id.
        std::io::Seek::rewind(&mut *locked)?;
        writeln!(locked, "{}", std::process::id())?;
        Ok(Lock { _file: locked })
    }
}

impl State {
    pub fn new(nodes: u8) -> State {
        let places: Vec<Place> = place::nodes(nodes).chain([Place::Outside]).collect();
        State {
            nodes,
            namespaces: places
                .iter()
                .filter_map(Place::namespace)
                .chain([place::UNDERLAY_NAMESPACE.to_string()])
                .collect(),
            cgroup: place::CGROUP.to_string(),
            mounts: vec![PathBuf::from(place::RUN)],
            folders: places
                .iter()
                .chain([&Place::ControlPlane])
                .map(Place::data_folder)
                .chain([PathBuf::from(place::RUN), place::kubeconfig()])
                .collect(),
        }
    }

    pub fn load() -> Result<Option<State>> {
        if !Path::new(STATE).exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(STATE).with_context(|| format!("cannot read {STATE}"))?;
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{STATE} is damaged"))
    }

    pub fn save(&self) -> Result<()> {
        let new = format!("{STATE}.new");
        fs::write(&new, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {new}"))?;
        fs::rename(&new, STATE).with_context(|| format!("cannot write {STATE}"))
    }

    pub fn forget() -> Result<()> {
        match fs::remove_file(STATE) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {STATE}"))
            }
            _ => Ok(()),
        }
    }
}
