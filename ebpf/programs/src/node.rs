//! The node as the packet code sees it: the maps, the clock, random numbers.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Peer, RangeKey, RouteKey, Service,
};
use ebpf_packet::{ConnState, Entry, Inserted, Ip, Node};

use crate::{atomic, maps};

/// `EEXIST`, as an update with `BPF_NOEXIST` answers it.
const EEXIST: i32 = -17;
/// An entry's time is written at most this often.
const TIME_RESOLUTION_NS: u64 = 1_000_000_000;

/// The node on which the program runs.
pub struct Kernel;

/// A value of a connection map.
pub struct KernelEntry<A>(*mut Conn<A>);

impl<A: Ip> Entry<A> for KernelEntry<A> {
    #[inline(always)]
    fn target(&self, key: &ConnKey<A>) -> ConnKey<A> {
        // SAFETY: the pointer comes from a lookup and stays readable while the program runs; a torn read of an entry
        // that another processor replaces at this moment is one packet of a connection that just ended.
        let conn = unsafe { &*self.0 };
        ConnKey {
            src: conn.src,
            dst: conn.dst,
            src_port_be: conn.src_port_be,
            dst_port_be: conn.dst_port_be,
            protocol: key.protocol,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn state(&self) -> ConnState {
        // SAFETY: as in `target`.
        let conn = unsafe { &*self.0 };
        ConnState {
            last_seen_ns: conn.last_seen_ns,
            backend_id: conn.backend_id,
            backend_epoch: conn.backend_epoch,
            flags: conn.flags,
        }
    }

    #[inline(always)]
    fn record(&self, state: &ConnState, now_ns: u64, flags: u32) {
        if now_ns.wrapping_sub(state.last_seen_ns) >= TIME_RESOLUTION_NS {
            // SAFETY: as in `target`; the word is aligned, so that it is written at once.
            unsafe { (&raw mut (*self.0).last_seen_ns).write_volatile(now_ns) };
        }
        if flags & !state.flags != 0 {
            // SAFETY: as in `target`; every processor changes the flags by atomic operations only.
            unsafe { atomic::or(&raw mut (*self.0).flags, flags) };
        }
    }
}

macro_rules! node {
    ($addr:ty, $bits:literal, $frontend:ident, $range:ident, $backend:ident, $endpoint:ident, $route:ident, $conn:ident, $fragment:ident) => {
        impl Node<$addr> for Kernel {
            type Entry = KernelEntry<$addr>;

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
            fn endpoint(&self, addr: &$addr) -> Option<Endpoint> {
                // SAFETY: copied at once, before any other operation on the map.
                unsafe { maps::$endpoint.get(addr) }.copied()
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
            fn conn(&self, key: &ConnKey<$addr>) -> Option<Self::Entry> {
                maps::$conn.get_ptr_mut(key).map(KernelEntry)
            }

            #[inline(always)]
            fn conn_insert(&self, key: &ConnKey<$addr>, conn: &Conn<$addr>) -> Inserted {
                match maps::$conn.insert(key, conn, BPF_NOEXIST as u64) {
                    Ok(()) => Inserted::Done,
                    Err(EEXIST) => Inserted::Taken,
                    Err(_) => Inserted::Full,
                }
            }

            #[inline(always)]
            fn conn_remove(&self, key: &ConnKey<$addr>) {
                // Gone already is as good.
                let _ = maps::$conn.remove(key);
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
    Addr4, 32, FRONTEND4, RANGE4, BACKEND4, ENDPOINT4, ROUTE4, CONN4, FRAGMENT4
);
node!(
    Addr6, 128, FRONTEND6, RANGE6, BACKEND6, ENDPOINT6, ROUTE6, CONN6, FRAGMENT6
);
