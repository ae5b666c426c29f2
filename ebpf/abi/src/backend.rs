//! Backends: `backend4_v1`, `backend6_v1`, arrays by backend id.

use crate::{Address, Plain};

/// Value of `backend4_v1` and `backend6_v1`. Id 0 is never given.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Backend<A> {
    pub addr: A,
    pub port_be: u16,
    /// See [`backend_state`].
    pub state: u16,
    /// Raised each time that the id is given to another backend or withdrawn; connections remember it.
    pub epoch: u32,
}

// SAFETY: four-byte aligned address, two half words, one word: no implicit padding.
unsafe impl<A: Address> Plain for Backend<A> {}

/// Values of [`Backend::state`].
pub mod backend_state {
    /// The id is not in use.
    pub const FREE: u16 = 0;
    /// Takes new connections.
    pub const ACTIVE: u16 = 1;
    /// Takes no new connection; established ones drain.
    pub const TERMINATING: u16 = 2;
}
