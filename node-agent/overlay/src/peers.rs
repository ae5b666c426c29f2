//! All leases of the overlay, and what they mean to this node: whom it can reach how, and who claims what twice.
//!
//! Pure: it is told, and answers with the changes that follow. A subnet that two nodes claim belongs to the elder
//! lease, on every node alike; the younger one gets no route until the conflict ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use node_agent_model::{Change, PeerRoutes};

use crate::{Lease, NotAPeer, Overlay, VtepMac, outer};

/// Everybody's leases.
#[derive(Debug)]
pub struct Peers {
    overlay: Overlay,
    /// Holder of this node's own lease.
    own: String,
    leases: BTreeMap<String, Lease>,
    /// Who claims each subnet.
    claims: BTreeMap<IpNetwork, BTreeSet<String>>,
}

/// What a lease, or its absence, means to the model.
#[derive(Debug)]
pub struct Update {
    pub holder: String,
    pub changes: [Change; 2],
    /// Where the host must have routes to.
    pub prefixes: Vec<IpNetwork>,
    /// Where the kernel's VXLAN device must send what is addressed to the holder's.
    pub forwarding: Option<(VtepMac, IpAddr)>,
    /// Why the holder gets no route.
    pub why_not: Option<NotAPeer>,
}

/// Two leases with a subnet that overlaps.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Conflict {
    pub elder: String,
    pub younger: String,
    /// Of the younger.
    pub subnet: IpNetwork,
}

