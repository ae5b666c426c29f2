//! Socket load balancing: the address that a process connects to is replaced once, so that its packets need nothing.

use ebpf_abi::{DropReason, FrontendKey, SocketOrigin, frontend_flag};

use crate::{Ip, Node, parse::protocol, select};

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
    match select::select(node, frontend.inside_id) {
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
