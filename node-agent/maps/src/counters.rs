//! What the agent exports as metrics: drops by reason, how full maps are, how much was written.

use std::{io, sync::OnceLock};

use ebpf_abi::{Counter, DropReason};

use crate::{
    MapError, MapLayout, Maps,
    bytes::{as_bytes, from_bytes},
    sys,
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
        let mut values = vec![0; size_of::<Counter>() * possible_cpus()];
        let mut drops = Vec::with_capacity(DropReason::ALL.len());
        for &reason in DropReason::ALL {
            self.drop.lookup(as_bytes(&(reason as u32)), &mut values)?;
            let mut sum = Counter::default();
            for value in values.chunks_exact(size_of::<Counter>()) {
                let counter: Counter = from_bytes(value);
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }
            drops.push((reason, sum));
        }
        Ok(drops)
    }

    /// Entries and capacity of every hash and trie. Arrays are left out: the kernel counts no use of them.
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
