//! How many entries the maps have, so that a plan refuses what will not fit before the kernel must.

use ebpf_abi::{Family, maps};

/// Entries of each map that the reconciler fills.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    pub frontends4: usize,
    pub frontends6: usize,
    pub ranges4: usize,
    pub ranges6: usize,
    /// Of `service_v2` and `cursor_v1`; id 0 is never given.
    pub services: usize,
    pub slots: usize,
    pub backends4: usize,
    pub backends6: usize,
    pub endpoints4: usize,
    pub endpoints6: usize,
    pub routes4: usize,
    pub routes6: usize,
    pub peers: usize,
}

impl Capacity {
    pub(crate) fn frontends(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.frontends4,
            Family::V6 => self.frontends6,
        }
    }

    pub(crate) fn ranges(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.ranges4,
            Family::V6 => self.ranges6,
        }
    }

    pub(crate) fn endpoints(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.endpoints4,
            Family::V6 => self.endpoints6,
        }
    }

    pub(crate) fn routes(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.routes4,
            Family::V6 => self.routes6,
        }
    }
}

impl Default for Capacity {
    /// The sizes of the contract.
    fn default() -> Self {
        Self {
            frontends4: maps::FRONTEND4_SIZE,
            frontends6: maps::FRONTEND6_SIZE,
            ranges4: maps::RANGE4_SIZE,
            ranges6: maps::RANGE6_SIZE,
            services: maps::SERVICE_SIZE.min(maps::CURSOR_SIZE),
            slots: maps::SLOT_SIZE,
            backends4: maps::BACKEND4_SIZE,
            backends6: maps::BACKEND6_SIZE,
            endpoints4: maps::ENDPOINT4_SIZE,
            endpoints6: maps::ENDPOINT6_SIZE,
            routes4: maps::ROUTE4_SIZE,
            routes6: maps::ROUTE6_SIZE,
            peers: maps::PEER_SIZE,
        }
    }
}
