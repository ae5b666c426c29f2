//! Which service a client of a frontend gets, and which of its backends: strict round robin over the slots, a random
//! one, or the one of the client's hash (Maglev, Eisenbud et al., NSDI 2016).

use ebpf_abi::{
    AffinityKey, Backend, ConnKey, DropReason, Frontend, Service, backend_state, frontend_flag,
    service_flag,
};

use crate::{Ip, Node, affinity, path::Origin};

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

/// Who asks, where a service's algorithm or its session affinity depends on it.
pub(crate) trait Client {
    /// The same for the same client on every node; `None` if nothing is known of which to make one.
    fn hash(&self) -> Option<u32>;
    /// Names the client towards a service.
    fn write_key(&self, key: &mut AffinityKey);
}

/// A client that is known by its packet.
pub(crate) struct Sender<'a, A>(pub(crate) &'a ConnKey<A>);

/// An active backend of a service, with its id: the one that the client had, or the next one.
#[inline(always)]
pub(crate) fn select<A: Ip, N: Node<A>>(
    node: &N,
    service_id: u32,
    client: &impl Client,
) -> Option<(u32, Backend<A>)> {
    let service = node.service(service_id)?;
    if service.slot_count == 0 {
        return None;
    }
    if service.affinity_seconds == 0 {
        return choose(node, service_id, &service, client);
    }
    let mut key = AffinityKey::default();
    client.write_key(&mut key);
    key.service_id = service_id;
    let mut backend_id = affinity::recall(node, &key, &service);
    if backend_id == affinity::NONE {
        backend_id = choose(node, service_id, &service, client)?.0;
    }
    let backend = node.backend(backend_id)?;
    affinity::remember(node, &key, backend_id, backend.epoch);
    Some((backend_id, backend))
}

#[inline(always)]
fn choose<A: Ip, N: Node<A>>(
    node: &N,
    service_id: u32,
    service: &Service,
    client: &impl Client,
) -> Option<(u32, Backend<A>)> {
    let turn = if service.flags & (service_flag::RANDOM | service_flag::MAGLEV) == 0 {
        node.next_turn(service_id)?
    } else if service.flags & service_flag::MAGLEV != 0 {
        client.hash().unwrap_or_else(|| node.random())
    } else {
        node.random()
    };
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

impl<A: Ip> Client for Sender<'_, A> {
    /// Without the destination's address: a client that comes by another node's address finds the same backend.
    #[inline(always)]
    fn hash(&self) -> Option<u32> {
        let [from, to] = [self.0.src_port_be, self.0.dst_port_be].map(u16::from_be);
        let ports = (from as u32) << 16 | to as u32;
        let mut hash = mix(self.0.protocol as u32, ports);
        for word in self.0.src.as_bytes().chunks_exact(4) {
            hash = mix(
                hash,
                u32::from_be_bytes([word[0], word[1], word[2], word[3]]),
            );
        }
        Some(scatter(hash))
    }

    #[inline(always)]
    fn write_key(&self, key: &mut AffinityKey) {
        key.kind = A::FAMILY as u32;
        key.client.bytes[..A::LEN].copy_from_slice(self.0.src.as_bytes());
    }
}

/// A step of MurmurHash3 (Appleby, public domain).
#[inline(always)]
fn mix(hash: u32, word: u32) -> u32 {
    let word = word
        .wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593);
    (hash ^ word)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

/// Its last step: every bit of the sum depends on every bit that went in.
#[inline(always)]
fn scatter(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
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
