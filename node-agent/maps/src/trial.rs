//! A program of the object in maps that nobody else sees: what it makes of packets on this kernel, before anything
//! depends on it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

use aya::{Ebpf, EbpfLoader, maps::Map};
use ebpf_abi::{Addr4, Addr6, Address, Config, Peer, Plain, Route, RouteKey, maps as names};

use crate::{
    Error, MapError, OBJECT, Options, Program, TestRun,
    load::load_program,
    object,
    table::{RawMap, Table},
};

/// Entries of each map: all are nearly empty.
const SIZE: u32 = 64;
const PEER_ID: u32 = 1;

/// `from_pod` of a node without pods and services, of which every packet goes to one peer. It goes when it is dropped.
#[derive(Debug)]
pub struct Trial {
    program: OwnedFd,
    /// The maps.
    _ebpf: Ebpf,
}

impl Trial {
    /// # Errors
    ///
    /// When the kernel's verifier refuses the program, or the kernel the maps.
    pub fn new(config: &Config, peer: &Peer) -> Result<Self, Error> {
        let mut ebpf = load()?;
        let program = load_program(&mut ebpf, Program::FromPod)?;
        table::<u32, Config>(&ebpf, names::CONFIG)?.set(&0, config)?;
        table::<u32, Peer>(&ebpf, names::PEER)?.set(&PEER_ID, peer)?;
        route_everything::<Addr4>(&ebpf, names::ROUTE4)?;
        route_everything::<Addr6>(&ebpf, names::ROUTE6)?;
        Ok(Self {
            program,
            _ebpf: ebpf,
        })
    }

    /// What a frame of a pod becomes; `None` if it does not leave.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run the program.
    pub fn sent(&self, frame: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        /// `TC_ACT_REDIRECT`.
        const REDIRECT: u32 = 7;
        let result = TestRun::new(frame).on(self.program.as_fd());
        let result = result.map_err(|source| Error::Program {
            action: "run",
            program: Program::FromPod,
            source,
        })?;
        Ok((result.retval == REDIRECT).then_some(result.packet))
    }
}

fn load() -> Result<Ebpf, Error> {
    let conns = Options {
        max_entries: BTreeMap::from([(names::CONN4, SIZE), (names::CONN6, SIZE)]),
        ..Options::default()
    };
    let (conns, declared) = (conns.sizes()?, object::declared_maps()?);
    let mut loader = EbpfLoader::new();
    for (name, layout) in &declared {
        let size = conns.get(name.as_str()).copied();
        loader.map_max_entries(name, size.unwrap_or(layout.max_entries.min(SIZE)));
    }
    loader
        .load(OBJECT)
        .map_err(|source| Error::Object { source })
}

fn route_everything<A: Address>(ebpf: &Ebpf, map: &'static str) -> Result<(), Error> {
    let everything = RouteKey {
        prefix_len: 0,
        addr: A::default(),
    };
    let route = Route { peer_id: PEER_ID };
    Ok(table::<RouteKey<A>, Route>(ebpf, map)?.set(&everything, &route)?)
}

fn table<K: Plain, V: Plain>(ebpf: &Ebpf, name: &'static str) -> Result<Table<K, V>, Error> {
    let missing = || Error::NotInObject {
        what: "map",
        name: name.into(),
    };
    let (Map::Array(data) | Map::LpmTrie(data)) = ebpf.map(name).ok_or_else(missing)? else {
        return Err(missing());
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| MapError {
        map: name,
        action: "keep",
        index: 0,
        source,
    })?;
    Ok(Table::new(RawMap::new(name, fd)?.into()))
}
