//! `net-conf.json`, as flannel reads it (flannel `pkg/subnet/config.go`): names of fields in any case, unknown fields
//! passed over, and the same defaults. Where flannel would take the configuration and fail later, the error comes here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::Mode;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetConf {
    /// What nodes get their subnets from, at most one a family, IPv4 first.
    pub ranges: Vec<Range>,
    pub backend: Backend,
}

/// A network and how it is cut into subnets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    pub network: IpNetwork,
    /// Length of a subnet's prefix.
    pub subnet_len: u8,
    /// First addresses of the first and of the last subnet that may be given.
    pub min: IpAddr,
    pub max: IpAddr,
}

/// How packets go to other nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backend {
    pub mode: Mode,
    /// See [`crate::OverlayOptions::direct_routing`].
    pub direct_routing: bool,
    pub vni: u32,
    pub port: u16,
}

/// Why a configuration cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum NetConfError {
    #[error("net-conf.json is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("net-conf.json: {field} is {value}, it must be {expected}")]
    Field {
        field: &'static str,
        value: Value,
        expected: &'static str,
    },
    #[error(
        "net-conf.json: {field} is missing: name the network that the nodes' subnets are cut from"
    )]
    NoNetwork { field: &'static str },
    #[error(
        "net-conf.json: {network} is too small: four subnets must fit, choose a prefix of at most /{most}"
    )]
    TooSmall { network: IpNetwork, most: u8 },
    #[error("net-conf.json: {field} is {address}: it must lie in {network} and begin a /{length}")]
    Boundary {
        field: &'static str,
        address: IpAddr,
        network: IpNetwork,
        length: u8,
    },
    #[error("net-conf.json: EnableIPv4 and EnableIPv6 are both false: enable one of them")]
    NoFamily,
    #[error("net-conf.json: Backend.Type {0:?} is not served: choose vxlan, udp or host-gw")]
    Backend(String),
    #[error("net-conf.json: Backend.{0} is set and not served: remove it")]
    Option(&'static str),
}

/// What differs between the families.
struct Names {
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
    /// Length of a subnet where the network is large enough.
    usual: u8,
    bits: u8,
}

const V4: Names = Names {
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    usual: 24,
    bits: 32,
};
const V6: Names = Names {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    usual: 64,
    bits: 128,
};

impl NetConf {
    /// # Errors
    ///
    /// [`NetConfError`], which names the field.
    pub fn parse(text: &[u8]) -> Result<Self, NetConfError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(text).map_err(NetConfError::Json)?;
        let mut ranges = Vec::new();
        if flag(&fields, "EnableIPv4", true)? {
            ranges.push(Range::read(&fields, &V4)?);
        }
        if flag(&fields, "EnableIPv6", false)? {
            ranges.push(Range::read(&fields, &V6)?);
        }
        if ranges.is_empty() {
            return Err(NetConfError::NoFamily);
        }
        Ok(Self {
            ranges,
            backend: Backend::read(&fields)?,
        })
    }
}

impl Range {
    fn read(fields: &Map<String, Value>, names: &Names) -> Result<Self, NetConfError> {
        let network = field(fields, names.network).ok_or(NetConfError::NoNetwork {
            field: names.network,
        })?;
        let is_v4 = names.bits == 32;
        let parsed = network.as_str().and_then(|text| {
            let (_, length) = text.split_once('/')?;
            // The base must lie there even if the text names another address of the network.
            let written: IpNetwork = text.parse().ok()?;
            let base = IpNetwork::new(written.network(), length.parse().ok()?).ok()?;
            (base.is_ipv4() == is_v4).then_some(base)
        });
        let network = parsed.ok_or_else(|| NetConfError::Field {
            field: names.network,
            value: network.clone(),
            expected: "a network of that family such as 10.244.0.0/16 or fd00:10:244::/48",
        })?;
        // Four subnets of at least four addresses.
        let most = names.bits - 4;
        if network.prefix() > most {
            return Err(NetConfError::TooSmall { network, most });
        }
        let subnet_len = match number(fields, names.length)? {
            None | Some(0) if network.prefix() + 2 <= names.usual => names.usual,
            None | Some(0) => network.prefix() + 2,
            Some(length) => u8::try_from(length)
                .ok()
                .filter(|length| (network.prefix() + 2..=names.bits - 2).contains(length))
                .ok_or_else(|| NetConfError::Field {
                    field: names.length,
                    value: length.into(),
                    expected: "at least two more than the network's prefix, and leave four addresses",
                })?,
        };
        let size = 1_u128 << (names.bits - subnet_len);
        let base = bits(network.network());
        let last = base + (span(network.prefix(), names.bits) - size);
        let range = Self {
            network,
            subnet_len,
            // The first subnet is not given: its first address is the network's own.
            min: address(base + size, is_v4),
            max: address(last, is_v4),
        };
        Ok(Self {
            min: range.bound(fields, names.min)?.unwrap_or(range.min),
            max: range.bound(fields, names.max)?.unwrap_or(range.max),
            ..range
        })
    }

