//! Blocks of addresses and the subnets that they divide into, the same for IPv4 and IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses such as `10.244.0.0/16` or `fd00:10:244::/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The first address, as a number in the lowest bits.
    base: u128,
    prefix: u8,
    is_v6: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is no block of addresses; write it like 10.244.0.0/16 or fd00:10:244::/48")]
    Malformed(String),
    #[error("{given} has bits set after its prefix; the block is {block}")]
    HostBits { given: String, block: Cidr },
}

impl Cidr {
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The width of an address in bits.
    #[must_use]
    pub fn bits(&self) -> u8 {
        if self.is_v6 { 128 } else { 32 }
    }

    /// How many subnets of this prefix length the block holds; at least 1.
    pub(crate) fn subnets(&self, prefix: u8) -> u128 {
        1u128
            .checked_shl(u32::from(prefix.saturating_sub(self.prefix)))
            .unwrap_or(u128::MAX)
    }

    /// The subnet number `index`, which must be less than [`Self::subnets`].
    pub(crate) fn subnet(&self, prefix: u8, index: u128) -> Self {
        let offset = index.checked_shl(u32::from(self.bits() - prefix));
        Self {
            base: self.base | offset.unwrap_or(0),
            prefix,
            ..*self
        }
    }

    /// The numbers of the subnets that `other` covers, first and last; `None` when it lies outside.
    pub(crate) fn covered(&self, prefix: u8, other: &Self) -> Option<(u128, u128)> {
        if self.is_v6 != other.is_v6 {
            return None;
        }
        if other.prefix <= self.prefix {
            let around = self.base & other.mask() == other.base;
            return around.then(|| (0, self.subnets(prefix) - 1));
        }
        if other.base & self.mask() != self.base {
            return None;
        }
        let shift = u32::from(self.bits() - prefix);
        let number = |address: u128| (address ^ self.base).checked_shr(shift).unwrap_or(0);
        let last = other.base | (self.full() & !other.mask());
        Some((number(other.base), number(last)))
    }

    fn full(&self) -> u128 {
        u128::MAX >> (128 - u32::from(self.bits()))
    }

    fn mask(&self) -> u128 {
        let host_bits = u32::from(self.bits() - self.prefix);
        u128::MAX.checked_shl(host_bits).unwrap_or(0) & self.full()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let base = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let mut cidr = Self {
            base,
            prefix: prefix.parse().map_err(|_| malformed())?,
            is_v6: address.is_ipv6(),
        };
        if cidr.prefix > cidr.bits() {
            return Err(malformed());
        }
        cidr.base &= cidr.mask();
        if cidr.base != base {
            return Err(CidrError::HostBits {
                given: text.to_owned(),
                block: cidr,
            });
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.prefix;
        match u32::try_from(self.base) {
            Ok(base) if !self.is_v6 => write!(f, "{}/{prefix}", Ipv4Addr::from_bits(base)),
            _ => write!(f, "{}/{prefix}", Ipv6Addr::from_bits(self.base)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_read_as_they_are_written() {
        for text in [
            "10.244.0.0/16",
            "0.0.0.0/0",
            "10.1.2.3/32",
            "fd00:10:244::/48",
            "::/0",
        ] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for text in [
            "10.244.0.0",
            "10.244.0.0/33",
            "10.244/16",
            "fd00::/129",
            "x/8",
            "1.2.3.4/-1",
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Malformed(text.into())));
        }
        let error = "10.244.1.0/16".parse::<Cidr>().unwrap_err();
        assert!(
            error.to_string().contains("the block is 10.244.0.0/16"),
            "{error}"
        );
    }

    #[test]
    fn subnets_are_numbered_from_the_first_address() {
        for (block, prefix, count, index, expected) in [
            ("10.244.0.0/16", 24, 256, 255, "10.244.255.0/24"),
            ("10.244.0.0/24", 24, 1, 0, "10.244.0.0/24"),
            ("10.0.0.0/30", 32, 4, 3, "10.0.0.3/32"),
            ("fd00:10:244::/48", 64, 65_536, 258, "fd00:10:244:102::/64"),
            ("::/0", 128, u128::MAX, 5, "::5/128"),
        ] {
            let block = cidr(block);
            assert_eq!(block.subnets(prefix), count, "{block}");
            let subnet = block.subnet(prefix, index);
            assert_eq!(subnet, cidr(expected));
            assert_eq!(
                block.covered(prefix, &subnet),
                Some((index, index)),
                "{block}"
            );
        }
    }

    #[test]
    fn a_foreign_block_covers_all_the_subnets_that_it_touches() {
        let block = cidr("10.244.0.0/16");
        let covered = |other: &str| block.covered(24, &cidr(other));
        assert_eq!(covered("10.244.3.128/25"), Some((3, 3)));
        assert_eq!(covered("10.244.4.0/22"), Some((4, 7)));
        assert_eq!(covered("10.0.0.0/8"), Some((0, 255)));
        assert_eq!(covered("10.245.0.0/24"), None);
        assert_eq!(covered("fd00::/64"), None);
    }
}
