//! After a start, a failure, and from time to time: everything is compared.

use ebpf_abi::{Addr4, Addr6, KEEPS_SOURCE, backend_state};
use ipnetwork::IpNetwork;

use crate::address::IpPort;
use crate::wanted::FrontendAddr;
use crate::{Applied, MapFamily};

impl Applied {
    /// Marks everything that is wanted or held, so that all of it is compared.
    pub(crate) fn touch_all(&mut self) {
        self.touched.config = true;
        self.touched.frontends.extend(self.frontends.keys());
        self.touched.services.extend(self.service_of_id.keys());
        self.touched.services.extend(self.held.services.keys());
        for set in self.sets.values().flatten() {
            let ranges = set.ranges.iter().map(|range| (set.id, *range));
            self.touched.ranges.extend(ranges);
        }
        self.touched.services.extend(self.held.service_names.keys());
        self.touched.routes.extend(self.routes.keys());
        self.touched.peers.extend(self.peer_of_id.keys());
        self.touched.peers.extend(self.held.peers.keys());
        self.touched.peers.extend(self.held.peer_names.keys());
        let kept = self.keep_source.iter();
        let kept = kept.map(|prefix| (KEEPS_SOURCE, *prefix));
        self.touched.ranges.extend(kept);
        self.touch_held::<Addr4>();
        self.touch_held::<Addr6>();
    }

    fn touch_held<A: MapFamily>(&mut self) {
        let half = A::half(&self.held);
        self.touched
            .frontends
            .extend(half.frontends.keys().map(|key| FrontendAddr {
                at: IpPort {
                    ip: key.addr.to_ip(),
                    port: u16::from_be(key.port_be),
                },
                protocol: key.protocol,
            }));
        self.touched
            .endpoints
            .extend(half.endpoints.keys().map(|addr| addr.to_ip()));
        self.touched
            .ranges
            .extend(half.ranges.iter().filter_map(|key| {
                let len = u8::try_from(key.prefix_len.checked_sub(32)?).ok()?;
                let range = IpNetwork::new(key.addr.to_ip(), len).ok()?;
                Some((u32::from_be(key.service_id_be), range))
            }));
        self.touched
            .routes
            .extend(half.routes.keys().filter_map(|key| {
                let prefix_len = u8::try_from(key.prefix_len).ok()?;
                IpNetwork::new(key.addr.to_ip(), prefix_len).ok()
            }));
        let in_use = half
            .backends
            .iter()
            .filter(|(_, backend)| backend.state != backend_state::FREE);
        let ids: Vec<u32> = in_use.map(|(id, _)| *id).collect();
        let table = self.backends.get_mut(A::FAMILY);
        table.touch_all();
        table.touch(ids);
    }
}
