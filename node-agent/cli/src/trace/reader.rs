//! The node as the packet code asks for it: the pinned maps, read only. What the code would write stays here, for its
//! second look at the packet, and every answer becomes a line of the story.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Peer, RangeKey, RouteKey, Service,
};
use ebpf_packet::{ConnState, Entry, Inserted, Ip, Node, PeerEvent, conn_table};
use node_agent_maps::{MapError, Maps, monotonic_now_ns};
use node_agent_model::MapFamily;

use super::story::Story;
use crate::view::View;

/// The maps, and what the code would have changed in them so far.
#[derive(Debug)]
pub struct Reader<'a> {
    maps: &'a Maps,
    pub view: &'a View,
    pub story: Story,
    /// A map that could not be read: then the answer is worth nothing.
    failed: RefCell<Option<MapError>>,
    now_ns: u64,
    random: Cell<u32>,
    turns: RefCell<BTreeMap<u32, u32>>,
    /// Kept apart from the kernel's: a trace takes no answer away from anybody, and always gets its own.
    icmp_full_at: RefCell<BTreeMap<u32, u64>>,
    v4: Changed<Addr4>,
    v6: Changed<Addr6>,
}

/// By the tuples of both directions: connections that would be inserted (`true` for the answers), or removed (`None`).
type Changed<A> = RefCell<BTreeMap<ConnKey<A>, Option<(Conn<A>, bool)>>>;

/// A family whose maps can be read and whose packets can be handled.
pub trait Family: Ip + MapFamily + node_agent_maps::MapFamily {
    fn changed<'a>(reader: &'a Reader<'_>) -> &'a Changed<Self>;
}

/// A connection as it was read, and whether by the tuple of the answers.
pub struct Read<'a, A: Family> {
    conn: Conn<A>,
    is_reply: bool,
    changed: &'a Changed<A>,
    story: &'a Story,
}

impl Family for Addr4 {
    fn changed<'a>(reader: &'a Reader<'_>) -> &'a Changed<Self> {
        &reader.v4
    }
}

impl Family for Addr6 {
    fn changed<'a>(reader: &'a Reader<'_>) -> &'a Changed<Self> {
        &reader.v6
    }
}

impl<'a> Reader<'a> {
    pub fn new(maps: &'a Maps, view: &'a View) -> Self {
        let now_ns = monotonic_now_ns();
        Self {
            maps,
            view,
            story: Story::default(),
            failed: RefCell::default(),
            now_ns,
            random: Cell::new(now_ns as u32),
            turns: RefCell::default(),
            icmp_full_at: RefCell::default(),
            v4: RefCell::default(),
            v6: RefCell::default(),
        }
    }

    /// # Errors
    ///
    /// The first map that could not be read.
    pub fn finish(self) -> Result<Story, MapError> {
        match self.failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(self.story),
        }
    }

    fn read<T>(&self, result: Result<Option<T>, MapError>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            None
        })
    }
}

