//! SPDY/3.1 inside a WebSocket, as kubectl forwards ports: the binary messages are one stream of bytes, cut anywhere.
//!
//! Each connection is two streams with the same `requestid`: `streamtype: error`, on which we say what went wrong, and
//! `streamtype: data` (k8s.io/apimachinery/pkg/util/portforward). Flow control is not used by either side: a pod that does
//! not read holds up the whole tunnel, as TCP does for one connection.

mod frame;
mod headers;
mod tunnel;

pub(crate) use tunnel::serve;

/// The WebSocket subprotocol of such a tunnel.
pub(crate) const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
