//! Socket load balancing: the address that a process connects to is replaced once, so that its packets need nothing.

use ebpf_abi::{
    AffinityKey, DropReason, FrontendKey, SocketOrigin, affinity_client, frontend_flag,
};

use crate::{
    Ip, Node,
    parse::protocol,
    select::{self, Client},
};

/// What `connect` must do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Connect<A> {
    /// Not a service: leave the address alone.
    Unchanged,
    /// Connect to the backend and remember the origin for `getpeername`.
    Backend(SocketOrigin<A>),
    /// The service has no backend: `ECONNREFUSED`.
    Refused,
}

/// The socket that connects.
pub trait Caller {
    /// What the kernel calls its network namespace.
    fn netns_cookie(&self) -> u64;
}

/// Decides about a TCP connection to `addr`.
///
/// Every client here is of the cluster, and thus takes the service that an external address means inside of it. Where
/// the client's address decides, packets are left to decide: it is not known yet.
#[inline(always)]
pub fn connect<A: Ip, N: Node<A>>(
    node: &N,
    caller: &impl Caller,
    addr: A,
    port_be: u16,
) -> Connect<A> {
    let key = FrontendKey {
        addr,
        port_be,
        protocol: protocol::TCP,
        pad: 0,
    };
    let Some(frontend) = node.frontend(&key) else {
        return Connect::Unchanged;
    };
    if frontend.flags & frontend_flag::SOURCE_RANGES != 0
        || (frontend.flags & frontend_flag::LOOPBACK != 0 && !is_on_host(node, caller))
    {
        return Connect::Unchanged;
    }
    match select::select(node, frontend.inside_id, &Socket(caller)) {
        Some((_, backend)) => Connect::Backend(SocketOrigin {
            frontend_addr: addr,
            backend_addr: backend.addr,
            frontend_port_be: port_be,
            backend_port_be: backend.port_be,
        }),
        // Its packets are dropped, so that the client tries again.
        None if matches!(
            select::why_none(node, frontend.inside_id),
            DropReason::NoLocalBackend
        ) =>
        {
            Connect::Unchanged
        }
        None => Connect::Refused,
    }
}

/// A client that is known by its socket: its network namespace stands for its address. It has no port yet that a hash
/// could be made of.
struct Socket<'a, C>(&'a C);

impl<C: Caller> Client for Socket<'_, C> {
    #[inline(always)]
    fn hash(&self) -> Option<u32> {
        None
    }

    #[inline(always)]
    fn write_key(&self, key: &mut AffinityKey) {
        key.kind = affinity_client::NETNS;
        let cookie = self.0.netns_cookie().to_ne_bytes();
        key.client.bytes[..8].copy_from_slice(&cookie);
    }
}

/// A pod's loopback addresses are its own.
#[inline(always)]
fn is_on_host<A: Ip, N: Node<A>>(node: &N, caller: &impl Caller) -> bool {
    node.config()
        .is_some_and(|config| config.host_netns_cookie == caller.netns_cookie())
}

/// What `getpeername` must answer in place of `addr`: the frontend, if the socket was connected to its backend.
#[inline(always)]
pub fn peer_name<A: Ip>(origin: &SocketOrigin<A>, addr: A, port_be: u16) -> Option<(A, u16)> {
    (origin.backend_addr == addr && origin.backend_port_be == port_be)
        .then_some((origin.frontend_addr, origin.frontend_port_be))
}
