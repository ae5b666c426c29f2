//! What the packet code asks of the node: its tables, the time and a random number.

use ebpf_abi::{
    Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Endpoint, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, Peer, Service,
};

use crate::Ip;

/// How an insertion ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inserted {
    Done,
    /// The key is there already; its value is untouched.
    Taken,
    /// The table is full.
    Full,
}

/// What an entry says beside the tuple.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnState {
    pub last_seen_ns: u64,
    pub backend_id: u32,
    pub backend_epoch: u32,
    /// See [`ebpf_abi::conn_flag`].
    pub flags: u32,
}

/// A connection entry in its table. Read in two parts, since a whole one takes much of the stack of an eBPF program.
pub trait Entry<A> {
    /// The tuple that a packet with this key gets.
    fn target(&self, key: &ConnKey<A>) -> ConnKey<A>;
    fn state(&self) -> ConnState;
    /// Notes a packet: when it came, and which [`ebpf_abi::conn_flag`] bits to add to the state that was read.
    fn record(&self, state: &ConnState, now_ns: u64, flags: u32);
}

/// The tables of one address family, the time and random numbers.
pub trait Node<A: Ip> {
    type Entry: Entry<A>;

    /// The node's configuration; `None` while the agent has not written it.
    fn config(&self) -> Option<&Config>;
    /// `CLOCK_MONOTONIC_COARSE` in nanoseconds.
    fn now_ns(&self) -> u64;
    fn random(&self) -> u32;

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// Whether the source ranges of a service hold this source.
    fn admits(&self, service_id: u32, source: &A) -> bool;
    fn service(&self, service_id: u32) -> Option<Service>;
    /// The service's cursor before this call advanced it by one.
    fn next_turn(&self, service_id: u32) -> Option<u32>;
    /// The backend id in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Inserts or overwrites.
    fn affinity_insert(&self, key: &AffinityKey, affinity: &Affinity);
    fn backend(&self, backend_id: u32) -> Option<Backend<A>>;

    fn endpoint(&self, addr: &A) -> Option<Endpoint>;
    /// The id of the peer to which the longest matching route leads.
    fn route(&self, addr: &A) -> Option<u32>;
    fn peer(&self, peer_id: u32) -> Option<&Peer>;

    fn conn(&self, key: &ConnKey<A>) -> Option<Self::Entry>;
    /// Inserts; never overwrites.
    fn conn_insert(&self, key: &ConnKey<A>, conn: &Conn<A>) -> Inserted;
    fn conn_remove(&self, key: &ConnKey<A>);

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    /// Inserts or overwrites.
    fn fragment_insert(&self, key: &FragmentKey<A>, ports: &FragmentPorts);
}
