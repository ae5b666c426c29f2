//! How fast this machine's kernel writes and reads maps like ours: on scratch maps, which nobody else sees and which
//! go when they were measured.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::{Error, MapError, MapLayout, layout::map_type, object, sys, table::RawMap};

/// Mean time of one element.
#[derive(Clone, Debug)]
pub struct MapTimes {
    /// The map of the dataplane that the scratch map is like.
    pub map: &'static str,
    pub layout: MapLayout,
    /// One system call an element.
    pub write: Duration,
    /// Many elements a system call, as the reconciler writes.
    pub batch_write: Duration,
    pub read: Duration,
    /// A walk through the whole map.
    pub batch_read: Duration,
    /// Of an array: nothing is ever deleted.
    pub delete: Option<Duration>,
}

/// Measures a map like each of ours, one a kind of map and size of element, filled with `entries`.
///
/// # Errors
///
/// When the object declares no such map, or the kernel refuses to make, write or read one.
pub fn measure_maps(entries: u32) -> Result<Vec<MapTimes>, Error> {
    let declared = object::declared_maps()?;
    let mut measured: Vec<MapTimes> = Vec::new();
    for &map in ebpf_abi::maps::ALL {
        let declared = declared.get(map).ok_or_else(|| Error::NotInObject {
            what: "map",
            name: map.into(),
        })?;
        let layout = MapLayout {
            max_entries: entries,
            ..*declared
        };
        // The twins of the families are told apart by their sizes alone; a counter per CPU is no table, nor is what has
        // one element, or one for each family.
        let known = measured.iter().any(|times| times.layout == layout);
        if layout.map_type != map_type::PERCPU_ARRAY && declared.max_entries > 2 && !known {
            measured.push(measure(map, layout)?);
        }
    }
    Ok(measured)
}

fn measure(name: &'static str, layout: MapLayout) -> Result<MapTimes, MapError> {
    let failed = |action| {
        move |source: io::Error| MapError {
            map: name,
            action,
            index: 0,
            source,
        }
    };
    let fd = sys::map_create(&layout).map_err(failed("make one like"))?;
    let map = RawMap::new(name, fd)?;
    let count = layout.max_entries;
    let keys: Vec<u8> = (0..count).flat_map(|index| key(&layout, index)).collect();
    let values = vec![0; count as usize * layout.value_size as usize];
    let value = vec![0; layout.value_size as usize];
    let each = || keys.chunks_exact(layout.key_size as usize);

    let start = Instant::now();
    each().try_for_each(|key| map.update(key, &value, 1))?;
    let write = start.elapsed();
    let start = Instant::now();
    let mut read_value = value.clone();
    each().try_for_each(|key| map.lookup(key, &mut read_value).map(|_| ()))?;
    let read = start.elapsed();
    let start = Instant::now();
    let mut seen = 0;
    map.for_each(&mut |_, _| seen += 1)?;
    let batch_read = start.elapsed();
    let delete = match layout.map_type {
        map_type::ARRAY => None,
        _ => {
            let start = Instant::now();
            map.delete(&keys, count as usize)?;
            Some(start.elapsed())
        }
    };
    let start = Instant::now();
    map.update(&keys, &values, count as usize)?;
    let batch_write = start.elapsed();
    if seen == 0 {
        return Err(failed("find anything in")(io::ErrorKind::NotFound.into()));
    }
    Ok(MapTimes {
        map: name,
        layout,
        write: write / count,
        batch_write: batch_write / count,
        read: read / count,
        batch_read: batch_read / seen,
        delete: delete.map(|delete| delete / count),
    })
}

/// The key number `index`: of an array the index itself, of a trie a whole address.
fn key(layout: &MapLayout, index: u32) -> Vec<u8> {
    let mut key = vec![0; layout.key_size as usize];
    if layout.map_type == map_type::LPM_TRIE {
        let bits = (layout.key_size - 4) * 8;
        key[..4].copy_from_slice(&bits.to_ne_bytes());
        key[4..8].copy_from_slice(&index.to_be_bytes());
    } else {
        key[..4].copy_from_slice(&index.to_ne_bytes());
    }
    key
}
