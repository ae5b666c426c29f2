//! Connections: what their packets leave on them, when they end, and how a new one is tracked.

use core::mem::swap;

use ebpf_abi::{Config, ConnKey, DropReason, conn_flag};

use crate::{
    Entry, Inserted, Ip, Node,
    node::ConnState,
    parse::{Headers, protocol, tcp},
};

/// Ports tried for source NAT before a connection is refused.
const PORT_TRIES: u32 = 16;
/// First port that source NAT takes at its own address: below are those that servers use.
const FIRST_OWN_PORT: u16 = 1024;

/// The flags that a packet leaves on a connection that has `flags`.
#[inline(always)]
pub(crate) fn flags_of<A: Ip>(headers: &Headers<A>, flags: u32, is_reply: bool) -> u32 {
    let answered = if is_reply { conn_flag::ANSWERED } else { 0 };
    if !headers.is_tcp() {
        return if is_reply { answered } else { conn_flag::OPEN };
    }
    let seen_alone = flags & conn_flag::DIRECT_RETURN != 0;
    let seen = headers.tcp_flags;
    let mut new = answered;
    if seen & tcp::FIN != 0 {
        new |= match is_reply {
            true => conn_flag::BACKEND_FIN,
            // The backend's does not come this way.
            false if seen_alone => conn_flag::CLIENT_FIN | conn_flag::BACKEND_FIN,
            false => conn_flag::CLIENT_FIN,
        };
    }
    if seen & tcp::RST != 0 {
        new |= conn_flag::TCP_RST;
    } else if seen & tcp::SYN != 0 {
        new |= if is_reply { 0 } else { conn_flag::OPEN };
    } else if !is_reply && seen_alone {
        // A client that goes on was answered, by another way.
        new |= conn_flag::ANSWERED | conn_flag::CONFIRMED;
    } else if !is_reply && flags & conn_flag::ANSWERED != 0 {
        new |= conn_flag::CONFIRMED;
    }
    new
}

/// Whether the connection must not be used for this packet any more, but the backend be selected anew.
///
/// UDP leaves a backend whose epoch has moved on at once. TCP stays with it (it drains), unless the packet opens a
/// connection; an opening one also leaves a connection that is finished.
#[inline(always)]
pub(crate) fn is_stale<A: Ip, N: Node<A>>(
    node: &N,
    headers: &Headers<A>,
    state: &ConnState,
    is_reply: bool,
) -> bool {
    if headers.is_tcp() {
        return headers.is_tcp_open()
            && (state.has_ended() || epoch_moved_on(node, state, is_reply));
    }
    epoch_moved_on(node, state, is_reply)
}

#[inline(always)]
fn epoch_moved_on<A: Ip, N: Node<A>>(node: &N, state: &ConnState, is_reply: bool) -> bool {
    !is_reply
        && state.flags & conn_flag::SERVICE != 0
        && node
            .backend(state.backend_id)
            .is_none_or(|backend| backend.epoch != state.backend_epoch)
}

/// Whether the answers to a packet that is not translated would be taken for those of a living connection through a
/// service: client:port -> ClusterIP was balanced to the backend to which client:port now talks directly.
///
/// A connection that is finished, or was never answered, gives way.
#[inline(always)]
pub(crate) fn answers_are_anothers<A: Ip, N: Node<A>>(node: &N, tuple: &mut ConnKey<A>) -> bool {
    // In place: a copy would lie on the stack of every packet.
    turn_round(tuple);
    let entry = node.conn(tuple);
    turn_round(tuple);
    let Some(entry) = entry else {
        return false;
    };
    if !entry.is_reply() {
        return false;
    }
    let state = entry.state();
    let lives = state.flags & conn_flag::ANSWERED != 0 && !state.has_ended();
    if !lives {
        entry.forget();
    }
    lives
}

/// [`ConnKey::reversed`] in place. A function of its own: in line, all the words would be kept until it is turned back.
#[inline(never)]
fn turn_round<A>(tuple: &mut ConnKey<A>) {
    swap(&mut tuple.src, &mut tuple.dst);
    swap(&mut tuple.src_port_be, &mut tuple.dst_port_be);
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
        // The answers must come here.
        self.flags = self.flags & !conn_flag::DIRECT_RETURN | conn_flag::SOURCE_NAT;
    }

    /// Tracks the connection whose packets arrive with `key`, under another source port if the wanted one is in use.
    /// Returns 0 or the number of a drop reason.
    #[inline(never)]
    pub(crate) fn insert<N: Node<A>>(&mut self, node: &N, key: &ConnKey<A>, seen: u32) -> u32 {
        if !self.wanted_port_allowed() && !self.take_some_port(node, 0) {
            return DropReason::NoNatPort as u32;
        }
        for attempt in 1..=PORT_TRIES {
            let state = ConnState {
                last_seen_ns: node.now_ns(),
                backend_id: self.backend_id,
                backend_epoch: self.backend_epoch,
                flags: self.flags | seen,
                protocol: key.protocol as u32,
            };
            // In place, as above: this is the deepest that calls go.
            let answers = &mut self.target;
            turn_round(answers);
            let inserted = node.conn_insert(key, answers, &state);
            let again = inserted == Inserted::ReplyTaken && makes_room(node, answers, key);
            turn_round(answers);
            match inserted {
                // Or another processor tracked the same connection in between: that one stays.
                Inserted::Done | Inserted::Tracked => return 0,
                Inserted::Full => return DropReason::ConnTableFull as u32,
                Inserted::ReplyTaken => {}
            }
            if !again && !self.take_some_port(node, attempt) {
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

/// Whether it is worth to try the same port again: the connection that has the answers' tuple is this very one, which
/// another processor is tracking, or one that is finished and goes.
#[inline(never)]
fn makes_room<A: Ip, N: Node<A>>(node: &N, answers: &ConnKey<A>, key: &ConnKey<A>) -> bool {
    let Some(entry) = node.conn(answers) else {
        return true;
    };
    if entry.answers().is(key) {
        return true;
    }
    let finished = key.protocol == protocol::TCP && entry.state().has_ended();
    if finished {
        entry.forget();
    }
    finished
}