impl Peers {
    /// `own` is the holder of this node's own lease.
    pub fn new(overlay: Overlay, own: impl Into<String>) -> Self {
        Self {
            overlay,
            own: own.into(),
            leases: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    /// A lease is new or has changed; answers for its holder and for all whose claims it touches.
    pub fn put(&mut self, lease: Lease) -> Vec<Update> {
        let holder = lease.holder.clone();
        if self.leases.get(&holder) == Some(&lease) {
            return Vec::new();
        }
        let mut touched = self.forget(&holder);
        for subnet in &lease.subnets {
            self.claims
                .entry(*subnet)
                .or_default()
                .insert(holder.clone());
        }
        touched.extend(self.rivals(&lease));
        touched.insert(holder.clone());
        self.leases.insert(holder, lease);
        self.updates(touched)
    }

    /// A holder has no lease (any more).
    pub fn remove(&mut self, holder: &str) -> Vec<Update> {
        let mut touched = self.forget(holder);
        touched.insert(holder.to_owned());
        self.updates(touched)
    }

    /// This node's way to the others is another now.
    pub fn set_overlay(&mut self, overlay: Overlay) -> Vec<Update> {
        if self.overlay == overlay {
            return Vec::new();
        }
        self.overlay = overlay;
        self.updates(self.leases.keys().cloned().collect())
    }

    /// Holders that are known, this node's own included.
    pub fn holders(&self) -> impl Iterator<Item = &str> {
        self.leases.keys().map(String::as_str)
    }

    /// Who is in conflict with this holder.
    fn conflict(&self, lease: &Lease) -> Option<Conflict> {
        let age = |lease: &Lease| (lease.since, lease.holder.clone());
        let elder = self
            .rivals(lease)
            .into_iter()
            .filter_map(|holder| self.leases.get(&holder))
            .filter(|other| age(other) < age(lease))
            .min_by_key(|other| age(other))?;
        let subnet = lease.subnets.iter().find(|subnet| {
            let mut others = elder.subnets.iter();
            others.any(|other| overlap(*other, **subnet))
        })?;
        Some(Conflict {
            elder: elder.holder.clone(),
            younger: lease.holder.clone(),
            subnet: *subnet,
        })
    }

    /// The conflict that this node's own lease loses.
    pub fn own_conflict(&self) -> Option<Conflict> {
        self.conflict(self.leases.get(&self.own)?)
    }

    /// Removes a lease and its claims; answers whom it touched.
    fn forget(&mut self, holder: &str) -> BTreeSet<String> {
        let Some(lease) = self.leases.remove(holder) else {
            return BTreeSet::new();
        };
        for subnet in &lease.subnets {
            if let Some(claimants) = self.claims.get_mut(subnet) {
                claimants.remove(holder);
                if claimants.is_empty() {
                    self.claims.remove(subnet);
                }
            }
        }
        self.rivals(&lease)
    }

    /// The other holders whose subnets overlap with this lease's. Costs the length of a prefix, not the number of nodes.
    fn rivals(&self, lease: &Lease) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for subnet in &lease.subnets {
            let around = (0..subnet.prefix()).filter_map(|length| at_length(*subnet, length));
            let above = around.filter_map(|wider| self.claims.get(&wider));
            let within = self
                .claims
                .range(*subnet..)
                .map_while(|(other, holders)| overlap(*subnet, *other).then_some(holders));
            for holders in above.chain(within) {
                found.extend(holders.iter().cloned());
            }
        }
        found.remove(&lease.holder);
        found
    }

    fn updates(&self, holders: BTreeSet<String>) -> Vec<Update> {
        holders
            .into_iter()
            .map(|holder| self.update(holder))
            .collect()
    }

    fn update(&self, holder: String) -> Update {
        let (peers, why_not) = match self.leases.get(&holder).map(|lease| self.peers(lease)) {
            Some(Ok(peers)) => (peers, None),
            Some(Err(reason)) => ([None, None], Some(reason)),
            None => ([None, None], None),
        };
        let prefixes = peers.iter().flatten();
        let prefixes = prefixes.flat_map(|peer| peer.prefixes.clone()).collect();
        let [first, ipv6] = peers;
        let forwarding = first
            .as_ref()
            .and_then(|routes| outer::forwarding(&routes.peer));
        Update {
            changes: [
                Change::Peer(holder.clone(), first),
                Change::Peer(format!("{holder}/ipv6"), ipv6),
            ],
            prefixes,
            forwarding,
            why_not,
            holder,
        }
    }

    fn peers(&self, lease: &Lease) -> Result<[Option<PeerRoutes>; 2], NotAPeer> {
        if lease.holder == self.own {
            return Err(NotAPeer::Own);
        }
        if let Some(conflict) = self.conflict(lease) {
            return Err(NotAPeer::Claimed {
                subnet: conflict.subnet,
                elder: conflict.elder,
            });
        }
        self.overlay.peers(lease)
    }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The network of this length around another one.
fn at_length(network: IpNetwork, length: u8) -> Option<IpNetwork> {
    let wider = IpNetwork::new(network.network(), length).ok()?;
    let base: IpAddr = wider.network();
    IpNetwork::new(base, length).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Mode, OverlayOptions};

    fn overlay(number: u8) -> Overlay {
        Overlay::new(OverlayOptions {
            node_name: "own".to_owned(),
            mode: Mode::Vxlan,
            direct_routing: false,
            underlay_v4: Some([192, 0, 2, number].into()),
            underlay_v6: None,
            on_link: vec![],
            uplink_mtu: 1500,
            port: 8472,
            vni: 1,
            mac: VtepMac([2, 0, 0, 0, 0, number]),
        })
        .unwrap()
    }

    fn lease(holder: &str, subnets: &[&str], since: i64) -> Lease {
        Lease {
            holder: holder.to_owned(),
            subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
            attributes: overlay(7).attributes(),
            since,
        }
    }

    /// Who has routes, after these updates.
    fn reached(routes: &mut BTreeMap<String, Vec<IpNetwork>>, updates: Vec<Update>) {
        for update in updates {
            if update.prefixes.is_empty() {
                routes.remove(&update.holder);
            } else {
                routes.insert(update.holder, update.prefixes);
            }
        }
    }

    #[test]
    fn a_subnet_that_two_nodes_claim_goes_to_the_elder_in_both_orders_of_arrival() {
        let young = lease("young", &["10.244.2.0/24", "fd00:2::/64"], 9);
        let old = lease("old", &["10.244.2.0/25", "fd00:3::/64"], 5);
        for order in [[&young, &old], [&old, &young]] {
            let mut peers = Peers::new(overlay(1), "own");
            let mut routes = BTreeMap::new();
            for lease in order {
                reached(&mut routes, peers.put(lease.clone()));
            }
            assert_eq!(routes.keys().collect::<Vec<_>>(), ["old"]);
            // The conflict ends: the younger is reached again.
            reached(&mut routes, peers.remove("old"));
            assert_eq!(routes.keys().collect::<Vec<_>>(), ["young"]);
            reached(&mut routes, peers.put(old.clone()));
            let moved = lease("old", &["10.244.9.0/24"], 5);
            reached(&mut routes, peers.put(moved));
            assert_eq!(routes.len(), 2);
        }
    }

    #[test]
    fn both_sides_of_a_conflict_are_named() {
        let mut peers = Peers::new(overlay(1), "own");
        peers.put(lease("own", &["10.244.2.0/24"], 9));
        assert_eq!(peers.own_conflict(), None);
        peers.put(lease("thief", &["10.244.0.0/16"], 5));
        let conflict = peers.own_conflict().unwrap();
        assert_eq!(
            (conflict.elder.as_str(), conflict.younger.as_str()),
            ("thief", "own")
        );
        peers.put(lease("own", &["10.244.2.0/24"], 1));
        let updates = peers.put(lease("thief", &["10.244.0.0/17"], 5));
        let thief = updates.iter().find(|update| update.holder == "thief");
        let reason = thief.unwrap().why_not.as_ref().unwrap().to_string();
        assert!(
            reason.contains("own") && reason.contains("10.244.0.0/17"),
            "{reason}"
        );
    }

    #[test]
    fn what_did_not_change_costs_nothing_and_an_own_move_changes_all() {
        let mut peers = Peers::new(overlay(1), "own");
        for number in 0..100_u8 {
            let subnet = format!("10.244.{number}.0/24");
            assert_eq!(
                peers.put(lease(&format!("n{number}"), &[&subnet], 1)).len(),
                1
            );
        }
        assert!(peers.put(lease("n7", &["10.244.7.0/24"], 1)).is_empty());
        assert!(peers.set_overlay(overlay(1)).is_empty());
        assert_eq!(peers.set_overlay(overlay(2)).len(), 100);
    }

    fn subnet() -> impl Strategy<Value = IpNetwork> {
        (any::<u32>(), 8_u8..=12).prop_map(|(bits, length)| {
            let address = IpAddr::V4((bits & 0xff_f0_00_00).into());
            at_length(IpNetwork::new(address, 32).unwrap(), length).unwrap()
        })
    }

    proptest! {
        // The same leases give the same routes however they came, and no two routes overlap.
        #[test]
        fn routes_depend_on_the_leases_only_and_never_overlap(
            steps in proptest::collection::vec((0..6_u8, subnet(), 0..4_i64, any::<bool>()), 1..40))
        {
            let mut peers = Peers::new(overlay(1), "own");
            let mut routes = BTreeMap::new();
            let mut last: BTreeMap<String, Lease> = BTreeMap::new();
            for (number, subnet, since, gone) in steps {
                let holder = format!("n{number}");
                if gone {
                    last.remove(&holder);
                    reached(&mut routes, peers.remove(&holder));
                } else {
                    let lease = Lease { subnets: vec![subnet], ..lease(&holder, &[], since) };
                    last.insert(holder, lease.clone());
                    reached(&mut routes, peers.put(lease));
                }
            }
            let mut fresh = BTreeMap::new();
            let mut anew = Peers::new(overlay(1), "own");
            for lease in last.into_values().rev() {
                reached(&mut fresh, anew.put(lease));
            }
            prop_assert_eq!(&routes, &fresh);
            // Two rivals of an elder one may overlap with each other only if both lost.
            let all: Vec<IpNetwork> = routes.values().flatten().copied().collect();
            for (index, a) in all.iter().enumerate() {
                prop_assert!(all[..index].iter().all(|b| !overlap(*a, *b)), "{all:?}");
            }
        }
    }
}
