//! Ethernet addresses.

use std::fmt;

use sha2::{Digest, Sha256};

/// An Ethernet address, in the order of the bytes on the wire.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The same address for the same seed: locally administered, unicast (IEEE 802, clause 8.2).
    #[must_use]
    pub fn derived(seed: &str) -> Self {
        let digest = Sha256::digest(seed.as_bytes());
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        bytes[0] = bytes[0] & 0xfe | 0x02;
        Self(bytes)
    }

    /// The address in these bytes; `None` unless there are six.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_address_is_stable_local_and_unicast() {
        let mac = MacAddr::derived("0b9c-1");
        assert_eq!(mac, MacAddr::derived("0b9c-1"));
        assert_ne!(mac, MacAddr::derived("0b9c-2"));
        assert_eq!(mac.0[0] & 0x03, 0x02);
    }

    #[test]
    fn it_prints_as_the_ip_tool_does() {
        assert_eq!(
            MacAddr([0x02, 0xfa, 0x1e, 0xad, 0, 1]).to_string(),
            "02:fa:1e:ad:00:01"
        );
    }
}