impl<A: Family> Node<A> for Reader<'_> {
    type Entry<'a>
        = Read<'a, A>
    where
        Self: 'a;

    fn config(&self) -> Option<&Config> {
        Some(&self.view.held.config)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn random(&self) -> u32 {
        // The generator of Numerical Recipes: any number will do, and the next one must be another.
        let next = self
            .random
            .get()
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.random.set(next);
        next >> 8
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        let found = A::half(&self.view.held).frontends.get(key).copied();
        self.story.frontend(self.view, key, found);
        found
    }

    fn admits(&self, service_id: u32, source: &A) -> bool {
        let key = RangeKey::new(service_id, *source, A::LEN as u32 * 8);
        let maps = <A as node_agent_maps::MapFamily>::of(self.maps);
        let admitted = self.read(maps.range.get(&key)).is_some();
        self.story.admitted(*source, admitted);
        admitted
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let found = self.read(self.maps.affinity.get(key));
        self.story.affinity(found.as_ref(), self.now_ns);
        found
    }

    fn affinity_insert(&self, _: &AffinityKey, _: &Affinity) {}

    fn count_peer(&self, _: u32, _: PeerEvent, _: u32) {}

    fn service(&self, service_id: u32) -> Option<Service> {
        let found = self.view.held.services.get(&service_id).copied();
        self.story.service(service_id, found);
        found
    }

    fn next_turn(&self, service_id: u32) -> Option<u32> {
        let mut turns = self.turns.borrow_mut();
        let turn = match turns.get(&service_id) {
            Some(turn) => *turn,
            None => self.read(self.maps.cursor.get(&service_id))?,
        };
        turns.insert(service_id, turn.wrapping_add(1));
        self.story.turn(turn);
        Some(turn)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        // An array has no absent entries: what was never written is zero.
        Some(self.view.held.slots.get(&index).copied().unwrap_or(0))
    }

    fn backend(&self, backend_id: u32) -> Option<Backend<A>> {
        let held = A::half(&self.view.held).backends.get(&backend_id);
        let backend = held.copied().unwrap_or_default();
        self.story.backend(backend_id, &backend);
        Some(backend)
    }

    fn endpoint<'n>(&'n self, addr: &A) -> Option<&'n Endpoint> {
        let found = A::half(&self.view.held).endpoints.get(addr);
        if let Some(endpoint) = found {
            self.story.endpoint(*addr, endpoint);
        }
        found
    }

    fn route(&self, addr: &A) -> Option<u32> {
        let key = RouteKey {
            prefix_len: A::LEN as u32 * 8,
            addr: *addr,
        };
        // The kernel finds the longest prefix, as it does for the programs.
        let maps = <A as node_agent_maps::MapFamily>::of(self.maps);
        let found = self.read(maps.route.get(&key)).map(|route| route.peer_id);
        self.story.route(self.view, *addr, found);
        found
    }

    fn peer(&self, peer_id: u32) -> Option<&Peer> {
        self.view.held.peers.get(&peer_id)
    }

    fn icmp_full_at(&self, bucket: u32) -> u64 {
        let buckets = self.icmp_full_at.borrow();
        buckets.get(&bucket).copied().unwrap_or_default()
    }

    fn set_icmp_full_at(&self, bucket: u32, at_ns: u64) {
        self.icmp_full_at.borrow_mut().insert(bucket, at_ns);
    }

    fn conn(&self, key: &ConnKey<A>) -> Option<Read<'_, A>> {
        let changed = A::changed(self).borrow().get(key).copied();
        let found = changed.unwrap_or_else(|| {
            let found = <A as node_agent_maps::MapFamily>::of(self.maps)
                .conns
                .get(key);
            self.story.connection(key, found.as_ref(), self.now_ns);
            found
        });
        found.map(|(conn, is_reply)| Read {
            conn,
            is_reply,
            changed: A::changed(self),
            story: &self.story,
        })
    }

    fn conn_insert(&self, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState) -> Inserted {
        let conns = &<A as node_agent_maps::MapFamily>::of(self.maps).conns;
        let is_there = |key| match A::changed(self).borrow().get(key) {
            Some(changed) => changed.is_some(),
            None => conns.get(key).is_some(),
        };
        if is_there(reply) {
            self.story.taken(reply);
            return Inserted::ReplyTaken;
        }
        if is_there(key) {
            return Inserted::Tracked;
        }
        if conns.count() >= conns.capacity() && !self.has_room::<A>() {
            return Inserted::Full;
        }
        let conn = Conn {
            last_seen_ns: state.last_seen_ns,
            original: *key,
            reply: *reply,
            flags: state.flags,
            backend_id: state.backend_id,
            backend_epoch: state.backend_epoch,
            ..Conn::default()
        };
        let mut changed = A::changed(self).borrow_mut();
        changed.insert(*reply, Some((conn, true)));
        changed.insert(*key, Some((conn, false)));
        self.story.tracked(key, &reply.reversed(), state.flags);
        Inserted::Done
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        let maps = <A as node_agent_maps::MapFamily>::of(self.maps);
        self.read(maps.fragment.get(key))
    }

    fn fragment_insert(&self, _: &FragmentKey<A>, _: &FragmentPorts) {}
}

impl Reader<'_> {
    /// Whether a connection would give way in a full table.
    fn has_room<A: Family>(&self) -> bool {
        let conns = <A as node_agent_maps::MapFamily>::of(self.maps)
            .conns
            .entries();
        conns
            .iter()
            .any(|conn| conn_table::gives_way(&state_of(conn), self.now_ns))
    }
}

fn state_of<A: Family>(conn: &Conn<A>) -> ConnState {
    ConnState {
        last_seen_ns: conn.last_seen_ns,
        backend_id: conn.backend_id,
        backend_epoch: conn.backend_epoch,
        flags: conn.flags,
        protocol: conn.original.protocol.into(),
    }
}

impl<A: Family> Entry<A> for Read<'_, A> {
    fn is_reply(&self) -> bool {
        self.is_reply
    }

    fn answers(&self) -> &ConnKey<A> {
        if self.is_reply {
            &self.conn.original
        } else {
            &self.conn.reply
        }
    }

    fn state(&self) -> ConnState {
        state_of(&self.conn)
    }

    /// Nothing: this packet never passes.
    fn record(&self, _: &ConnState, _: u64, _: u32) {}

    fn forget(&self) {
        let mut changed = self.changed.borrow_mut();
        changed.insert(self.conn.original, None);
        changed.insert(self.conn.reply, None);
        self.story.forgotten(&self.conn.original);
    }
}