    /// A bound that is written, if one is.
    fn bound(
        &self,
        fields: &Map<String, Value>,
        name: &'static str,
    ) -> Result<Option<IpAddr>, NetConfError> {
        let Some(value) = field(fields, name).filter(|value| *value != "") else {
            return Ok(None);
        };
        let parsed = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let address = parsed.ok_or_else(|| NetConfError::Field {
            field: name,
            value: value.clone(),
            expected: "an address",
        })?;
        if self.network.contains(address) && self.begins(address) {
            return Ok(Some(address));
        }
        Err(NetConfError::Boundary {
            field: name,
            address,
            network: self.network,
            length: self.subnet_len,
        })
    }

    fn begins(&self, address: IpAddr) -> bool {
        IpNetwork::new(address, self.subnet_len).is_ok_and(|subnet| subnet.network() == address)
    }

    /// Whether a subnet is one that this configuration could give.
    #[must_use]
    pub fn gives(&self, subnet: IpNetwork) -> bool {
        subnet.prefix() == self.subnet_len
            && subnet.is_ipv4() == self.network.is_ipv4()
            && (self.min..=self.max).contains(&subnet.network())
            && self.begins(subnet.network())
    }

    /// How many subnets may be given.
    #[must_use]
    pub fn count(&self) -> u128 {
        let given = bits(self.max).checked_sub(bits(self.min));
        given.map_or(0, |given| given / self.size() + 1)
    }

    /// The subnet with this number, counted from 0; the caller keeps it below [`Range::count`].
    #[must_use]
    pub fn subnet(&self, number: u128) -> IpNetwork {
        let start = bits(self.min) + number * self.size();
        IpNetwork::new(address(start, self.network.is_ipv4()), self.subnet_len)
            .expect("the length was checked when the configuration was read")
    }

    /// Addresses of a subnet.
    fn size(&self) -> u128 {
        let all = if self.network.is_ipv4() { 32 } else { 128 };
        1 << (all - self.subnet_len)
    }
}

impl Backend {
    fn read(fields: &Map<String, Value>) -> Result<Self, NetConfError> {
        // Without a Backend flannel's is udp, in spite of its documentation.
        let empty = Map::new();
        let backend = match field(fields, "Backend") {
            None => &empty,
            Some(Value::Object(backend)) => backend,
            Some(other) => {
                return Err(NetConfError::Field {
                    field: "Backend",
                    value: other.clone(),
                    expected: r#"an object such as {"Type": "vxlan"}"#,
                });
            }
        };
        let kind = field(backend, "Type").and_then(Value::as_str).unwrap_or("");
        let (mode, options) = match kind.to_ascii_lowercase().as_str() {
            "vxlan" => (Mode::Vxlan, backend),
            "udp" | "" => (Mode::Udp, backend),
            "host-gw" => (Mode::Direct, &empty),
            _ => return Err(NetConfError::Backend(kind.to_owned())),
        };
        for name in ["GBP", "Learning"] {
            if flag(options, name, false)? {
                return Err(NetConfError::Option(name));
            }
        }
        let expected = "a number that fits: 1 to 16777215 for VNI, 0 to 65535 for Port";
        let fitting = |name: &'static str, most: u64, default: u64| {
            let value = number(options, name)?.unwrap_or(default);
            if value > most {
                return Err(NetConfError::Field {
                    field: name,
                    value: value.into(),
                    expected,
                });
            }
            u32::try_from(value).map_err(|_| NetConfError::Option(name))
        };
        let vni = fitting("VNI", (1 << 24) - 1, 1)?;
        let port = u16::try_from(fitting("Port", u16::MAX.into(), 0)?).unwrap_or_default();
        Ok(Self {
            mode,
            direct_routing: mode == Mode::Vxlan && flag(options, "DirectRouting", false)?,
            vni,
            port: if port == 0 { mode.default_port() } else { port },
        })
    }
}

