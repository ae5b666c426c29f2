//! All pinned maps, typed.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnBucket, ConnTable, Counter,
    Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey, Peer, PeerCount, PeerName, Plain,
    RangeKey, Route, RouteKey, Service, ServiceName, SocketOrigin, maps as names,
};
use ebpf_packet::Ip;

use crate::{
    Conns, Error, Table,
    conns::{self, ConnMaps, SharedMap},
    sys::{self, Access},
    table::RawMap,
};

/// Every map. A clone is another handle to the same maps and to the same operation counters.
#[derive(Clone, Debug)]
pub struct Maps {
    pub config: Table<u32, Config>,
    pub service: Table<u32, Service>,
    pub service_name: Table<u32, ServiceName>,
    /// Slot index to backend id.
    pub slot: Table<u32, u32>,
    /// The next turn of each service, by service id.
    pub cursor: Table<u32, u32>,
    pub affinity: Table<AffinityKey, Affinity>,
    pub peer: Table<u32, Peer>,
    pub peer_name: Table<u32, PeerName>,
    pub v4: FamilyMaps<Addr4>,
    pub v6: FamilyMaps<Addr6>,
    pub(crate) icmp_limit: Arc<RawMap>,
    pub(crate) conn_table: Arc<RawMap>,
    pub(crate) peer_count: Arc<RawMap>,
    pub(crate) drop: Arc<RawMap>,
}

/// The maps that exist once an address family.
#[derive(Clone, Debug)]
pub struct FamilyMaps<A: Ip> {
    pub frontend: Table<FrontendKey<A>, Frontend>,
    /// Sources that services admit.
    pub range: Table<RangeKey<A>, u32>,
    pub backend: Table<u32, Backend<A>>,
    pub endpoint: Table<A, Endpoint>,
    pub route: Table<RouteKey<A>, Route>,
    pub conns: Conns<A>,
    pub fragment: Table<FragmentKey<A>, FragmentPorts>,
    /// By socket cookie.
    pub socket: Table<u64, SocketOrigin<A>>,
}

/// An address family and the names of its maps.
pub trait MapFamily: Ip {
    const FRONTEND: &str;
    const RANGE: &str;
    const BACKEND: &str;
    const ENDPOINT: &str;
    const ROUTE: &str;
    const CONN: &str;
    const CONN_INDEX: &str;
    const CONN_FILL: &str;
    const CONN_USED: &str;
    /// Of this family in `conn_table_v1`.
    const CONN_TABLE_ENTRY: u32;
    const FRAGMENT: &str;
    const SOCKET: &str;

    /// The maps of this family.
    fn of(maps: &Maps) -> &FamilyMaps<Self>;
}

/// The directory of the pins.
struct Pins<'a> {
    dir: &'a Path,
    access: Access,
}

impl MapFamily for Addr4 {
    const FRONTEND: &str = names::FRONTEND4;
    const RANGE: &str = names::RANGE4;
    const BACKEND: &str = names::BACKEND4;
    const ENDPOINT: &str = names::ENDPOINT4;
    const ROUTE: &str = names::ROUTE4;
    const CONN: &str = names::CONN4;
    const CONN_INDEX: &str = names::CONN_INDEX4;
    const CONN_FILL: &str = names::CONN_FILL4;
    const CONN_USED: &str = names::CONN_USED4;
    const CONN_TABLE_ENTRY: u32 = 0;
    const FRAGMENT: &str = names::FRAGMENT4;
    const SOCKET: &str = names::SOCKET4;

    fn of(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }
}

impl MapFamily for Addr6 {
    const FRONTEND: &str = names::FRONTEND6;
    const RANGE: &str = names::RANGE6;
    const BACKEND: &str = names::BACKEND6;
    const ENDPOINT: &str = names::ENDPOINT6;
    const ROUTE: &str = names::ROUTE6;
    const CONN: &str = names::CONN6;
    const CONN_INDEX: &str = names::CONN_INDEX6;
    const CONN_FILL: &str = names::CONN_FILL6;
    const CONN_USED: &str = names::CONN_USED6;
    const CONN_TABLE_ENTRY: u32 = 1;
    const FRAGMENT: &str = names::FRAGMENT6;
    const SOCKET: &str = names::SOCKET6;

    fn of(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }
}

impl Maps {
    /// Opens what an agent pinned, for reading only: the kernel refuses writes by these handles. Needs no agent.
    ///
    /// # Errors
    ///
    /// When a map is not pinned there, or has another layout than this version knows.
    pub fn open_read_only(pin_dir: &Path) -> Result<Self, Error> {
        Self::open(pin_dir, Access::ReadOnly)
    }

