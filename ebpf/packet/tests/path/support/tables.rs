//! The node's tables as trees.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Peer, RangeKey, RouteKey, Service,
};
use ebpf_packet::{ConnState, Entry, Inserted, Ip, Node};

type Conns<A> = BTreeMap<ConnKey<A>, Rc<Cell<Conn<A>>>>;

/// Tables of one address family.
pub struct Tables<A: Ip> {
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    pub ranges: Vec<RangeKey<A>>,
    pub backends: BTreeMap<u32, Backend<A>>,
    pub endpoints: BTreeMap<A, Endpoint>,
    pub routes: BTreeMap<RouteKey<A>, u32>,
    pub conns: RefCell<Conns<A>>,
    pub conn_limit: usize,
    pub fragments: RefCell<BTreeMap<FragmentKey<A>, FragmentPorts>>,
}

impl<A: Ip> Default for Tables<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            ranges: Vec::new(),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            conns: RefCell::default(),
            conn_limit: usize::MAX,
            fragments: RefCell::default(),
        }
    }
}

/// A node.
#[derive(Default)]
pub struct TestNode {
    pub config: Option<Config>,
    pub now_ns: Cell<u64>,
    pub random: Cell<u32>,
    pub services: BTreeMap<u32, Service>,
    pub cursors: RefCell<BTreeMap<u32, u32>>,
    pub slots: BTreeMap<u32, u32>,
    pub affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    pub peers: BTreeMap<u32, Peer>,
    pub v4: Tables<Addr4>,
    pub v6: Tables<Addr6>,
}

/// Which tables are a family's.
pub trait Has<A: Ip> {
    fn tables(&self) -> &Tables<A>;
    fn tables_mut(&mut self) -> &mut Tables<A>;
}

impl Has<Addr4> for TestNode {
    fn tables(&self) -> &Tables<Addr4> {
        &self.v4
    }
    fn tables_mut(&mut self) -> &mut Tables<Addr4> {
        &mut self.v4
    }
}

impl Has<Addr6> for TestNode {
    fn tables(&self) -> &Tables<Addr6> {
        &self.v6
    }
    fn tables_mut(&mut self) -> &mut Tables<Addr6> {
        &mut self.v6
    }
}

pub struct TestEntry<A>(Rc<Cell<Conn<A>>>);

impl<A: Ip> Entry<A> for TestEntry<A> {
    fn target(&self, key: &ConnKey<A>) -> ConnKey<A> {
        let conn = self.0.get();
        ConnKey {
            src: conn.src,
            dst: conn.dst,
            src_port_be: conn.src_port_be,
            dst_port_be: conn.dst_port_be,
            ..*key
        }
    }

    fn state(&self) -> ConnState {
        let conn = self.0.get();
        ConnState {
            last_seen_ns: conn.last_seen_ns,
            backend_id: conn.backend_id,
            backend_epoch: conn.backend_epoch,
            flags: conn.flags,
        }
    }

    fn record(&self, state: &ConnState, now_ns: u64, flags: u32) {
        self.0.set(Conn {
            last_seen_ns: now_ns,
            flags: state.flags | flags,
            ..self.0.get()
        });
    }
}

impl<A: Ip> Node<A> for TestNode
where
    TestNode: Has<A>,
{
    type Entry = TestEntry<A>;

    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn random(&self) -> u32 {
        self.random.set(
            self.random
                .get()
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223),
        );
        self.random.get() >> 8
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.tables().frontends.get(key).copied()
    }

    fn admits(&self, service_id: u32, source: &A) -> bool {
        let of_service = |range: &&RangeKey<A>| range.service_id_be == service_id.to_be();
        let mut ranges = self.tables().ranges.iter().filter(of_service);
        ranges.any(|range| starts_with(source, &range.addr, range.prefix_len - 32))
    }

    fn service(&self, service_id: u32) -> Option<Service> {
        self.services.get(&service_id).copied()
    }

    fn next_turn(&self, service_id: u32) -> Option<u32> {
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(service_id).or_default();
        let turn = *cursor;
        *cursor = cursor.wrapping_add(1);
        Some(turn)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn affinity_insert(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn backend(&self, backend_id: u32) -> Option<Backend<A>> {
        self.tables().backends.get(&backend_id).copied()
    }

    fn endpoint(&self, addr: &A) -> Option<Endpoint> {
        self.tables().endpoints.get(addr).copied()
    }

    fn route(&self, addr: &A) -> Option<u32> {
        let matches = |key: &RouteKey<A>| starts_with(addr, &key.addr, key.prefix_len);
        let routes = self.tables().routes.iter().filter(|(key, _)| matches(key));
        routes
            .max_by_key(|(key, _)| key.prefix_len)
            .map(|(_, peer_id)| *peer_id)
    }

    fn peer(&self, peer_id: u32) -> Option<&Peer> {
        self.peers.get(&peer_id)
    }

    fn conn(&self, key: &ConnKey<A>) -> Option<TestEntry<A>> {
        self.tables()
            .conns
            .borrow()
            .get(key)
            .cloned()
            .map(TestEntry)
    }

    fn conn_insert(&self, key: &ConnKey<A>, conn: &Conn<A>) -> Inserted {
        let tables = self.tables();
        let mut conns = tables.conns.borrow_mut();
        if conns.contains_key(key) {
            return Inserted::Taken;
        }
        if conns.len() >= tables.conn_limit {
            return Inserted::Full;
        }
        conns.insert(*key, Rc::new(Cell::new(*conn)));
        Inserted::Done
    }

    fn conn_remove(&self, key: &ConnKey<A>) {
        self.tables().conns.borrow_mut().remove(key);
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        self.tables().fragments.borrow().get(key).copied()
    }

    fn fragment_insert(&self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        self.tables().fragments.borrow_mut().insert(*key, *ports);
    }
}

fn starts_with<A: Ip>(addr: &A, prefix: &A, bits: u32) -> bool {
    (0..bits as usize).all(|bit| {
        let mask = 0x80 >> (bit % 8);
        (prefix.as_bytes()[bit / 8] ^ addr.as_bytes()[bit / 8]) & mask == 0
    })
}
