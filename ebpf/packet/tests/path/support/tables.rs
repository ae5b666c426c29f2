//! The node's tables as trees.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Peer, PeerCount, RangeKey, RouteKey, Service, conn_word,
};
use ebpf_packet::{
    ConnState, Entry, Inserted, Ip, Node, PeerEvent,
    conn_table::{self, ConnMemory},
};

use super::memory::Memory;

/// Tables of one address family.
#[derive(Clone)]
pub struct Tables<A: Ip> {
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    pub ranges: Vec<RangeKey<A>>,
    pub backends: BTreeMap<u32, Backend<A>>,
    pub endpoints: BTreeMap<A, Endpoint>,
    pub routes: BTreeMap<RouteKey<A>, u32>,
    pub conns: Rc<Memory<A>>,
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
            conns: Rc::new(Memory::new(256)),
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
    /// Packets and bytes, by peer id.
    pub peer_counts: RefCell<BTreeMap<u32, PeerCount>>,
    pub icmp_full_at: RefCell<BTreeMap<u32, u64>>,
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

/// A connection that was found by a word of the index, and what it was then.
pub struct TestEntry<A: Ip>(Rc<Memory<A>>, u32, Conn<A>);

impl<A: Ip> TestEntry<A> {
    fn slot(&self) -> u32 {
        conn_word::slot(self.1)
    }
}

impl<A: Ip> Entry<A> for TestEntry<A> {
    fn is_reply(&self) -> bool {
        conn_word::is_reply(self.1)
    }

    fn answers(&self) -> &ConnKey<A> {
        if self.is_reply() {
            &self.2.original
        } else {
            &self.2.reply
        }
    }

    fn state(&self) -> ConnState {
        self.0.state(self.slot()).expect("a slot of the table")
    }

    fn record(&self, state: &ConnState, now_ns: u64, flags: u32) {
        self.0.change(self.slot(), |conn| {
            conn.last_seen_ns = now_ns;
            conn.flags = state.flags | flags;
        });
    }

    fn forget(&self) {
        let slot = self.slot();
        conn_table::release(&*self.0, slot, self.0.generation(slot));
    }
}

impl<A: Ip> Node<A> for TestNode
where
    TestNode: Has<A>,
{
    type Entry<'a> = TestEntry<A>;

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

    fn endpoint<'n>(&'n self, addr: &A) -> Option<&'n Endpoint> {
        self.tables().endpoints.get(addr)
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

    fn count_peer(&self, peer_id: u32, what: PeerEvent, bytes: u32) {
        let mut counts = self.peer_counts.borrow_mut();
        let count = counts.entry(peer_id).or_default();
        let counter = match what {
            PeerEvent::Sent => &mut count.sent,
            PeerEvent::Received => &mut count.received,
            PeerEvent::Dropped => &mut count.dropped,
        };
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    fn icmp_full_at(&self, bucket: u32) -> u64 {
        let buckets = self.icmp_full_at.borrow();
        buckets.get(&bucket).copied().unwrap_or_default()
    }

    fn set_icmp_full_at(&self, bucket: u32, at_ns: u64) {
        self.icmp_full_at.borrow_mut().insert(bucket, at_ns);
    }

    fn conn(&self, key: &ConnKey<A>) -> Option<TestEntry<A>> {
        let conns = &self.tables().conns;
        let word = conn_table::find(&**conns, key);
        let conn = || conns.conn(conn_word::slot(word));
        (word != conn_word::NONE).then(|| TestEntry(Rc::clone(conns), word, conn()))
    }

    fn conn_insert(&self, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState) -> Inserted {
        conn_table::insert(&*self.tables().conns, key, reply, state)
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

/// The tuple of a packet from `src` to `dst`, addresses with their ports.
pub fn key<A: Ip>(src: (A, u16), dst: (A, u16), protocol: u8) -> ConnKey<A> {
    ConnKey {
        src: src.0,
        dst: dst.0,
        src_port_be: src.1.to_be(),
        dst_port_be: dst.1.to_be(),
        protocol,
        pad: [0; 3],
    }
}
