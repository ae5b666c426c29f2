//! `--filter KEY=VALUE`.

use std::{net::IpAddr, str::FromStr};

use ipnetwork::IpNetwork;

use crate::words;

/// One condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    Address(IpNetwork),
    Port(u16),
    Protocol(u8),
    /// `namespace/name`.
    Service(String),
}

/// What the conditions are held against.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub addresses: Vec<(IpAddr, u16)>,
    pub protocol: u8,
    /// `namespace/name` of the Services that it belongs to.
    pub services: Vec<String>,
}

impl Facts {
    /// Whether every condition applies.
    pub fn meet(&self, conditions: &[Condition]) -> bool {
        conditions.iter().all(|condition| match condition {
            Condition::Address(network) => {
                self.addresses.iter().any(|(ip, _)| network.contains(*ip))
            }
            Condition::Port(port) => self.addresses.iter().any(|(_, other)| other == port),
            Condition::Protocol(number) => self.protocol == *number,
            Condition::Service(name) => self.services.contains(name),
        })
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write address=ADDR[/LEN], port=N, protocol=NAME or service=NAMESPACE/NAME";
        let (key, value) = text.split_once('=').ok_or(usage)?;
        match key {
            "address" => value
                .parse()
                .map(Self::Address)
                .map_err(|_| format!("{value:?} is no address: write ADDR or ADDR/LEN")),
            "port" => value
                .parse()
                .map(Self::Port)
                .map_err(|_| format!("{value:?} is no port: write a number from 0 to 65535")),
            "protocol" => words::protocol_number(value).map(Self::Protocol),
            "service" if value.split('/').filter(|part| !part.is_empty()).count() == 2 => {
                Ok(Self::Service(value.into()))
            }
            "service" => Err(format!("{value:?} is no Service: write NAMESPACE/NAME")),
            _ => Err(format!("unknown key {key:?}: {usage}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            addresses: vec![
                ("10.244.1.2".parse().unwrap(), 4000),
                ("fd00::1".parse().unwrap(), 80),
            ],
            protocol: 6,
            services: vec!["default/web".into()],
        }
    }

    fn meets(conditions: &[&str]) -> bool {
        let conditions: Vec<Condition> = conditions.iter().map(|c| c.parse().unwrap()).collect();
        facts().meet(&conditions)
    }

    #[test]
    fn all_conditions_must_apply() {
        for yes in [
            "address=10.244.1.2",
            "address=10.244.0.0/16",
            "address=fd00::/8",
            "port=80",
            "protocol=TCP",
            "protocol=6",
            "service=default/web",
        ] {
            assert!(meets(&[yes]), "{yes}");
        }
        for no in [
            "address=10.245.0.0/16",
            "port=81",
            "protocol=udp",
            "service=other/web",
        ] {
            assert!(!meets(&[no]), "{no}");
        }
        assert!(meets(&[]));
        assert!(meets(&["port=80", "protocol=tcp"]));
        assert!(!meets(&["port=80", "protocol=udp"]));
    }

    #[test]
    fn a_wrong_condition_is_answered_with_the_right_way_to_write_it() {
        for (wrong, part) in [
            ("80", "write address="),
            ("address=ten", "write ADDR"),
            ("port=99999", "from 0 to 65535"),
            ("protocol=http", "write tcp"),
            ("service=web", "write NAMESPACE/NAME"),
            ("pod=web", "unknown key"),
        ] {
            let error = wrong.parse::<Condition>().unwrap_err();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }
}
