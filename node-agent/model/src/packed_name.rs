//! Names of the services of the maps as they are kept: without the zeros that fill them up in their map, since there are
//! many.

use ebpf_abi::ServiceName;

/// A [`ServiceName`] that takes as many bytes as it has text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackedName {
    /// Namespace, name and port, one after the other, each without the zeros at its end.
    texts: Box<[u8]>,
    /// Where the first two of them end.
    ends: [u8; 2],
    protocol: u8,
    policy: u8,
    family: u8,
}

impl From<&ServiceName> for PackedName {
    fn from(full: &ServiceName) -> Self {
        let mut texts = Vec::new();
        let ends = [&full.namespace, &full.name, &full.port].map(|text| {
            let end = text.iter().rposition(|&byte| byte != 0);
            texts.extend_from_slice(&text[..end.map_or(0, |last| last + 1)]);
            // Three texts of 64 bytes.
            texts.len() as u8
        });
        Self {
            texts: texts.into(),
            ends: [ends[0], ends[1]],
            protocol: full.protocol,
            policy: full.policy,
            family: full.family,
        }
    }
}

impl PackedName {
    /// As it stands in the map, byte by byte.
    pub fn full(&self) -> ServiceName {
        let [first, second] = self.ends.map(usize::from);
        let filled_up = |text: &[u8]| {
            let mut bytes = [0; ebpf_abi::NAME_LEN];
            bytes[..text.len()].copy_from_slice(text);
            bytes
        };
        ServiceName {
            namespace: filled_up(&self.texts[..first]),
            name: filled_up(&self.texts[first..second]),
            port: filled_up(&self.texts[second..]),
            protocol: self.protocol,
            policy: self.policy,
            family: self.family,
            pad: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::{Family, name_policy};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_comes_back_as_it_was(
            namespace in "[a-z]{0,70}", name in "[a-zä]{0,70}", port in "[a-z]{0,70}", protocol: u8,
        ) {
            let full = ServiceName::new(&namespace, &name, &port, protocol, name_policy::LOCAL, Family::V6);
            prop_assert_eq!(PackedName::from(&full).full(), full);
        }
    }
}
