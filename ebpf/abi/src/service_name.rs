//! What a service of the maps is called: `service_name_v1`. No program reads it; it is there for people, who ask for a
//! Service by its name, also while no agent runs.

use crate::{Family, Plain, text};

/// Bytes of each text: names of the API have at most 63 (RFC 1123 labels).
pub const NAME_LEN: usize = 64;

/// Value of `service_name_v1`, by service id. Texts are UTF-8, filled up with zero bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct ServiceName {
    pub namespace: [u8; NAME_LEN],
    pub name: [u8; NAME_LEN],
    /// Name of the port; empty if the Service has one unnamed port.
    pub port: [u8; NAME_LEN],
    /// IANA protocol number.
    pub protocol: u8,
    /// See [`name_policy`].
    pub policy: u8,
    /// Address family of the backends, as in [`Family`].
    pub family: u8,
    pub pad: u8,
}

// SAFETY: bytes only.
unsafe impl Plain for ServiceName {}

/// Values of [`ServiceName::policy`]: the traffic policy by which the service's backends were selected.
pub mod name_policy {
    pub const CLUSTER: u8 = 0;
    pub const LOCAL: u8 = 1;
}

impl ServiceName {
    /// Texts that are too long are cut: the API lets none through.
    pub fn new(
        namespace: &str,
        name: &str,
        port: &str,
        protocol: u8,
        policy: u8,
        family: Family,
    ) -> Self {
        Self {
            namespace: text::filled_up(namespace),
            name: text::filled_up(name),
            port: text::filled_up(port),
            protocol,
            policy,
            family: family as u8,
            pad: 0,
        }
    }

    pub fn namespace(&self) -> &str {
        text::read(&self.namespace)
    }

    pub fn name(&self) -> &str {
        text::read(&self.name)
    }

    pub fn port(&self) -> &str {
        text::read(&self.port)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;

    #[test]
    fn names_come_back_as_they_were_and_long_ones_are_cut_between_characters() {
        let long = "ä".repeat(40);
        let name = ServiceName::new("default", "web", &long, 6, name_policy::LOCAL, Family::V4);
        assert_eq!((name.namespace(), name.name()), ("default", "web"));
        assert_eq!(name.port(), "ä".repeat(32));
        let odd = ServiceName::new(&format!("a{}", "ä".repeat(40)), "", "", 6, 0, Family::V6);
        assert_eq!(odd.namespace(), format!("a{}", "ä".repeat(31)));
        assert_eq!(odd.port(), "");
    }
}
