//! The object that `build.rs` built, and what it declares.

use std::collections::BTreeMap;

use crate::{Error, MapLayout};

/// The eBPF object, an ELF file with BTF, aligned as aya's parser wants it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.bpf.o"));

/// The layout of every map that the object declares, by name.
pub(crate) fn declared_maps() -> Result<BTreeMap<String, MapLayout>, Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|source| Error::Object {
        source: aya::EbpfError::ParseError(source),
    })?;
    Ok(object
        .maps
        .into_iter()
        .map(|(name, map)| {
            let layout = MapLayout {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            };
            (name, layout)
        })
        .collect())
}
