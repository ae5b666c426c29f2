//! What the agent exports as metrics: drops by reason, how full maps are, how much was written.

use std::{io, sync::OnceLock};

use ebpf_abi::{Counter, DropReason, PeerCount, Plain};

use crate::{
    MapError, MapLayout, Maps,
    bytes::{as_bytes, from_bytes},
    sys,
    table::RawMap,
};

/// What this process wrote to a map.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Operations {
    /// Elements written.
    pub updates: u64,
    /// Elements deleted.
    pub deletes: u64,
    /// System calls that did it.
    pub calls: u64,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapUsage {
    pub map: &'static str,
    pub entries: u32,
    pub capacity: u32,
}

impl Operations {
    /// Elements written or deleted.
    pub fn total(self) -> u64 {
        self.updates + self.deletes
    }
}

impl Maps {
    /// Packets and bytes dropped since the map was made, summed over the CPUs, for every reason.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropReason, Counter)>, MapError> {
        let of_reason = |reason: &DropReason| {
            let mut sum = Counter::default();
            let values: Vec<Counter> = per_cpu(&self.drop, *reason as u32)?;
            values.into_iter().for_each(|value| add(&mut sum, value));
            Ok((*reason, sum))
        };
        DropReason::ALL.iter().map(of_reason).collect()
    }

    /// What went to and came from a peer since it has its name, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn peer_count(&self, peer_id: u32) -> Result<PeerCount, MapError> {
        let mut sum = PeerCount::default();
        for value in per_cpu::<PeerCount>(&self.peer_count, peer_id)? {
            add(&mut sum.sent, value.sent);
            add(&mut sum.received, value.received);
            add(&mut sum.dropped, value.dropped);
        }
        Ok(sum)
    }

    /// Entries and capacity of every hash and trie, and of the connection tables. Other arrays are left out: nobody
    /// counts their use.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn usage(&self) -> Result<Vec<MapUsage>, MapError> {
        let mut usage = Vec::new();
        for map in self.all().filter(|map| !is_array(map.layout().map_type)) {
            let mut entries = 0;
            map.for_each(&mut |_, _| entries += 1)?;
            usage.push(MapUsage {
                map: map.name(),
                entries,
                capacity: map.layout().max_entries,
            });
        }
        usage.extend([self.v4.conns.usage(), self.v6.conns.usage()]);
        Ok(usage)
    }

    /// Name, layout and memory of every map: the bytes that the kernel has allocated for it, if it tells them
    /// (`memlock` in `/proc/self/fdinfo`).
    ///
    /// # Errors
    ///
    /// When the descriptors of this process cannot be read.
    pub fn layouts(&self) -> io::Result<Vec<(&'static str, MapLayout, Option<u64>)>> {
        self.all()
            .map(|map| Ok((map.name(), map.layout(), sys::map_memory(map.fd())?)))
            .collect()
    }

    /// What this process wrote to each map, by the map's name.
    pub fn operations(&self) -> Vec<(&'static str, Operations)> {
        self.all()
            .map(|map| (map.name(), map.operations()))
            .collect()
    }
}

fn add(sum: &mut Counter, value: Counter) {
    sum.packets += value.packets;
    sum.bytes += value.bytes;
}

/// An element's value on each CPU.
fn per_cpu<V: Plain>(map: &RawMap, index: u32) -> Result<Vec<V>, MapError> {
    let mut values = vec![0; size_of::<V>() * possible_cpus()];
    map.lookup(as_bytes(&index), &mut values)?;
    Ok(values
        .chunks_exact(size_of::<V>())
        .map(from_bytes)
        .collect())
}

fn is_array(map_type: u32) -> bool {
    matches!(
        map_type,
        crate::layout::map_type::ARRAY | crate::layout::map_type::PERCPU_ARRAY
    )
}

/// CPUs that the kernel reserves per-CPU values for, whether they are online or not.
pub(crate) fn possible_cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| {
        aya::util::nr_cpus().expect("sysfs lists the possible CPUs on every kernel that has bpf(2)")
    })
}
