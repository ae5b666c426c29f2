//! Connections: a pair of entries, one for each direction, each keyed by the tuple that a packet has when it arrives.

use ebpf_abi::{Config, Conn, ConnKey, DropReason, conn_flag};

use crate::{
    Entry, Inserted, Ip, Node,
    node::ConnState,
    parse::{Headers, protocol, tcp},
};

/// Ports tried for source NAT before a connection is refused.
const PORT_TRIES: u32 = 16;
/// First port that source NAT takes at its own address: below are those that servers use.
const FIRST_OWN_PORT: u16 = 1024;

/// The flags that a packet leaves on its direction's entry.
#[inline(always)]
pub(crate) fn flags_of<A: Ip>(headers: &Headers<A>) -> u32 {
    if !headers.is_tcp() {
        return conn_flag::OPEN;
    }
    let seen = headers.tcp_flags;
    let mut flags = 0;
    if seen & tcp::SYN != 0 {
        flags |= conn_flag::OPEN;
    }
    if seen & tcp::FIN != 0 {
        flags |= conn_flag::TCP_FIN;
    }
    if seen & tcp::RST != 0 {
        flags |= conn_flag::TCP_RST;
    }
    flags
}

/// Whether the entry must not be used for this packet any more, but the backend be selected anew.
///
/// UDP leaves a backend whose epoch has moved on at once. TCP stays with it (it drains), unless the packet opens a
/// connection; an opening one also leaves a connection that is finished.
#[inline(always)]
pub(crate) fn is_stale<A: Ip, N: Node<A>>(
    node: &N,
    headers: &Headers<A>,
    state: &ConnState,
    target: &ConnKey<A>,
) -> bool {
    if headers.is_tcp() {
        return headers.is_tcp_open()
            && (epoch_moved_on(node, state) || is_finished(node, target, state.flags));
    }
    epoch_moved_on(node, state)
}

#[inline(always)]
fn epoch_moved_on<A: Ip, N: Node<A>>(node: &N, state: &ConnState) -> bool {
    state.flags & (conn_flag::SERVICE | conn_flag::REPLY) == conn_flag::SERVICE
        && node
            .backend(state.backend_id)
            .is_none_or(|backend| backend.epoch != state.backend_epoch)
}

/// Whether either direction of a TCP connection has seen its end: the one with these flags, whose packets get
/// `target`, or the other.
#[inline(never)]
fn is_finished<A: Ip, N: Node<A>>(node: &N, target: &ConnKey<A>, flags: u32) -> bool {
    has_ended(flags) || other_has_ended(node, &target.reversed())
}

#[inline(always)]
fn has_ended(flags: u32) -> bool {
    flags & (conn_flag::TCP_FIN | conn_flag::TCP_RST) != 0
}

#[inline(always)]
fn other_has_ended<A: Ip, N: Node<A>>(node: &N, other: &ConnKey<A>) -> bool {
    node.conn(other)
        .is_some_and(|entry| has_ended(entry.state().flags))
}

/// Removes both entries of the connection whose packets with `key` get `target`.
#[inline(never)]
pub(crate) fn forget<A: Ip, N: Node<A>>(node: &N, key: &ConnKey<A>, target: &ConnKey<A>) {
    node.conn_remove(&target.reversed());
    node.conn_remove(key);
}

/// Whether the answers to a packet that is not translated would be taken for those of a living connection through a
/// service: client:port -> ClusterIP was balanced to the backend to which client:port now talks directly.
///
/// A connection that is finished, or was never answered, gives way.
#[inline(never)]
pub(crate) fn answers_are_anothers<A: Ip, N: Node<A>>(node: &N, tuple: &ConnKey<A>) -> bool {
    let reverse = tuple.reversed();
    let Some(entry) = node.conn(&reverse) else {
        return false;
    };
    let flags = entry.state().flags;
    if flags & conn_flag::REPLY == 0 {
        return false;
    }
    // No calls from here: with the frames of the callers the stack is nearly full.
    let forward = entry.target(&reverse).reversed();
    let lives = flags & conn_flag::OPEN != 0
        && (tuple.protocol != protocol::TCP
            || !(has_ended(flags) || other_has_ended(node, &forward)));
    if !lives {
        node.conn_remove(&forward);
        node.conn_remove(&reverse);
    }
    lives
}

/// A connection about to be tracked.
pub(crate) struct New<A: Ip> {
    /// What the packet becomes, if its source port is free.
    pub(crate) target: ConnKey<A>,
    pub(crate) backend_id: u32,
    pub(crate) backend_epoch: u32,
    /// Flags of both entries.
    pub(crate) flags: u32,
    /// Where other source ports may be taken if this one is in use: an address of the node, unset if nowhere.
    pub(crate) nat_addr: A,
    /// First port there and the number of ports, in host order.
    pub(crate) first_port: u16,
    pub(crate) port_count: u16,
}

impl<A: Ip> New<A> {
    /// A connection with the tuple that its packet has.
    #[inline(always)]
    pub(crate) fn keeping_source(tuple: &ConnKey<A>) -> Self {
        Self {
            target: *tuple,
            backend_id: 0,
            backend_epoch: 0,
            flags: 0,
            nat_addr: A::default(),
            first_port: 0,
            port_count: 0,
        }
    }

    /// If the source must change: the address that serves for nothing else, where every port but the low ones is free.
    #[inline(always)]
    pub(crate) fn use_own_ports(&mut self, config: &Config) {
        self.nat_addr = A::settings(config).source_nat_addr;
        self.first_port = FIRST_OWN_PORT;
        self.port_count = u16::MAX - FIRST_OWN_PORT;
    }