    /// Gives the connection tables that are new there their size and their seed.
    pub(crate) fn prepare(pin_dir: &Path) -> Result<(), Error> {
        let pins = Pins {
            dir: pin_dir,
            access: Access::ReadWrite,
        };
        let conns4 = pins.map::<u32, Conn<Addr4>>(names::CONN4)?;
        let conns6 = pins.map::<u32, Conn<Addr6>>(names::CONN6)?;
        let sizes = [conns4, conns6].map(|conns| conns.layout().max_entries);
        Ok(conns::prepare(&pins.conn_table()?, sizes)?)
    }

    pub(crate) fn open(pin_dir: &Path, access: Access) -> Result<Self, Error> {
        let pins = Pins {
            dir: pin_dir,
            access,
        };
        Ok(Self {
            config: pins.table(names::CONFIG)?,
            service: pins.table(names::SERVICE)?,
            service_name: pins.table(names::SERVICE_NAME)?,
            slot: pins.table(names::SLOT)?,
            cursor: pins.table(names::CURSOR)?,
            affinity: pins.table(names::AFFINITY)?,
            peer: pins.table(names::PEER)?,
            icmp_limit: pins.map::<u32, u64>(names::ICMP_LIMIT)?,
            conn_table: pins.conn_table()?,
            peer_name: pins.table(names::PEER_NAME)?,
            peer_count: pins.map::<u32, PeerCount>(names::PEER_COUNT)?,
            v4: FamilyMaps::open(&pins)?,
            v6: FamilyMaps::open(&pins)?,
            drop: pins.map::<u32, Counter>(names::DROP)?,
        })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &RawMap> {
        let shared = [
            self.config.raw(),
            self.service.raw(),
            self.service_name.raw(),
            self.slot.raw(),
            self.cursor.raw(),
            self.affinity.raw(),
            self.peer.raw(),
            &self.icmp_limit,
            &self.conn_table,
            self.peer_name.raw(),
            &self.peer_count,
            &self.drop,
        ];
        shared.into_iter().chain(self.v4.all()).chain(self.v6.all())
    }
}

impl<A: MapFamily> FamilyMaps<A> {
    fn open(pins: &Pins<'_>) -> Result<Self, Error> {
        Ok(Self {
            frontend: pins.table(A::FRONTEND)?,
            range: pins.table(A::RANGE)?,
            backend: pins.table(A::BACKEND)?,
            endpoint: pins.table(A::ENDPOINT)?,
            route: pins.table(A::ROUTE)?,
            conns: pins.conns()?,
            fragment: pins.table(A::FRAGMENT)?,
            socket: pins.table(A::SOCKET)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &RawMap> {
        let others = [
            self.frontend.raw(),
            self.range.raw(),
            self.backend.raw(),
            self.endpoint.raw(),
            self.route.raw(),
            self.fragment.raw(),
            self.socket.raw(),
        ];
        others.into_iter().chain(self.conns.raw())
    }
}

impl Pins<'_> {
    fn table<K: Plain, V: Plain>(&self, name: &'static str) -> Result<Table<K, V>, Error> {
        Ok(Table::new(self.map::<K, V>(name)?))
    }

    fn conn_table(&self) -> Result<Arc<RawMap>, Error> {
        self.map::<u32, ConnTable>(names::CONN_TABLE)
    }

    fn conns<A: MapFamily>(&self) -> Result<Conns<A>, Error> {
        let maps = ConnMaps {
            heads: self.shared::<ConnTable>(names::CONN_TABLE)?,
            entry: A::CONN_TABLE_ENTRY,
            conns: self.shared::<Conn<A>>(A::CONN)?,
            index: self.shared::<ConnBucket>(A::CONN_INDEX)?,
            fill: self.shared::<u64>(A::CONN_FILL)?,
            used: self.shared::<u64>(A::CONN_USED)?,
        };
        Ok(Conns::open(maps, self.access)?)
    }

    fn shared<V>(&self, name: &'static str) -> Result<SharedMap, Error> {
        Ok(SharedMap {
            raw: self.map::<u32, V>(name)?,
            writable: self.open(name, Access::ReadWrite)?,
        })
    }

    fn map<K, V>(&self, name: &'static str) -> Result<Arc<RawMap>, Error> {
        let path = self.dir.join(name);
        let map = RawMap::new(name, self.open(name, self.access)?)?;
        let pinned = map.layout();
        let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
        if (pinned.key_size as usize, pinned.value_size as usize) != (key_size, value_size) {
            return Err(Error::SizesDiffer {
                map: name,
                path,
                pinned,
                key_size,
                value_size,
            });
        }
        Ok(Arc::new(map))
    }

    fn open(&self, name: &'static str, access: Access) -> Result<OwnedFd, Error> {
        let path = self.dir.join(name);
        let fd = sys::obj_get(&path, access).map_err(|source| Error::File {
            action: "open pinned map",
            path: path.clone(),
            source,
        })?;
        fd.ok_or(Error::NotPinned { map: name, path })
    }
}
