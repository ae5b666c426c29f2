//! What the packet code asks of the node: its tables, the time and a random number.

use ebpf_abi::{
    Affinity, AffinityKey, Backend, Config, ConnKey, Endpoint, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, Peer, Service, conn_flag,
};

use crate::Ip;

/// What became of a packet to or from a peer: which counter of [`ebpf_abi::PeerCount`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerEvent {
    Sent,
    Received,
    Dropped,
}

/// How an insertion ended. Except with [`Inserted::Done`] the table is as it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inserted {
    Done,
    /// Another connection has the tuple that the answers would have.
    ReplyTaken,
    /// There is a connection with the same tuple already.
    Tracked,
    /// The table is full.
    Full,
}

/// What a connection says beside its tuples.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct ConnState {
    pub last_seen_ns: u64,
    pub backend_id: u32,
    pub backend_epoch: u32,
    /// See [`ebpf_abi::conn_flag`].
    pub flags: u32,
    /// IANA protocol number; a word, so that there is no padding, which the verifier would not let a program hand on.
    pub protocol: u32,
}

impl ConnState {
    /// Whether TCP has seen the end of either direction.
    #[inline(always)]
    pub fn has_ended(&self) -> bool {
        let end = conn_flag::CLIENT_FIN | conn_flag::BACKEND_FIN | conn_flag::TCP_RST;
        self.flags & end != 0
    }
}

/// A connection in its table, found by the tuple of one direction. Read in parts, since a whole one takes much of the
/// stack of an eBPF program.
pub trait Entry<A> {
    /// Whether it was found by the tuple of the answers.
    fn is_reply(&self) -> bool;
    /// The tuple with which the answers to packets of this direction arrive: turned round, it is what such a packet gets.
    fn answers(&self) -> &ConnKey<A>;
    fn state(&self) -> ConnState;
    /// Notes a packet: when it came, and which [`ebpf_abi::conn_flag`] bits to add to the state that was read.
    fn record(&self, state: &ConnState, now_ns: u64, flags: u32);
    /// Takes the connection out of the table, in both directions.
    fn forget(&self);
}

/// The tables of one address family, the time and random numbers.
pub trait Node<A: Ip> {
    type Entry<'a>: Entry<A>
    where
        Self: 'a;

    /// The node's configuration; `None` while the agent has not written it.
    fn config(&self) -> Option<&Config>;
    /// `CLOCK_MONOTONIC_COARSE` in nanoseconds.
    fn now_ns(&self) -> u64;
    fn random(&self) -> u32;

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// Whether the source ranges of a service hold this source; those of [`ebpf_abi::KEEPS_SOURCE`] hold destinations.
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

    /// To be read at once: the place may be another endpoint's soon.
    fn endpoint<'n>(&'n self, addr: &A) -> Option<&'n Endpoint>;
    /// The id of the peer to which the longest matching route leads.
    fn route(&self, addr: &A) -> Option<u32>;
    fn peer(&self, peer_id: u32) -> Option<&Peer>;
    /// Counts a packet of this many bytes, without Ethernet, to or from a peer.
    fn count_peer(&self, peer_id: u32, what: PeerEvent, bytes: u32);

    /// When a bucket of ICMP answers would be full again, by the clock of [`Node::now_ns`]; any number is a bucket's.
    fn icmp_full_at(&self, bucket: u32) -> u64;
    fn set_icmp_full_at(&self, bucket: u32, at_ns: u64);

    /// The connection that has this tuple in either direction.
    fn conn(&self, key: &ConnKey<A>) -> Option<Self::Entry<'_>>;
    /// Inserts the connection whose packets arrive with `key`, their answers with `reply`; never overwrites.
    fn conn_insert(&self, key: &ConnKey<A>, reply: &ConnKey<A>, state: &ConnState) -> Inserted;

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    /// Inserts or overwrites.
    fn fragment_insert(&self, key: &FragmentKey<A>, ports: &FragmentPorts);
}
