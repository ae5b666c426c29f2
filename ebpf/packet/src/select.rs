//! Which backend a new connection gets: strict round robin over the service's slots.

use ebpf_abi::{Backend, backend_state};

use crate::{Ip, Node};

/// Slots tried in one selection: normally the first is active, others only while a change is under way.
const TRIES: u32 = 8;

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
