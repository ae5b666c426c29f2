//! How many entries the maps have: a few numbers that an operator can know, and what follows for each map.

use std::{collections::BTreeMap, fs, io};

use ebpf_abi::maps as names;
use node_agent_model::Capacity;

use crate::Maps;

/// What the maps must hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// IPv4 connections; of IPv6 half as many. Their memory is taken at once.
    pub conntrack: u32,
    /// Ports of Services, and of each family addresses and ports at which they are asked for.
    pub services: u32,
    /// Addresses and ports of endpoints of each family; twice as many may be in the Services' sets.
    pub endpoints: u32,
    /// Clients of Services with session affinity, whose backends are remembered. Their memory is taken at once.
    pub affinity: u32,
}

impl Sizes {
    pub const DEFAULT_SERVICES: u32 = names::SERVICE_SIZE as u32;
    pub const DEFAULT_ENDPOINTS: u32 = names::BACKEND4_SIZE as u32;

    /// For a machine with so many bytes of memory. 65,536 connections; on large machines one for each 512 KiB, up to a
    /// million; on small ones one for each 64 KiB, so that the tables take no more than a hundredth of the memory.
    pub fn for_memory(bytes: u64) -> Self {
        const USUAL: u64 = names::CONN4_SIZE as u64;
        let most = (bytes >> 16).max(4096);
        let wanted = (bytes >> 19).clamp(USUAL, 1 << 20).min(most);
        let conntrack = 1 << wanted.ilog2();
        Self {
            conntrack,
            services: Self::DEFAULT_SERVICES,
            endpoints: Self::DEFAULT_ENDPOINTS,
            affinity: conntrack,
        }
    }

    /// For this machine (proc(5), `MemTotal`).
    ///
    /// # Errors
    ///
    /// When the kernel does not tell its memory.
    pub fn for_this_machine() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|kib| kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let missing = || io::Error::other("/proc/meminfo has no MemTotal");
        Ok(Self::for_memory(kib.ok_or_else(missing)? << 10))
    }

    /// By the name of the map; those that are missing have the object's own size.
    pub fn max_entries(&self) -> BTreeMap<&'static str, u32> {
        let services = [
            names::FRONTEND4,
            names::FRONTEND6,
            names::SERVICE,
            names::SERVICE_NAME,
            names::CURSOR,
            names::ENDPOINT4,
            names::ENDPOINT6,
        ];
        let of_services = services.map(|map| (map, self.services));
        let others = [
            (names::BACKEND4, self.endpoints),
            (names::BACKEND6, self.endpoints),
            (names::SLOT, self.endpoints.saturating_mul(2)),
            (names::AFFINITY, self.affinity),
            // Connection tables come in steps of 64.
            (names::CONN4, self.conntrack.next_multiple_of(64)),
            (names::CONN6, (self.conntrack / 2).next_multiple_of(64)),
            (names::SOCKET4, self.conntrack),
            (names::SOCKET6, self.conntrack),
        ];
        of_services.into_iter().chain(others).collect()
    }
}

impl Maps {
    /// How much the reconciler may put into these maps.
    pub fn capacity(&self) -> Capacity {
        let services = self.service.capacity().min(self.service_name.capacity());
        Capacity {
            frontends4: self.v4.frontend.capacity() as usize,
            frontends6: self.v6.frontend.capacity() as usize,
            ranges4: self.v4.range.capacity() as usize,
            ranges6: self.v6.range.capacity() as usize,
            services: services.min(self.cursor.capacity()) as usize,
            slots: self.slot.capacity() as usize,
            backends4: self.v4.backend.capacity() as usize,
            backends6: self.v6.backend.capacity() as usize,
            endpoints4: self.v4.endpoint.capacity() as usize,
            endpoints6: self.v6.endpoint.capacity() as usize,
            routes4: self.v4.route.capacity() as usize,
            routes6: self.v6.route.capacity() as usize,
            peers: self.peer.capacity() as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_a_small_table_and_a_large_one_no_more_than_a_million() {
        let conntrack = |gib: u64| Sizes::for_memory(gib << 30).conntrack;
        let small = [1, 2, 4, 16, 32].map(conntrack);
        assert_eq!(small, [16_384, 32_768, 65_536, 65_536, 65_536]);
        let large = [64, 100, 512, 4096].map(conntrack);
        assert_eq!(large, [131_072, 131_072, 1 << 20, 1 << 20]);
        assert_eq!(Sizes::for_memory(0).conntrack, 4096);
    }

    #[test]
    fn thirty_thousand_services_of_three_endpoints_fit_by_default() {
        let sizes = Sizes::for_memory(1 << 30).max_entries();
        assert!(sizes[names::SERVICE] > 30_000 && sizes[names::FRONTEND4] > 30_000);
        assert!(sizes[names::BACKEND4] > 90_000 && sizes[names::BACKEND6] > 90_000);
        assert!(sizes[names::SLOT] > 90_000);
    }
}
