//! The layout of a map: what must match before a pinned map may be adopted.

use std::fmt;

/// What the kernel fixes when a map is created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapLayout {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// In bytes.
    pub key_size: u32,
    /// In bytes.
    pub value_size: u32,
    pub max_entries: u32,
    /// `BPF_F_*` flags of map creation.
    pub flags: u32,
}

/// The values of `enum bpf_map_type` (linux/bpf.h) that the object uses.
pub(crate) mod map_type {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LRU_HASH: u32 = 9;
    pub const LPM_TRIE: u32 = 11;
}

impl MapLayout {
    /// The type of the map as bpftool names it.
    pub fn kind(&self) -> String {
        match self.map_type {
            map_type::HASH => "hash".into(),
            map_type::ARRAY => "array".into(),
            map_type::PERCPU_ARRAY => "percpu_array".into(),
            map_type::LRU_HASH => "lru_hash".into(),
            map_type::LPM_TRIE => "lpm_trie".into(),
            other => format!("type {other}"),
        }
    }
}

impl fmt::Display for MapLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind())?;
        write!(
            f,
            " key {} B value {} B max_entries {} flags {:#x}",
            self.key_size, self.value_size, self.max_entries, self.flags
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_reads_as_bpftool_would_say_it() {
        let layout = MapLayout {
            map_type: 1,
            key_size: 8,
            value_size: 16,
            max_entries: 3,
            flags: 1,
        };
        assert_eq!(
            layout.to_string(),
            "hash key 8 B value 16 B max_entries 3 flags 0x1"
        );
    }
}
