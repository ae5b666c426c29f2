//! The maps: their names, types and sizes come from the contract.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_LPM_TRIE},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::bpf_map_lookup_elem,
    macros::btf_map,
};
use ebpf_abi::{
    Addr4, Addr6, Affinity, AffinityKey, Backend, Config, Conn, ConnBucket, ConnTable, Counter,
    Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey, Peer, PeerCount, PeerName,
    RangeKey, Route, RouteKey, Service, ServiceName, SocketOrigin, maps,
};

/// Entries are allocated when they are inserted: tables that are mostly empty.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// The agent maps them into its memory, to change them by the same atomic operations. It also makes the kernel align
/// their first element to a page, so that an element lies in a cache line of its own.
const SHARED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "config_v3")]
pub static CONFIG: Array<Config, { maps::CONFIG_SIZE }> = Array::new();
#[btf_map(name = "frontend4_v2")]
pub static FRONTEND4: HashMap<FrontendKey<Addr4>, Frontend, { maps::FRONTEND4_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "frontend6_v2")]
pub static FRONTEND6: HashMap<FrontendKey<Addr6>, Frontend, { maps::FRONTEND6_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "range4_v1")]
pub static RANGE4: LpmTrie<RangeKey<Addr4>, u32, { maps::RANGE4_SIZE }> = LpmTrie::new();
#[btf_map(name = "range6_v1")]
pub static RANGE6: LpmTrie<RangeKey<Addr6>, u32, { maps::RANGE6_SIZE }> = LpmTrie::new();
#[btf_map(name = "service_v2")]
pub static SERVICE: HashMap<u32, Service, { maps::SERVICE_SIZE }, ON_DEMAND> = HashMap::new();
/// For people: no program reads it.
#[btf_map(name = "service_name_v1")]
pub static SERVICE_NAME: HashMap<u32, ServiceName, { maps::SERVICE_NAME_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "slot_v1")]
pub static SLOT: Array<u32, { maps::SLOT_SIZE }> = Array::new();
#[btf_map(name = "cursor_v1")]
pub static CURSOR: Array<u32, { maps::CURSOR_SIZE }> = Array::new();
#[btf_map(name = "affinity_v1")]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, { maps::AFFINITY_SIZE }> = LruHashMap::new();
#[btf_map(name = "backend4_v1")]
pub static BACKEND4: Array<Backend<Addr4>, { maps::BACKEND4_SIZE }> = Array::new();
#[btf_map(name = "backend6_v1")]
pub static BACKEND6: Array<Backend<Addr6>, { maps::BACKEND6_SIZE }> = Array::new();
#[btf_map(name = "endpoint4_v2")]
pub static ENDPOINT4: HashMap<Addr4, Endpoint, { maps::ENDPOINT4_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "endpoint6_v2")]
pub static ENDPOINT6: HashMap<Addr6, Endpoint, { maps::ENDPOINT6_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "route4_v1")]
pub static ROUTE4: LpmTrie<RouteKey<Addr4>, Route, { maps::ROUTE4_SIZE }> = LpmTrie::new();
#[btf_map(name = "route6_v1")]
pub static ROUTE6: LpmTrie<RouteKey<Addr6>, Route, { maps::ROUTE6_SIZE }> = LpmTrie::new();
#[btf_map(name = "peer_v3")]
pub static PEER: Array<Peer, { maps::PEER_SIZE }> = Array::new();
/// For people: no program reads it.
#[btf_map(name = "peer_name_v1")]
pub static PEER_NAME: HashMap<u32, PeerName, { maps::PEER_NAME_SIZE }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "peer_count_v1")]
pub static PEER_COUNT: PerCpuArray<PeerCount, { maps::PEER_COUNT_SIZE }> = PerCpuArray::new();
#[btf_map(name = "icmp_limit_v1")]
pub static ICMP_LIMIT: Array<u64, { maps::ICMP_LIMIT_SIZE }> = Array::new();
#[btf_map(name = "conn_table_v1")]
pub static CONN_TABLE: Array<ConnTable, { maps::CONN_TABLE_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn4_v2")]
pub static CONN4: Array<Conn<Addr4>, { maps::CONN4_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn6_v2")]
pub static CONN6: Array<Conn<Addr6>, { maps::CONN6_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_index4_v1")]
pub static CONN_INDEX4: Array<ConnBucket, { maps::CONN_INDEX4_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_index6_v1")]
pub static CONN_INDEX6: Array<ConnBucket, { maps::CONN_INDEX6_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_fill4_v1")]
pub static CONN_FILL4: Array<u64, { maps::CONN_FILL4_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_fill6_v1")]
pub static CONN_FILL6: Array<u64, { maps::CONN_FILL6_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_used4_v1")]
pub static CONN_USED4: Array<u64, { maps::CONN_USED4_SIZE }, SHARED> = Array::new();
#[btf_map(name = "conn_used6_v1")]
pub static CONN_USED6: Array<u64, { maps::CONN_USED6_SIZE }, SHARED> = Array::new();
#[btf_map(name = "fragment4_v1")]
pub static FRAGMENT4: LruHashMap<FragmentKey<Addr4>, FragmentPorts, { maps::FRAGMENT4_SIZE }> =
    LruHashMap::new();
#[btf_map(name = "fragment6_v1")]
pub static FRAGMENT6: LruHashMap<FragmentKey<Addr6>, FragmentPorts, { maps::FRAGMENT6_SIZE }> =
    LruHashMap::new();
#[btf_map(name = "socket4_v2")]
pub static SOCKET4: HashMap<u64, SocketOrigin<Addr4>, { maps::SOCKET4_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "socket6_v2")]
pub static SOCKET6: HashMap<u64, SocketOrigin<Addr6>, { maps::SOCKET6_SIZE }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "drop_v1")]
pub static DROP: PerCpuArray<Counter, { maps::DROP_SIZE }> = PerCpuArray::new();

/// An LPM trie whose key is the contract's: aya's own key type would show other field names in a dump.
///
/// The fields only exist for their types, from which the loader reads the map's definition (BTF).
#[repr(C)]
pub struct LpmTrie<K, V, const SIZE: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_LPM_TRIE as usize],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; SIZE],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are null and never followed; the loader puts the map in the static's place.
unsafe impl<K, V, const SIZE: usize> Sync for LpmTrie<K, V, SIZE> {}

impl<K, V: Copy, const SIZE: usize> LpmTrie<K, V, SIZE> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of the longest prefix that matches.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<V> {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: `map` is this map's static, which the loader relocates, and `key` has the type that it declares.
        let value = unsafe { bpf_map_lookup_elem(map, ptr::from_ref(key).cast()) }.cast::<V>();
        // SAFETY: the helper gives null or a pointer to a value of this map, alive while the program runs.
        (!value.is_null()).then(|| unsafe { *value })
    }
}