    /// If the source port must change: another one of the client's own. Should it use that one itself later, that
    /// connection meets this one's answers and takes another in its turn.
    #[inline(always)]
    pub(crate) fn use_clients_ports(&mut self) {
        self.nat_addr = self.target.src;
        self.first_port = FIRST_OWN_PORT;
        self.port_count = u16::MAX - FIRST_OWN_PORT;
    }

    /// If the source must change: the node's address on the uplink, where the ports are ours that the kernel leaves to us.
    #[inline(always)]
    pub(crate) fn use_node_ports(&mut self, config: &Config) {
        self.nat_addr = A::settings(config).node_addr;
        self.first_port = config.nat_port_first;
        self.port_count = config
            .nat_port_last
            .wrapping_sub(config.nat_port_first)
            .wrapping_add(1);
    }

    /// Replaces the source by the source NAT address.
    #[inline(always)]
    pub(crate) fn take_source(&mut self) {
        self.target.src = self.nat_addr;
        self.flags |= conn_flag::SOURCE_NAT;
    }

    /// Inserts the pair for packets that arrive with `key`, with another source port if the wanted one is in use.
    /// Returns 0 or the number of a drop reason.
    ///
    /// The answers' entry comes first: a packet that finds the other one can rely on its answer being translated.
    /// Nothing stays behind when it fails.
    #[inline(never)]
    pub(crate) fn insert<N: Node<A>>(&mut self, node: &N, key: &ConnKey<A>, seen: u32) -> u32 {
        let mut conn = Conn {
            last_seen_ns: node.now_ns(),
            src: key.dst,
            dst: key.src,
            src_port_be: key.dst_port_be,
            dst_port_be: key.src_port_be,
            backend_id: self.backend_id,
            backend_epoch: self.backend_epoch,
            flags: self.flags | conn_flag::REPLY,
        };
        let code = self.claim(node, &mut conn);
        if code != 0 {
            return code;
        }
        conn.src = self.target.src;
        conn.dst = self.target.dst;
        conn.src_port_be = self.target.src_port_be;
        conn.dst_port_be = self.target.dst_port_be;
        conn.flags = self.flags | seen;
        match node.conn_insert(key, &conn) {
            Inserted::Done => 0,
            // Another processor tracked the same connection in between: its pair stays, ours is withdrawn.
            Inserted::Taken => {
                if node
                    .conn(key)
                    .is_none_or(|there| there.target(key) != self.target)
                {
                    node.conn_remove(&self.target.reversed());
                }
                0
            }
            Inserted::Full => {
                node.conn_remove(&self.target.reversed());
                DropReason::ConnTableFull as u32
            }
        }
    }

    /// Inserts the answers' entry under the wanted source port, or under another one.
    #[inline(always)]
    fn claim<N: Node<A>>(&mut self, node: &N, answer: &mut Conn<A>) -> u32 {
        if !self.wanted_port_allowed() && !self.take_some_port(node, 0) {
            return DropReason::NoNatPort as u32;
        }
        for attempt in 1..=PORT_TRIES {
            answer.flags |= self.flags;
            let key = self.target.reversed();
            match node.conn_insert(&key, answer) {
                Inserted::Done => return 0,
                Inserted::Full => return DropReason::ConnTableFull as u32,
                Inserted::Taken => {}
            }
            if is_ours_or_finished(node, &key, answer) {
                return 0;
            }
            if !self.take_some_port(node, attempt) {
                break;
            }
        }
        DropReason::NoNatPort as u32
    }

    /// Whether the packet's own source port may be kept at the address that it gets.
    #[inline(always)]
    fn wanted_port_allowed(&self) -> bool {
        if self.flags & conn_flag::SOURCE_NAT == 0 || !self.has_ports() {
            return true;
        }
        let port = u16::from_be(self.target.src_port_be);
        port.wrapping_sub(self.first_port) < self.port_count
    }

    /// Takes a port at the source NAT address to try next; `false` if there is none.
    #[inline(always)]
    fn take_some_port<N: Node<A>>(&mut self, node: &N, attempt: u32) -> bool {
        if self.nat_addr.is_unset() || self.port_count == 0 || !self.has_ports() {
            return false;
        }
        let offset = node.random().wrapping_add(attempt) % self.port_count as u32;
        self.take_source();
        self.target.src_port_be = self.first_port.wrapping_add(offset as u16).to_be();
        true
    }

    /// ICMP echo counts: its identifier stands for the port.
    #[inline(always)]
    fn has_ports(&self) -> bool {
        let protocol = self.target.protocol;
        matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) || protocol == A::ICMP
    }
}

/// Whether the taken entry belongs to this very connection (another processor is tracking it too), or to one that is
/// finished and makes room.
#[inline(always)]
fn is_ours_or_finished<A: Ip, N: Node<A>>(node: &N, key: &ConnKey<A>, answer: &Conn<A>) -> bool {
    let Some(entry) = node.conn(key) else {
        return node.conn_insert(key, answer) == Inserted::Done;
    };
    let there = entry.target(key);
    if there.src == answer.src
        && there.dst == answer.dst
        && there.src_port_be == answer.src_port_be
        && there.dst_port_be == answer.dst_port_be
    {
        return true;
    }
    if key.protocol == protocol::TCP && is_finished(node, &there, entry.state().flags) {
        forget(node, key, &there);
        return node.conn_insert(key, answer) == Inserted::Done;
    }
    false
}
