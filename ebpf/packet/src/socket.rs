//! Socket load balancing: the address that a process connects to is replaced once, so that its packets need nothing.

use ebpf_abi::{FrontendKey, SocketOrigin};

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

/// Decides about a TCP connection to `addr`.
#[inline(always)]
pub fn connect<A: Ip, N: Node<A>>(node: &N, addr: A, port_be: u16) -> Connect<A> {
    let key = FrontendKey {
        addr,
        port_be,
        protocol: protocol::TCP,
        pad: 0,
    };
    let Some(frontend) = node.frontend(&key) else {
        return Connect::Unchanged;
    };
    match select::select(node, frontend.service_id) {
        Some((_, backend)) => Connect::Backend(SocketOrigin {
            frontend_addr: addr,
            backend_addr: backend.addr,
            frontend_port_be: port_be,
            backend_port_be: backend.port_be,
        }),
        None => Connect::Refused,
    }
}

/// What `getpeername` must answer in place of `addr`: the frontend, if the socket was connected to its backend.
#[inline(always)]
pub fn peer_name<A: Ip>(origin: &SocketOrigin<A>, addr: A, port_be: u16) -> Option<(A, u16)> {
    (origin.backend_addr == addr && origin.backend_port_be == port_be)
        .then_some((origin.frontend_addr, origin.frontend_port_be))
}
