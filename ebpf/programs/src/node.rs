//! The node as the packet code sees it: the maps, the clock, random numbers.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, ConnKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Peer, RangeKey, RouteKey, Service,
};
use ebpf_packet::{ConnState, Inserted, Node, PeerEvent};

use crate::{
    atomic,
    conns::{self, Records},
    maps,
};

const ICMP_BUCKETS: u32 = ebpf_abi::maps::ICMP_LIMIT_SIZE as u32;

/// The node on which the program runs.
pub struct Kernel;

macro_rules! node {
    ($addr:ty, $bits:literal, $frontend:ident, $range:ident, $backend:ident, $endpoint:ident, $route:ident, $fragment:ident) => {
        impl Node<$addr> for Kernel {
            type Entry<'a> = conns::Found<$addr>;

            #[inline(always)]
            fn config(&self) -> Option<&Config> {
                maps::CONFIG.get(0)
            }

            #[inline(always)]
            fn now_ns(&self) -> u64 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_ktime_get_coarse_ns() }
            }

            #[inline(always)]
            fn random(&self) -> u32 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_get_prandom_u32() as u32 }
            }

            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$addr>) -> Option<Frontend> {
                // SAFETY: copied at once, before any other operation on the map.
                unsafe { maps::$frontend.get(key) }.copied()
            }

            #[inline(always)]
            fn admits(&self, service_id: u32, source: &$addr) -> bool {
                let key = RangeKey::new(service_id, *source, $bits);
                maps::$range.get(&key).is_some()
            }

            #[inline(always)]
            fn service(&self, service_id: u32) -> Option<Service> {
                // SAFETY: copied at once, before any other operation on the map.
                unsafe { maps::SERVICE.get(&service_id) }.copied()
            }

            #[inline(always)]
            fn next_turn(&self, service_id: u32) -> Option<u32> {
                let cursor = maps::CURSOR.get_ptr_mut(service_id)?;
                // SAFETY: an array's value lives as long as the map; every program changes it atomically.
                Some(unsafe { atomic::fetch_add(cursor, 1) })
            }

            #[inline(always)]
            fn slot(&self, index: u32) -> Option<u32> {
                maps::SLOT.get(index).copied()
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
                // SAFETY: copied at once, before any other operation on the map.
                unsafe { maps::AFFINITY.get(key) }.copied()
            }

            #[inline(always)]
            fn affinity_insert(&self, key: &AffinityKey, affinity: &Affinity) {
                // An LRU table makes room; if the kernel has no memory, the client's next connection selects anew.
                let _ = maps::AFFINITY.insert(key, affinity, BPF_ANY as u64);
            }

            #[inline(always)]
            fn backend(&self, backend_id: u32) -> Option<Backend<$addr>> {
                maps::$backend.get(backend_id).copied()
            }

            #[inline(always)]
            fn endpoint<'n>(&'n self, addr: &$addr) -> Option<&'n Endpoint> {
                // SAFETY: an element's memory stays the map's while the program runs; the caller reads it at once.
                unsafe { maps::$endpoint.get(addr) }
            }

            #[inline(always)]
            fn route(&self, addr: &$addr) -> Option<u32> {
                maps::$route
                    .get(&RouteKey {
                        prefix_len: $bits,
                        addr: *addr,
                    })
                    .map(|route| route.peer_id)
            }

            #[inline(always)]
            fn peer(&self, peer_id: u32) -> Option<&Peer> {
                maps::PEER.get(peer_id)
            }

            #[inline(always)]
            fn count_peer(&self, peer_id: u32, what: PeerEvent, bytes: u32) {
                let Some(count) = maps::PEER_COUNT.get_ptr_mut(peer_id) else {
                    return;
                };
                // SAFETY: this processor's own counters; a program is not moved to another one while it runs.
                let counter = unsafe {
                    match what {
                        PeerEvent::Sent => &mut (*count).sent,
                        PeerEvent::Received => &mut (*count).received,
                        PeerEvent::Dropped => &mut (*count).dropped,
                    }
                };
                counter.packets += 1;
                counter.bytes += bytes as u64;
            }

            #[inline(always)]
            fn icmp_full_at(&self, bucket: u32) -> u64 {
                let bucket = bucket % ICMP_BUCKETS;
                maps::ICMP_LIMIT.get(bucket).copied().unwrap_or_default()
            }

            #[inline(always)]
            fn set_icmp_full_at(&self, bucket: u32, at_ns: u64) {
                let bucket = bucket % ICMP_BUCKETS;
                if let Some(full_at) = maps::ICMP_LIMIT.get_ptr_mut(bucket) {
                    // SAFETY: an array's value lives as long as the map; the word is aligned, so that it is written at
                    // once.
                    unsafe { full_at.write_volatile(at_ns) };
                }
            }

            #[inline(always)]
            fn conn(&self, key: &ConnKey<$addr>) -> Option<Self::Entry<'_>> {
                conns::find(key)
            }

            #[inline(always)]
            fn conn_insert(
                &self,
                key: &ConnKey<$addr>,
                reply: &ConnKey<$addr>,
                state: &ConnState,
            ) -> Inserted {
                <$addr>::insert(key, reply, state)
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<FragmentPorts> {
                // SAFETY: copied at once, before any other operation on the map.
                unsafe { maps::$fragment.get(key) }.copied()
            }

            #[inline(always)]
            fn fragment_insert(&self, key: &FragmentKey<$addr>, ports: &FragmentPorts) {
                // An LRU table makes room; if the kernel has no memory, the later fragments count as unknown.
                let _ = maps::$fragment.insert(key, ports, BPF_ANY as u64);
            }
        }
    };
}

node!(
    Addr4, 32, FRONTEND4, RANGE4, BACKEND4, ENDPOINT4, ROUTE4, FRAGMENT4
);
node!(
    Addr6, 128, FRONTEND6, RANGE6, BACKEND6, ENDPOINT6, ROUTE6, FRAGMENT6
);
