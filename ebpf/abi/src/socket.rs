//! Sockets that were connected to a backend in place of a service: `socket4_v2`, `socket6_v2`, by socket cookie.

use crate::{Address, Plain};

/// Value of `socket4_v2` and `socket6_v2`: what `getpeername` must answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct SocketOrigin<A> {
    pub frontend_addr: A,
    pub backend_addr: A,
    pub frontend_port_be: u16,
    pub backend_port_be: u16,
}

// SAFETY: two four-byte aligned addresses and two half words.
unsafe impl<A: Address> Plain for SocketOrigin<A> {}
