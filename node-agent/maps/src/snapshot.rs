//! The maps that the reconciler owns, read back whole.

use std::collections::BTreeMap;

use ebpf_abi::{Config, Plain, ServiceName};
use node_agent_model::{PackedName, Snapshot, SnapshotFamily};

use crate::{FamilyMaps, MapError, MapFamily, Maps, Table, bytes::as_bytes};

pub(crate) fn read(maps: &Maps) -> Result<Snapshot, MapError> {
    Ok(Snapshot {
        v4: read_family(&maps.v4)?,
        v6: read_family(&maps.v6)?,
        config: maps.config.get(&0)?.unwrap_or_else(Config::default),
        services: maps.service.entries()?.into_iter().collect(),
        service_names: names(&maps.service_name)?,
        slots: used(&maps.slot)?.into_iter().collect(),
        peers: used(&maps.peer)?.into_iter().collect(),
        peer_names: maps.peer_name.entries()?.into_iter().collect(),
    })
}

fn names(table: &Table<u32, ServiceName>) -> Result<BTreeMap<u32, PackedName>, MapError> {
    let mut names = BTreeMap::new();
    table.for_each(|id, name| {
        names.insert(id, PackedName::from(&name));
    })?;
    Ok(names)
}

fn read_family<A: MapFamily>(maps: &FamilyMaps<A>) -> Result<SnapshotFamily<A>, MapError> {
    Ok(SnapshotFamily {
        frontends: maps.frontend.entries()?.into_iter().collect(),
        ranges: maps
            .range
            .entries()?
            .into_iter()
            .map(|(key, _)| key)
            .collect(),
        backends: used(&maps.backend)?.into_iter().collect(),
        endpoints: maps.endpoint.entries()?.into_iter().collect(),
        routes: maps.route.entries()?.into_iter().collect(),
    })
}

/// The entries of an array that are not all zero: an array has no absent ones.
fn used<V: Plain>(table: &Table<u32, V>) -> Result<Vec<(u32, V)>, MapError> {
    let mut entries = Vec::new();
    table.for_each(|index, value| {
        if as_bytes(&value).iter().any(|&byte| byte != 0) {
            entries.push((index, value));
        }
    })?;
    Ok(entries)
}
