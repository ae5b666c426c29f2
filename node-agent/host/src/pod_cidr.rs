//! A node's range of pod addresses, and the addresses in it that no pod may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A podCIDR of this node (`spec.podCIDRs` of the Node) with at least one address for a pod.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodCidr(IpNetwork);

/// Why a range cannot serve as podCIDR.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum PodCidrError {
    #[error("podCIDR {given} has bits set after its prefix: write {meant}")]
    HostBits { given: IpNetwork, meant: IpNetwork },
    #[error("podCIDR {0} is too small: it needs two addresses for the node and one for a pod")]
    TooSmall(IpNetwork),
}

impl PodCidr {
    /// # Errors
    ///
    /// [`PodCidrError`] if the range has host bits or no room for a pod.
    pub fn new(network: IpNetwork) -> Result<Self, PodCidrError> {
        let meant = IpNetwork::new(network.network(), network.prefix())
            .expect("the prefix comes from a network");
        if network != meant {
            return Err(PodCidrError::HostBits {
                given: network,
                meant,
            });
        }
        let cidr = Self(network);
        if cidr.last_offset() < Self::FIRST_POD {
            Err(PodCidrError::TooSmall(network))
        } else {
            Ok(cidr)
        }
    }

    #[must_use]
    pub fn network(&self) -> IpNetwork {
        self.0
    }

    /// The first address: source NAT by the dataplane owns it, no interface ever has it.
    #[must_use]
    pub fn source_nat(&self) -> IpAddr {
        self.at(0)
    }

    /// The second address: the node's own towards pods, and the pods' gateway.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    const FIRST_POD: u128 = 2;

    /// The number of addresses for pods.
    pub(crate) fn pods(&self) -> u128 {
        self.last_offset() - Self::FIRST_POD + 1
    }

    /// The pod address with this number, counted from 0; the caller keeps it below [`PodCidr::pods`].
    pub(crate) fn pod(&self, number: u128) -> IpAddr {
        self.at(Self::FIRST_POD + number)
    }

    /// The number of a pod address; `None` for reserved addresses and those of other ranges.
    pub(crate) fn pod_number(&self, address: IpAddr) -> Option<u128> {
        if !self.contains(address) {
            return None;
        }
        let number = (bits(address) - bits(self.0.network())).checked_sub(Self::FIRST_POD)?;
        (number < self.pods()).then_some(number)
    }

    /// The greatest offset that a pod may have: the last IPv4 address is the broadcast address (RFC 919).
    fn last_offset(&self) -> u128 {
        let (length, reserved) = match self.0 {
            IpNetwork::V4(network) => (32 - network.prefix(), 1),
            IpNetwork::V6(network) => (128 - network.prefix(), 0),
        };
        let last = 1_u128
            .checked_shl(length.into())
            .map_or(u128::MAX, |size| size - 1);
        last.saturating_sub(reserved)
    }

    fn at(&self, offset: u128) -> IpAddr {
        let bits = bits(self.0.network()) + offset;
        match self.0 {
            IpNetwork::V4(_) => {
                Ipv4Addr::from(u32::try_from(bits).expect("offsets stay inside the range")).into()
            }
            IpNetwork::V6(_) => Ipv6Addr::from(bits).into(),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> PodCidr {
        PodCidr::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_first_the_second_and_the_last_ipv4_address_are_reserved() {
        let range = cidr("10.244.1.0/24");
        assert_eq!(range.source_nat(), "10.244.1.0".parse::<IpAddr>().unwrap());
        assert_eq!(range.gateway(), "10.244.1.1".parse::<IpAddr>().unwrap());
        assert_eq!(range.pods(), 253);
        assert_eq!(range.pod(0), "10.244.1.2".parse::<IpAddr>().unwrap());
        assert_eq!(range.pod(252), "10.244.1.254".parse::<IpAddr>().unwrap());
        for reserved in ["10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.2.2"] {
            assert_eq!(
                range.pod_number(reserved.parse().unwrap()),
                None,
                "{reserved}"
            );
        }
    }

    #[test]
    fn ipv6_has_no_broadcast_address() {
        let range = cidr("fd00:10:244:1::/64");
        assert_eq!(
            range.gateway(),
            "fd00:10:244:1::1".parse::<IpAddr>().unwrap()
        );
        assert_eq!(range.pod(0), "fd00:10:244:1::2".parse::<IpAddr>().unwrap());
        assert_eq!(range.pods(), (1 << 64) - 2);
        assert_eq!(range.pod_number(range.pod(7)), Some(7));
        assert_eq!(cidr("::/0").pods(), u128::MAX - 1);
    }

    #[test]
    fn a_range_without_room_for_a_pod_is_refused() {
        for small in ["10.244.1.0/32", "10.244.1.0/31", "fd00::/127", "fd00::/128"] {
            let network = small.parse().unwrap();
            assert_eq!(PodCidr::new(network), Err(PodCidrError::TooSmall(network)));
        }
        assert_eq!(cidr("10.244.1.0/30").pods(), 1);
        assert_eq!(cidr("fd00::/126").pods(), 2);
    }

    #[test]
    fn host_bits_are_refused_with_the_right_spelling() {
        let error = PodCidr::new("10.244.1.7/24".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "podCIDR 10.244.1.7/24 has bits set after its prefix: write 10.244.1.0/24"
        );
    }
}
