//! Session affinity: a client goes where it went, while that backend takes connections and belongs to the service.

use ebpf_abi::{Affinity, AffinityKey, Service, backend_state};

use crate::{Ip, Node};

/// No backend: this id is never given.
pub(crate) const NONE: u32 = 0;
/// Steps of a search among all the backends that there can be, 1,048,576.
const STEPS: u32 = 21;
const SECOND_NS: u64 = 1_000_000_000;

/// The backend to which this client went, if it may go there again.
#[inline(never)]
pub(crate) fn recall<A: Ip, N: Node<A>>(node: &N, key: &AffinityKey, service: &Service) -> u32 {
    let Some(known) = node.affinity(key) else {
        return NONE;
    };
    let age = node.now_ns().saturating_sub(known.last_ns);
    let active = age < service.affinity_seconds as u64 * SECOND_NS
        && node.backend(known.backend_id).is_some_and(|backend| {
            backend.state == backend_state::ACTIVE && backend.epoch == known.backend_epoch
        });
    if active && is_member(node, service, known.backend_id) {
        known.backend_id
    } else {
        NONE
    }
}

/// Notes where a client goes; its time runs anew with each connection.
#[inline(never)]
pub(crate) fn remember<A: Ip, N: Node<A>>(
    node: &N,
    key: &AffinityKey,
    backend_id: u32,
    backend_epoch: u32,
) {
    let affinity = Affinity {
        last_ns: node.now_ns(),
        backend_id,
        backend_epoch,
    };
    node.affinity_insert(key, &affinity);
}

/// Whether the backend belongs to the service: another one may have kept it active. The members' ids rise.
#[inline(always)]
fn is_member<A: Ip, N: Node<A>>(node: &N, service: &Service, backend_id: u32) -> bool {
    let (mut from, mut to) = (0, service.member_count);
    for _ in 0..STEPS {
        if from >= to {
            return false;
        }
        let middle = (from + to) / 2;
        match node.slot(service.member_base.wrapping_add(middle)) {
            Some(id) if id == backend_id => return true,
            Some(id) if id < backend_id => from = middle + 1,
            Some(_) => to = middle,
            None => return false,
        }
    }
    false
}
