//! Which pod has which address: one file a lease, so that a crash at any point leaves every lease whole or absent.
//!
//! A lease is a file whose name is the address and whose text is the owner. It is written under another name, synced,
//! and then linked to its place: `link` (link(2)) fails if the address is taken, and until it succeeds the address is
//! nobody's. The directory is synced before the address is given out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::PodCidr;

/// Where a lease is written before it is linked to its place. No address can be spelt like this.
const PENDING: &str = ".pending";

/// The addresses of one node's pods. One process at a time may have a directory open.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    cidrs: Vec<PodCidr>,
    state: Mutex<State>,
}

/// An address and who has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    pub address: IpAddr,
    pub owner: String,
}

/// Why an address was not given or taken back.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error(
        "podCIDR {cidr} has no free address: all {capacity} are leased; delete pods or use a larger podCIDR"
    )]
    Exhausted {
        cidr: ipnetwork::IpNetwork,
        capacity: u128,
    },
    #[error("{owner:?} cannot own a lease: an owner is one line of text, and not empty")]
    Owner { owner: String },
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no lease: its name must be an address and its text the owner; move it away")]
    NotALease { path: PathBuf },
}

#[derive(Debug, Default)]
struct State {
    owners: BTreeMap<IpAddr, String>,
    /// For each range the number of the pod address to try first, so that an address rests before it is used again.
    next: Vec<u128>,
}

impl Ipam {
    /// Opens the leases in `directory`, which is created if it does not exist. An address is given from each of
    /// `cidrs`; leases outside of them stay their owners' until they are released.
    ///
    /// # Errors
    ///
    /// [`IpamError::File`], or [`IpamError::NotALease`] if something else lies in the directory.
    pub fn open(directory: &Path, cidrs: Vec<PodCidr>) -> Result<Self, IpamError> {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
        let mut state = State {
            owners: BTreeMap::new(),
            next: vec![0; cidrs.len()],
        };
        for entry in fs::read_dir(directory).map_err(at("list", directory))? {
            let path = entry.map_err(at("list", directory))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name == PENDING {
                // Whatever was being written was given to nobody.
                fs::remove_file(&path).map_err(at("remove", &path))?;
                continue;
            }
            let address: IpAddr = name
                .parse()
                .map_err(|_| IpamError::NotALease { path: path.clone() })?;
            let owner = fs::read_to_string(&path).map_err(at("read", &path))?;
            check_owner(&owner).map_err(|_| IpamError::NotALease { path: path.clone() })?;
            state.owners.insert(address, owner);
        }
        for (cidr, next) in cidrs.iter().zip(&mut state.next) {
            let last = state
                .owners
                .keys()
                .filter_map(|address| cidr.pod_number(*address))
                .max();
            *next = last.map_or(0, |number| number + 1);
        }
        Ok(Self {
            directory: directory.to_owned(),
            cidrs,
            state: Mutex::new(state),
        })
    }

    #[must_use]
    pub fn cidrs(&self) -> &[PodCidr] {
        &self.cidrs
    }

    /// One address of each range for `owner`, durable when this returns. An owner that has some already gets the same.
    ///
    /// # Errors
    ///
    /// [`IpamError::Exhausted`] names the range that is full; then the owner has no lease that it had not before.
    pub fn allocate(&self, owner: &str) -> Result<Vec<IpAddr>, IpamError> {
        check_owner(owner)?;
        let mut state = self.state();
        let mut addresses = Vec::with_capacity(self.cidrs.len());
        let mut added = Vec::new();
        for index in 0..self.cidrs.len() {
            let cidr = &self.cidrs[index];
            let present = state
                .owners
                .iter()
                .find(|(address, other)| *other == owner && cidr.contains(**address));
            if let Some((address, _)) = present {
                addresses.push(*address);
                continue;
            }
            match self.lease_one(&mut state, index, owner) {
                Ok(address) => {
                    addresses.push(address);
                    added.push(address);
                }
                Err(error) => {
                    for address in added {
                        self.remove(&mut state, address)?;
                    }
                    return Err(error);
                }
            }
        }
        if !added.is_empty() {
            self.sync_directory()?;
        }
        Ok(addresses)
    }

    /// Takes all addresses of `owner` back; answers which. Unknown owners have none.
    ///
    /// # Errors
    ///
    /// [`IpamError::File`] if a lease cannot be removed; it then stays the owner's.
    pub fn release(&self, owner: &str) -> Result<Vec<IpAddr>, IpamError> {
        let mut state = self.state();
        let addresses: Vec<IpAddr> = state
            .owners
            .iter()
            .filter(|(_, other)| *other == owner)
            .map(|(address, _)| *address)
            .collect();
        for address in &addresses {
            self.remove(&mut state, *address)?;
        }
        if !addresses.is_empty() {
            self.sync_directory()?;
        }
        Ok(addresses)
    }

    /// The addresses that `owner` has in the ranges given from, in their order.
    #[must_use]
    pub fn addresses(&self, owner: &str) -> Vec<IpAddr> {
        let state = self.state();
        let of = |cidr: &PodCidr| {
            state
                .owners
                .iter()
                .find(|(address, other)| *other == owner && cidr.contains(**address))
                .map(|(a, _)| *a)
        };
        self.cidrs.iter().filter_map(of).collect()
    }

    /// All leases, by address.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        let lease = |(address, owner): (&IpAddr, &String)| Lease {
            address: *address,
            owner: owner.clone(),
        };
        self.state().owners.iter().map(lease).collect()
    }

    fn lease_one(&self, state: &mut State, index: usize, owner: &str) -> Result<IpAddr, IpamError> {
        let cidr = &self.cidrs[index];
        let capacity = cidr.pods();
        let taken = state
            .owners
            .keys()
            .filter(|address| cidr.pod_number(**address).is_some())
            .count() as u128;
        if taken >= capacity {
            return Err(IpamError::Exhausted {
                cidr: cidr.network(),
                capacity,
            });
        }
        // Fewer addresses are taken than exist, so this ends after at most `taken` steps.
        let mut number = state.next[index] % capacity;
        while state.owners.contains_key(&cidr.pod(number)) {
            number = (number + 1) % capacity;
        }
        let address = cidr.pod(number);
        self.write_lease(address, owner)?;
        state.owners.insert(address, owner.to_owned());
        state.next[index] = number + 1;
        Ok(address)
    }

    fn write_lease(&self, address: IpAddr, owner: &str) -> Result<(), IpamError> {
        let pending = self.directory.join(PENDING);
        let path = self.path(address);
        // Never truncate what is there: after a failure it may be another lease's second name.
        remove_if_there(&pending)?;
        let mut file = File::create_new(&pending).map_err(at("create", &pending))?;
        file.write_all(owner.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(at("write", &pending))?;
        fs::hard_link(&pending, &path).map_err(at("link", &path))?;
        // The lease stands; a name that is left over goes with the next lease.
        let _ = fs::remove_file(&pending);
        Ok(())
    }

    fn remove(&self, state: &mut State, address: IpAddr) -> Result<(), IpamError> {
        remove_if_there(&self.path(address))?;
        state.owners.remove(&address);
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), IpamError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(at("sync", &self.directory))
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// The state stays consistent at every step that can panic, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_if_there(path: &Path) -> Result<(), IpamError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn check_owner(owner: &str) -> Result<(), IpamError> {
    if owner.is_empty() || owner.chars().any(char::is_control) {
        return Err(IpamError::Owner {
            owner: owner.to_owned(),
        });
    }
    Ok(())
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IpamError {
    let path = path.to_owned();
    move |source| IpamError::File {
        operation,
        path,
        source,
    }
}
