//! Destinations to which pods keep their address: ranges of no Service.

use std::collections::BTreeSet;

use ebpf_abi::{Family, KEEPS_SOURCE};
use ipnetwork::IpNetwork;

use crate::Applied;
use crate::address::family_of;

impl Applied {
    /// Takes in as many as fit.
    pub(crate) fn place_keep_source(
        &mut self,
        want: &BTreeSet<IpNetwork>,
    ) -> Result<(), &'static str> {
        let touched: Vec<IpNetwork> = self
            .keep_source
            .symmetric_difference(want)
            .copied()
            .collect();
        self.keep_source.retain(|prefix| want.contains(prefix));
        let mut result = Ok(());
        for prefix in touched.iter().filter(|prefix| want.contains(prefix)) {
            let family = family_of(prefix.ip());
            let held = self.holds_range(KEEPS_SOURCE, *prefix);
            let incoming = self.incoming.get(family).ranges + usize::from(!held);
            if self.held.range_count(family) + incoming > self.capacity.ranges(family) {
                result = Err(match family {
                    Family::V4 => ebpf_abi::maps::RANGE4,
                    Family::V6 => ebpf_abi::maps::RANGE6,
                });
                continue;
            }
            self.incoming.get_mut(family).ranges = incoming;
            self.keep_source.insert(*prefix);
        }
        let touched = touched.into_iter().map(|prefix| (KEEPS_SOURCE, prefix));
        self.touched.ranges.extend(touched);
        result
    }
}
