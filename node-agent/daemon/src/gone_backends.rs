//! Closes connections to backends that are gone, where the operator asked for it.
//!
//! A socket that was connected to a backend in place of a Service has no program on its way that could tell it that the
//! backend is gone: without a reset from there, as when its node died, it waits until TCP gives up. What is known comes
//! from the maps alone, so an agent that was away finds what it missed.

use std::collections::BTreeSet;
use std::time::Duration;

use ebpf_abi::{SocketOrigin, backend_state};
use node_agent_host::{close_tcp_sockets, in_every_namespace};
use node_agent_maps::{FamilyMaps, MapError, MapFamily, Maps};
use node_agent_reconcile::Handle;
use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};

/// At most so often: looking walks through the sockets of the node.
const EVERY: Duration = Duration::from_secs(1);
/// A socket may have got its backend in the moment in which it went.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// For ever, or until the reconciler is gone.
pub async fn run(maps: Maps, handle: Handle, closed: Counter) {
    let mut status = handle.watch();
    // Ours alone would keep the reconciler running.
    drop(handle);
    loop {
        let maps = maps.clone();
        let done = tokio::task::spawn_blocking(move || close(&maps)).await;
        match done {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => {
                closed.inc_by(count as u64);
                info!(count, "connections to backends that are gone were closed");
            }
            Ok(Err(error)) => {
                warn!(%error, "connections to backends that are gone were not closed")
            }
            Err(error) => warn!(%error, "closing connections panicked"),
        }
        tokio::time::sleep(EVERY).await;
        if let Ok(Err(_)) = tokio::time::timeout(AT_LEAST_EVERY, status.changed()).await {
            return;
        }
    }
}

fn close(maps: &Maps) -> anyhow::Result<usize> {
    let mut cookies = stale(&maps.v4)?;
    cookies.append(&mut stale(&maps.v6)?);
    if cookies.is_empty() {
        return Ok(0);
    }
    let mut count = 0;
    for closed in in_every_namespace(|| close_tcp_sockets(&cookies))? {
        count += closed?;
    }
    Ok(count)
}

/// The cookies of sockets whose backend no Service has any more.
fn stale<A: MapFamily + Ord>(maps: &FamilyMaps<A>) -> Result<BTreeSet<u64>, MapError> {
    let sockets = maps.socket.entries()?;
    if sockets.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut there = BTreeSet::new();
    maps.backend.for_each(|_, backend| {
        if backend.state != backend_state::FREE {
            there.insert((backend.addr, backend.port_be));
        }
    })?;
    let gone =
        |origin: &SocketOrigin<A>| !there.contains(&(origin.backend_addr, origin.backend_port_be));
    let sockets = sockets.into_iter().filter(|(_, origin)| gone(origin));
    Ok(sockets.map(|(cookie, _)| cookie).collect())
}
