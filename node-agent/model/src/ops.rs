//! What the reconciler may ask of the maps, and what they hold.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{
    Addr4, Addr6, Backend, Config, Endpoint, Frontend, FrontendKey, Peer, PeerName, RangeKey,
    Route, RouteKey, Service,
};

use crate::PackedName;

/// One write to one map. A plan is a list of them in the order in which they must become visible: backends, slots,
/// services, then frontends; the other way round when something goes. The large values are boxed: a first plan has
/// hundreds of thousands of operations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MapOp {
    V4(FamilyOp<Addr4>),
    V6(FamilyOp<Addr6>),
    Config(Box<Config>),
    /// Backend ids from `base` on. Arrays cannot delete: a freed range keeps its old ids until it is given again.
    Slots {
        base: u32,
        backend_ids: Vec<u32>,
    },
    Service {
        id: u32,
        service: Option<Service>,
    },
    ServiceName {
        id: u32,
        name: Option<PackedName>,
    },
    /// `Peer::default()` frees the id.
    Peer {
        id: u32,
        peer: Box<Peer>,
    },
    /// With a name the id begins to count anew.
    PeerName {
        id: u32,
        name: Option<Box<PeerName>>,
    },
}

/// The writes that exist once an address family. `None` deletes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FamilyOp<A> {
    Frontend {
        key: FrontendKey<A>,
        frontend: Option<Frontend>,
    },
    /// A source prefix that a service admits, or no longer does.
    Range {
        key: RangeKey<A>,
        admitted: bool,
    },
    /// `state: FREE` frees the id, its epoch stays.
    Backend {
        id: u32,
        backend: Backend<A>,
    },
    Endpoint {
        addr: A,
        endpoint: Option<Endpoint>,
    },
    Route {
        key: RouteKey<A>,
        route: Option<Route>,
    },
}

/// What the maps hold that the reconciler owns. Array entries that are all zero are left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    pub v4: SnapshotFamily<Addr4>,
    pub v6: SnapshotFamily<Addr6>,
    pub config: Config,
    pub services: BTreeMap<u32, Service>,
    pub service_names: BTreeMap<u32, PackedName>,
    /// Slot index to backend id.
    pub slots: BTreeMap<u32, u32>,
    pub peers: BTreeMap<u32, Peer>,
    pub peer_names: BTreeMap<u32, PeerName>,
}

/// The part of [`Snapshot`] that exists once an address family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotFamily<A: Ord> {
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    pub ranges: BTreeSet<RangeKey<A>>,
    pub backends: BTreeMap<u32, Backend<A>>,
    pub endpoints: BTreeMap<A, Endpoint>,
    pub routes: BTreeMap<RouteKey<A>, Route>,
}

impl<A: Ord> Default for SnapshotFamily<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            ranges: BTreeSet::new(),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }
}

/// Where map operations go: the pinned maps, or a tree of them in tests.
pub trait MapSink {
    /// Applies the operations in order, in as few system calls as order allows.
    ///
    /// # Errors
    ///
    /// Stops at the first operation that failed and tells its index; the earlier ones are in force.
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), SinkError>;

    /// Reads everything back.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    fn snapshot(&self) -> Result<Snapshot, SinkError>;
}

/// A map operation failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {action}")]
pub struct SinkError {
    pub map: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// Index of the operation that failed, where operations were applied.
    pub index: Option<usize>,
    /// The map is full: trying again will not help until something is removed.
    pub full: bool,
    #[source]
    pub source: std::io::Error,
}
