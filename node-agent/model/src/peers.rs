//! Other nodes: gives them ids, and marks their routes.

use std::collections::BTreeSet;
use std::time::Duration;

use ebpf_abi::Family;
use ipnetwork::IpNetwork;

use crate::address::{family_of, network_of};
use crate::applied::PlacedPeer;
use crate::{Applied, MapFamily, PeerRoutes, emit};

impl Applied {
    /// Places what is wanted of a node; an error names the map that is full.
    pub(crate) fn place_peer(
        &mut self,
        node: &str,
        want: Option<&PeerRoutes>,
        now: Duration,
    ) -> Result<(), &'static str> {
        let placed = self.peers.remove(node);
        let Some(want) = want else {
            if let Some(peer) = placed {
                peer.prefixes
                    .into_iter()
                    .for_each(|prefix| self.unclaim_route(node, prefix));
                self.peer_of_id.remove(&peer.id);
                self.peer_ids.release(peer.id, now);
                self.touched.peers.insert(peer.id);
            }
            return Ok(());
        };
        let mut peer = match placed {
            Some(peer) => peer,
            None => {
                let restored = want
                    .prefixes
                    .iter()
                    .filter_map(|prefix| self.held_peer(*prefix));
                let id = restored
                    .into_iter()
                    .find(|id| self.restored.peers.contains(id));
                let id = match id {
                    Some(id) => id,
                    None => self.peer_ids.allocate(now).ok_or(ebpf_abi::maps::PEER)?,
                };
                self.restored.peers.remove(&id);
                PlacedPeer {
                    id,
                    peer: want.peer,
                    prefixes: BTreeSet::new(),
                }
            }
        };
        peer.peer = want.peer;
        self.peer_of_id.insert(peer.id, node.to_owned());
        self.touched.peers.insert(peer.id);
        let prefixes: BTreeSet<IpNetwork> = want.prefixes.iter().map(network_of).collect();
        let gone: Vec<_> = peer.prefixes.difference(&prefixes).copied().collect();
        gone.into_iter()
            .for_each(|prefix| self.unclaim_route(node, prefix));
        let mut result = Ok(());
        peer.prefixes.clear();
        for prefix in prefixes {
            let family = family_of(prefix.ip());
            if !self.routes.contains_key(&prefix) && self.held_peer(prefix).is_none() {
                let taken = self.held.route_count(family) + self.incoming.get(family).routes;
                if taken >= self.capacity.routes(family) {
                    result = Err(if family == Family::V4 {
                        ebpf_abi::maps::ROUTE4
                    } else {
                        ebpf_abi::maps::ROUTE6
                    });
                    continue;
                }
                self.incoming.get_mut(family).routes += 1;
            }
            self.routes
                .entry(prefix)
                .or_default()
                .insert(node.to_owned());
            self.touched.routes.insert(prefix);
            peer.prefixes.insert(prefix);
        }
        self.peers.insert(node.to_owned(), peer);
        result
    }

    fn unclaim_route(&mut self, node: &str, prefix: IpNetwork) {
        if let Some(nodes) = self.routes.get_mut(&prefix) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.routes.remove(&prefix);
            }
        }
        self.touched.routes.insert(prefix);
    }

    fn held_peer(&self, prefix: IpNetwork) -> Option<u32> {
        fn find<A: MapFamily>(applied: &Applied, prefix: IpNetwork) -> Option<u32> {
            let key = emit::route_key::<A>(prefix)?;
            A::half(&applied.held)
                .routes
                .get(&key)
                .map(|held| held.peer_id)
        }
        find::<ebpf_abi::Addr4>(self, prefix).or_else(|| find::<ebpf_abi::Addr6>(self, prefix))
    }
}
