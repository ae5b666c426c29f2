//! All pinned maps, typed.

use std::{path::Path, sync::Arc};

use ebpf_abi::{
    Addr4, Addr6, Address, Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Counter,
    Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey, Peer, Plain, RangeKey, Route,
    RouteKey, Service, ServiceName, SocketOrigin, maps as names,
};

use crate::{
    Error, Table,
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
    pub v4: FamilyMaps<Addr4>,
    pub v6: FamilyMaps<Addr6>,
    pub(crate) drop: Arc<RawMap>,
}

/// The maps that exist once an address family.
#[derive(Clone, Debug)]
pub struct FamilyMaps<A> {
    pub frontend: Table<FrontendKey<A>, Frontend>,
    /// Sources that services admit.
    pub range: Table<RangeKey<A>, u32>,
    pub backend: Table<u32, Backend<A>>,
    pub endpoint: Table<A, Endpoint>,
    pub route: Table<RouteKey<A>, Route>,
    pub conn: Table<ConnKey<A>, Conn<A>>,
    pub fragment: Table<FragmentKey<A>, FragmentPorts>,
    /// By socket cookie.
    pub socket: Table<u64, SocketOrigin<A>>,
}

/// An address family and the names of its maps.
pub trait MapFamily: Address {
    const FRONTEND: &str;
    const RANGE: &str;
    const BACKEND: &str;
    const ENDPOINT: &str;
    const ROUTE: &str;
    const CONN: &str;
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
            conn: pins.table(A::CONN)?,
            fragment: pins.table(A::FRAGMENT)?,
            socket: pins.table(A::SOCKET)?,
        })
    }

    fn all(&self) -> [&RawMap; 8] {
        [
            self.frontend.raw(),
            self.range.raw(),
            self.backend.raw(),
            self.endpoint.raw(),
            self.route.raw(),
            self.conn.raw(),
            self.fragment.raw(),
            self.socket.raw(),
        ]
    }
}

impl Pins<'_> {
    fn table<K: Plain, V: Plain>(&self, name: &'static str) -> Result<Table<K, V>, Error> {
        Ok(Table::new(self.map::<K, V>(name)?))
    }

    fn map<K, V>(&self, name: &'static str) -> Result<Arc<RawMap>, Error> {
        let path = self.dir.join(name);
        let fd = sys::obj_get(&path, self.access).map_err(|source| Error::File {
            action: "open pinned map",
            path: path.clone(),
            source,
        })?;
        let Some(fd) = fd else {
            return Err(Error::NotPinned { map: name, path });
        };
        let map = RawMap::new(name, fd)?;
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
}
