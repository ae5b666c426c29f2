//! Names and sizes of the pinned maps. A name has at most 15 characters and ends in the version of its layout.

/// Directory under the bpffs that holds maps, and in `links/` the links.
pub const PIN_DIR: &str = "/sys/fs/bpf/fairlead";

/// Greatest number of drop reasons.
pub const DROP_REASONS: usize = 64;

macro_rules! maps {
    ($($(#[$doc:meta])* $constant:ident: $name:literal, $size_constant:ident = $size:literal;)*) => {
        $($(#[$doc])* pub const $constant: &str = $name;
          /// Default number of entries.
          pub const $size_constant: usize = $size;)*
        /// Every map, in the order in which a reader would look at them.
        pub const ALL: &[&str] = &[$($name,)*];
        const _: () = { $(assert!($name.len() <= 15);)* };
    };
}

maps! {
    CONFIG: "config_v3", CONFIG_SIZE = 1;
    FRONTEND4: "frontend4_v2", FRONTEND4_SIZE = 65536;
    FRONTEND6: "frontend6_v2", FRONTEND6_SIZE = 65536;
    RANGE4: "range4_v1", RANGE4_SIZE = 16384;
    RANGE6: "range6_v1", RANGE6_SIZE = 16384;
    SERVICE: "service_v2", SERVICE_SIZE = 65536;
    SERVICE_NAME: "service_name_v1", SERVICE_NAME_SIZE = 65536;
    SLOT: "slot_v1", SLOT_SIZE = 262144;
    CURSOR: "cursor_v1", CURSOR_SIZE = 65536;
    AFFINITY: "affinity_v1", AFFINITY_SIZE = 65536;
    BACKEND4: "backend4_v1", BACKEND4_SIZE = 131072;
    BACKEND6: "backend6_v1", BACKEND6_SIZE = 131072;
    ENDPOINT4: "endpoint4_v2", ENDPOINT4_SIZE = 65536;
    ENDPOINT6: "endpoint6_v2", ENDPOINT6_SIZE = 65536;
    ROUTE4: "route4_v1", ROUTE4_SIZE = 16384;
    ROUTE6: "route6_v1", ROUTE6_SIZE = 16384;
    PEER: "peer_v3", PEER_SIZE = 8192;
    PEER_NAME: "peer_name_v1", PEER_NAME_SIZE = 8192;
    PEER_COUNT: "peer_count_v1", PEER_COUNT_SIZE = 8192;
    ICMP_LIMIT: "icmp_limit_v1", ICMP_LIMIT_SIZE = 1024;
    CONN_TABLE: "conn_table_v1", CONN_TABLE_SIZE = 2;
    CONN4: "conn4_v2", CONN4_SIZE = 65536;
    CONN6: "conn6_v2", CONN6_SIZE = 32768;
    CONN_INDEX4: "conn_index4_v1", CONN_INDEX4_SIZE = 32768;
    CONN_INDEX6: "conn_index6_v1", CONN_INDEX6_SIZE = 16384;
    CONN_FILL4: "conn_fill4_v1", CONN_FILL4_SIZE = 8192;
    CONN_FILL6: "conn_fill6_v1", CONN_FILL6_SIZE = 4096;
    CONN_USED4: "conn_used4_v1", CONN_USED4_SIZE = 1024;
    CONN_USED6: "conn_used6_v1", CONN_USED6_SIZE = 512;
    FRAGMENT4: "fragment4_v1", FRAGMENT4_SIZE = 8192;
    FRAGMENT6: "fragment6_v1", FRAGMENT6_SIZE = 8192;
    SOCKET4: "socket4_v2", SOCKET4_SIZE = 65536;
    SOCKET6: "socket6_v2", SOCKET6_SIZE = 65536;
    DROP: "drop_v1", DROP_SIZE = 64;
}
