//! The MAC address of a node's overlay endpoint.

use std::fmt;
use std::str::FromStr;

/// `VtepMAC` of flannel: locally administered, unicast.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VtepMac(pub [u8; 6]);

impl VtepMac {
    /// From random bytes, as flannel's `pkg/mac` does: `(b0 & 0xfe) | 0x02`.
    pub fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for VtepMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no MAC address of six bytes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a MAC address such as 12:c6:65:89:b4:e3")]
pub struct BadMac(String);

impl FromStr for VtepMac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let bytes: Vec<u8> = text
            .split(':')
            .map(|byte| {
                if byte.len() == 2 {
                    u8::from_str_radix(byte, 16).map_err(|_| bad())
                } else {
                    Err(bad())
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_every_address_is_read_back(text in ".{0,20}", bytes in any::<[u8; 6]>()) {
            let _ = text.parse::<VtepMac>();
            prop_assert_eq!(VtepMac(bytes).to_string().parse(), Ok(VtepMac(bytes)));
        }
    }

    #[test]
    fn a_random_address_is_local_and_unicast() {
        assert_eq!(
            VtepMac::from_random([0xff; 6]).to_string(),
            "fe:ff:ff:ff:ff:ff"
        );
        assert_eq!(
            VtepMac::from_random([0; 6]).to_string(),
            "02:00:00:00:00:00"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mac = VtepMac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]);
        assert_eq!("12:C6:65:89:b4:e3".parse(), Ok(mac));
        for bad in [
            "",
            "12:c6:65:89:b4",
            "12:c6:65:89:b4:e3:00",
            "12-c6-65-89-b4-e3",
            "1:2:3:4:5:6",
            "gg:00:00:00:00:00",
        ] {
            assert!(bad.parse::<VtepMac>().is_err(), "{bad}");
        }
    }
}
