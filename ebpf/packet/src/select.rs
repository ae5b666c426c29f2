//! Which service a client of a frontend gets, and which of its backends: strict round robin over the slots.

use ebpf_abi::{Backend, DropReason, Frontend, backend_state, frontend_flag, service_flag};

use crate::{Ip, Node, path::Origin};

/// Slots tried in one selection: normally the first is active, others only while a change is under way.
const TRIES: u32 = 8;

/// The service that a packet to this frontend belongs to; `None` if it may not be reached from there.
///
/// Clients outside take the set of the external traffic policy. Those of the cluster never leave it: for them an
/// external address means every backend, whatever that policy says (kube-proxy's short circuit).
#[inline(always)]
pub(crate) fn service_of(frontend: &Frontend, origin: Origin) -> Option<u32> {
    if frontend.flags & frontend_flag::LOOPBACK != 0 {
        return None;
    }
    if !matches!(origin, Origin::Network) {
        return Some(frontend.inside_id);
    }
    (frontend.flags & frontend_flag::EXTERNAL != 0).then_some(frontend.service_id)
}

/// Whether `loadBalancerSourceRanges` let this source in. They hold for clients inside as well.
#[inline(always)]
pub(crate) fn admits<A: Ip, N: Node<A>>(node: &N, frontend: &Frontend, source: &A) -> bool {
    frontend.flags & frontend_flag::SOURCE_RANGES == 0 || node.admits(frontend.service_id, source)
}

/// The next active backend of a service, with its id.
#[inline(always)]
pub(crate) fn select<A: Ip, N: Node<A>>(node: &N, service_id: u32) -> Option<(u32, Backend<A>)> {
    let service = node.service(service_id)?;
    if service.slot_count == 0 {
        return None;
    }
    let turn = node.next_turn(service_id)?;
    for step in 0..TRIES {
        let slot = turn.wrapping_add(step) % service.slot_count;
        let backend_id = node.slot(service.slot_base.wrapping_add(slot))?;
        if let Some(backend) = node.backend(backend_id)
            && backend.state == backend_state::ACTIVE
        {
            return Some((backend_id, backend));
        }
    }
    None
}

/// Why [`select`] found none.
#[inline(always)]
pub(crate) fn why_none<A: Ip, N: Node<A>>(node: &N, service_id: u32) -> DropReason {
    match node.service(service_id) {
        Some(service) if service.flags & service_flag::DROP_IF_EMPTY != 0 => {
            DropReason::NoLocalBackend
        }
        _ => DropReason::NoBackend,
    }
}