/// Go takes a field's name in any case; of several the last counts.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut found = fields
        .iter()
        .filter(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null());
    found.next_back().map(|(_, value)| value)
}

fn flag(
    fields: &Map<String, Value>,
    name: &'static str,
    default: bool,
) -> Result<bool, NetConfError> {
    match field(fields, name) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(NetConfError::Field {
            field: name,
            value: other.clone(),
            expected: "true or false",
        }),
    }
}

fn number(fields: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, NetConfError> {
    let Some(value) = field(fields, name) else {
        return Ok(None);
    };
    let number = value.as_u64().ok_or_else(|| NetConfError::Field {
        field: name,
        value: value.clone(),
        expected: "a number without sign and fraction",
    });
    number.map(Some)
}

/// How many addresses a prefix has, as far as it can be counted: `::/0` has one more.
fn span(prefix: u8, all: u8) -> u128 {
    1_u128
        .checked_shl((all - prefix).into())
        .unwrap_or(u128::MAX)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(bits: u128, is_v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if is_v4 => Ipv4Addr::from(bits).into(),
        _ => Ipv6Addr::from(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<NetConf, NetConfError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    fn range(mut fields: Value) -> Result<Range, NetConfError> {
        fields["Backend"] = json!({"Type": "vxlan"});
        parse(&fields).map(|conf| conf.ranges[0])
    }

    #[test]
    fn without_a_backend_type_it_is_udp_as_in_flannel() {
        for (backend, port) in [
            (json!(null), 8285),
            (json!({}), 8285),
            (json!({"Type": "udp", "Port": 9000}), 9000),
        ] {
            let fields = json!({"Network": "10.5.0.0/16", "Backend": backend});
            let conf = parse(&fields).unwrap();
            assert_eq!((conf.backend.mode, conf.backend.port), (Mode::Udp, port));
        }
    }

    #[test]
    fn flannels_own_manifest_is_read() {
        let text =
            br#"{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#;
        let conf = NetConf::parse(text).unwrap();
        let range = Range {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet_len: 24,
            min: "10.244.1.0".parse().unwrap(),
            max: "10.244.255.0".parse().unwrap(),
        };
        assert_eq!(conf.ranges, [range]);
        let backend = Backend {
            mode: Mode::Vxlan,
            direct_routing: false,
            vni: 1,
            port: 8472,
        };
        assert_eq!(conf.backend, backend);
        assert_eq!(range.count(), 255);
        assert_eq!(range.subnet(0).to_string(), "10.244.1.0/24");
        assert_eq!(range.subnet(254).to_string(), "10.244.255.0/24");
    }

    #[test]
    fn names_in_any_case_and_both_families_are_read() {
        let conf = parse(
            &json!({"network": "10.5.0.0/16", "SUBNETLEN": 26, "SubnetMin": "10.5.1.64",
            "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Unknown": {"of": "others"},
            "backend": {"type": "VXLAN", "vni": 7, "port": 4789}}),
        )
        .unwrap();
        assert_eq!(conf.ranges[0].min.to_string(), "10.5.1.64");
        assert_eq!(conf.ranges[1].min.to_string(), "fd00:5:0:1::");
        assert_eq!(conf.ranges[1].max.to_string(), "fd00:5:0:ffff::");
        assert_eq!((conf.backend.vni, conf.backend.port), (7, 4789));
    }

    #[test]
    fn a_small_network_is_cut_into_four() {
        let range = range(json!({"Network": "10.5.0.0/23"})).unwrap();
        assert_eq!(range.subnet_len, 25);
        assert_eq!(range.count(), 3);
        let smallest = parse(&json!({"Network": "10.5.0.0/28", "Backend": {"Type": "vxlan"}}));
        let smallest = smallest.unwrap().ranges[0];
        assert_eq!(smallest.subnet_len, 30);
        assert!(smallest.gives("10.5.0.4/30".parse().unwrap()));
        assert!(!smallest.gives("10.5.0.0/30".parse().unwrap()));
        assert!(!smallest.gives("10.5.0.4/29".parse().unwrap()));
    }

    #[test]
    fn what_cannot_serve_is_named() {
        for (fields, word) in [
            (json!({}), "Network is missing"),
            (json!({"Network": "10.5.0.0"}), "Network"),
            (json!({"Network": "fd00::/48"}), "Network"),
            (json!({"Network": "10.5.0.0/29"}), "too small"),
            (
                json!({"Network": "10.5.0.0/16", "SubnetLen": 31}),
                "SubnetLen",
            ),
            (
                json!({"Network": "10.5.0.0/16", "SubnetLen": 17}),
                "SubnetLen",
            ),
            (
                json!({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}),
                "SubnetMin",
            ),
            (
                json!({"Network": "10.5.0.0/16", "SubnetMax": "10.5.7.1"}),
                "SubnetMax",
            ),
            (
                json!({"Network": "10.5.0.0/16", "EnableIPv6": true}),
                "IPv6Network is missing",
            ),
            (json!({"EnableIPv4": false}), "both false"),
            (json!({"EnableIPv4": "yes"}), "EnableIPv4"),
        ] {
            let error = range(fields.clone()).unwrap_err().to_string();
            assert!(error.contains(word), "{fields}: {error}");
        }
        for (backend, word) in [
            (json!({"Type": "wireguard"}), "\"wireguard\""),
            (json!("vxlan"), "object"),
            (json!({"Type": "vxlan", "VNI": 1 << 24}), "VNI"),
            (json!({"Type": "vxlan", "Learning": true}), "Learning"),
        ] {
            let error = parse(&json!({"Network": "10.5.0.0/16", "Backend": backend})).unwrap_err();
            assert!(error.to_string().contains(word), "{backend}: {error}");
        }
        assert!(matches!(NetConf::parse(b"[]"), Err(NetConfError::Json(_))));
    }

    #[test]
    fn direct_routing_is_an_option_of_vxlan_and_means_nothing_elsewhere() {
        for (kind, direct_routing) in [("vxlan", true), ("udp", false), ("host-gw", false)] {
            let backend = json!({"Type": kind, "DirectRouting": true});
            let conf = parse(&json!({"Network": "10.5.0.0/16", "Backend": backend})).unwrap();
            assert_eq!(conf.backend.direct_routing, direct_routing, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = NetConf::parse(&bytes);
        }

        #[test]
        fn every_subnet_that_may_be_given_lies_in_the_network(
            bits in any::<u128>(), prefix in 0..=128_u8, length in proptest::option::of(0..=130_u8), v6 in any::<bool>())
        {
            let (name, network) = if v6 {
                ("IPv6", format!("{}/{prefix}", Ipv6Addr::from(bits)))
            } else {
                ("", format!("{}/{}", Ipv4Addr::from(bits as u32), prefix % 33))
            };
            let mut conf = json!({"EnableIPv4": !v6, "EnableIPv6": v6, "Backend": {"Type": "host-gw"}});
            conf[format!("{name}Network")] = json!(network);
            conf[format!("{name}SubnetLen")] = json!(length);
            if let Ok(conf) = parse(&conf) {
                let range = conf.ranges[0];
                for number in (0..range.count().min(50)).chain([range.count() - 1]) {
                    let subnet = range.subnet(number);
                    prop_assert!(range.gives(subnet), "{subnet} of {range:?}");
                    prop_assert!(range.network.contains(subnet.network()));
                    prop_assert!(subnet.network() != range.network.network());
                }
            }
        }
    }
}
