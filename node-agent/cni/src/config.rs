//! The network configuration, as the runtime writes it to standard input.
//! <https://www.cni.dev/docs/spec/#section-1-network-configuration-format>

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use node_agent_host::{Bandwidth, HostPort, Rate};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::environment::is_identifier;
use crate::{CniError, Code, DEFAULT_SOCKET, Version};

/// Smallest MTU that the network can have: IPv6 needs it (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;
/// Longest name of a network that leaves room for the other parts of an owner.
const NAME_MAX: usize = 64;

/// A valid configuration; fields that it does not know belong to others.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    pub version: Version,
    pub name: String,
    pub socket: PathBuf,
    /// In bytes; the agent's own if absent.
    pub mtu: Option<u32>,
    pub sysctls: BTreeMap<String, String>,
    /// Ports of the node that are to lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: BandwidthLimits,
    /// Passed on into the result.
    pub dns: Option<Value>,
    pub prev_result: Option<PrevResult>,
    /// `None` where the runtime gives no list, which is not the same as an empty one.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// A port of the node and where it leads (`runtimeConfig.portMappings`).
/// <https://www.cni.dev/docs/conventions/>
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// Empty: every address of the node.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

impl PortMapping {
    /// # Errors
    ///
    /// [`Code::InvalidConfiguration`] names the field.
    pub(crate) fn host_port(&self) -> Result<HostPort, CniError> {
        let bad = |field: &str, value: &dyn std::fmt::Display, wanted: &str| {
            invalid(format!(
                "portMappings: {field} is {value}: it must be {wanted}"
            ))
        };
        for (field, port) in [
            ("hostPort", self.host_port),
            ("containerPort", self.container_port),
        ] {
            if port == 0 {
                return Err(bad(field, &port, "from 1 to 65535"));
            }
        }
        let protocol = self.protocol.parse();
        let protocol =
            protocol.map_err(|()| bad("protocol", &self.protocol, "tcp, udp or sctp"))?;
        let ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| bad("hostIP", &text, "an address"))?,
            ),
        };
        Ok(HostPort {
            protocol,
            port: self.host_port,
            container_port: self.container_port,
            ip: ip.filter(|ip: &std::net::IpAddr| !ip.is_unspecified()),
        })
    }
}

/// What CHECK needs of an earlier result.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct PrevResult {
    pub ips: Vec<PrevIp>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct PrevIp {
    pub address: IpNetwork,
}

/// An attachment that the runtime still has.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

#[derive(Debug, Deserialize)]
struct Fields {
    name: Option<String>,
    socket: Option<PathBuf>,
    mtu: Option<u32>,
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    dns: Option<Value>,
    ipam: Option<BTreeMap<String, Value>>,
    #[serde(rename = "prevResult")]
    prev_result: Option<PrevResult>,
    #[serde(default, rename = "runtimeConfig")]
    runtime_config: RuntimeConfig,
    // libcni 1.2 wrote the list under another name for a while.
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// What the runtime says of one container, where the configuration says that the plugin can do it (`capabilities`).
#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings")]
    port_mappings: Vec<PortMapping>,
    #[serde(default)]
    bandwidth: BandwidthLimits,
}

/// Bits a second and bits (`runtimeConfig.bandwidth`). <https://www.cni.dev/plugins/current/meta/bandwidth/>
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BandwidthLimits {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

impl BandwidthLimits {
    /// # Errors
    ///
    /// [`Code::InvalidConfiguration`] names the field.
    pub(crate) fn bandwidth(self) -> Result<Bandwidth, CniError> {
        Ok(Bandwidth {
            ingress: rate("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: rate("egress", self.egress_rate, self.egress_burst)?,
        })
    }
}

/// Zero stands for what is not said, as in the reference plugin.
fn rate(direction: &str, rate: u64, burst: u64) -> Result<Option<Rate>, CniError> {
    if rate == 0 && burst != 0 {
        return Err(invalid(format!(
            "bandwidth: {direction}Burst is {burst} without {direction}Rate: give the rate too, or neither"
        )));
    }
    Ok((rate != 0).then_some(Rate {
        bits_per_second: rate,
        burst_bits: (burst != 0).then_some(burst),
    }))
}

/// The version that a configuration names, if it can be read so far: for answers to what cannot be read further.
pub(crate) fn version_text(input: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(input).ok()?;
    Some(match value.get("cniVersion").and_then(Value::as_str) {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => Version::UNNAMED.to_owned(),
    })
}

impl NetConf {
    /// # Errors
    ///
    /// [`Code::Decoding`], [`Code::IncompatibleVersion`] or [`Code::InvalidConfiguration`], which names the field.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let decoding = |error: serde_json::Error| {
            CniError::new(Code::Decoding, "the network configuration is not valid")
                .with_details(error.to_string())
        };
        let value: Value = serde_json::from_slice(input).map_err(decoding)?;
        let text = version_text(input).unwrap_or_default();
        let version = text.parse().map_err(|()| {
            let supported = Version::ALL.map(Version::text).join(", ");
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported: choose one of {supported}"),
            )
        })?;
        let fields: Fields = serde_json::from_value(value).map_err(decoding)?;
        let name = fields.name.unwrap_or_default();
        if !is_identifier(&name) || name.len() > NAME_MAX {
            return Err(invalid(format!(
                "name is {name:?}: the network's name must begin with a letter or digit, consist of these, '_', '.' \
                 and '-', and have at most {NAME_MAX} characters"
            )));
        }
        if let Some(ipam) = fields.ipam.filter(|ipam| !ipam.is_empty()) {
            let other = ipam.get("type").and_then(Value::as_str).unwrap_or_default();
            return Err(invalid(format!(
                "ipam is {other:?}: the agent gives the addresses from the Node's podCIDRs; remove ipam"
            )));
        }
        if let Some(mtu) = fields.mtu.filter(|mtu| *mtu < LEAST_MTU) {
            return Err(invalid(format!(
                "mtu is {mtu}: choose at least {LEAST_MTU}, or leave it out"
            )));
        }
        let port_mappings = fields.runtime_config.port_mappings;
        for mapping in &port_mappings {
            mapping.host_port()?;
        }
        let bandwidth = fields.runtime_config.bandwidth;
        bandwidth.bandwidth()?;
        Ok(Self {
            port_mappings,
            bandwidth,
            version,
            name,
            socket: fields.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            mtu: fields.mtu,
            sysctls: fields.sysctl,
            dns: fields.dns,
            prev_result: fields.prev_result,
            valid_attachments: fields.valid_attachments,
        })
    }
}

fn invalid(message: String) -> CniError {
    CniError::new(Code::InvalidConfiguration, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<NetConf, CniError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_name_and_a_version_are_all_that_must_be_said() {
        let conf = parse(
            json!({"cniVersion": "1.0.0", "name": "fairlead", "type": "fairlead-cni",
            "something": {"of": "others"}}),
        )
        .unwrap();
        assert_eq!(conf.version, Version::V1_0_0);
        assert_eq!(conf.socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!((conf.mtu, conf.valid_attachments), (None, None));
    }

    #[test]
    fn what_cannot_serve_is_named_with_the_way_out() {
        let base = json!({"cniVersion": "1.0.0", "name": "fairlead"});
        for (field, value, code, word) in [
            (
                "cniVersion",
                json!("0.2.0"),
                Code::IncompatibleVersion,
                "1.1.0",
            ),
            ("cniVersion", json!(""), Code::IncompatibleVersion, "0.1.0"),
            ("name", json!("a b"), Code::InvalidConfiguration, "name"),
            ("name", json!(null), Code::InvalidConfiguration, "name"),
            ("mtu", json!(500), Code::InvalidConfiguration, "1280"),
            (
                "ipam",
                json!({"type": "host-local"}),
                Code::InvalidConfiguration,
                "remove ipam",
            ),
            ("mtu", json!("many"), Code::Decoding, "not valid"),
        ] {
            let mut conf = base.clone();
            conf[field] = value.clone();
            let error = parse(conf).unwrap_err();
            assert_eq!(error.code, code, "{field}: {value}");
            assert!(error.message.contains(word), "{error}");
        }
        assert_eq!(NetConf::parse(b"{").unwrap_err().code, Code::Decoding);
    }

    #[test]
    fn ports_of_the_node_are_read_and_what_is_none_is_named() {
        let with = |mapping: Value| {
            parse(
                json!({"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"portMappings": [mapping]}}),
            )
        };
        let conf = with(
            json!({"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"}),
        );
        let port = conf.unwrap().port_mappings[0].host_port().unwrap();
        assert_eq!(port.to_string(), "8080/UDP on 192.0.2.1");
        let conf = with(json!({"hostPort": 8080, "containerPort": 80, "hostIP": "0.0.0.0"}));
        assert_eq!(
            conf.unwrap().port_mappings[0]
                .host_port()
                .unwrap()
                .to_string(),
            "8080/TCP"
        );
        for (field, value) in [
            ("hostPort", json!(0)),
            ("containerPort", json!(0)),
            ("protocol", json!("icmp")),
            ("hostIP", json!("here")),
        ] {
            let mut mapping = json!({"hostPort": 8080, "containerPort": 80});
            mapping[field] = value;
            let error = with(mapping).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfiguration);
            assert!(error.message.contains(field), "{error}");
        }
    }

    #[test]
    fn limits_are_read_and_a_burst_without_a_rate_is_named() {
        let with = |bandwidth: Value| {
            parse(
                json!({"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"bandwidth": bandwidth}}),
            )
        };
        let conf = with(json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 9000}));
        let bandwidth = conf.unwrap().bandwidth.bandwidth().unwrap();
        let rate = |bits_per_second, burst_bits| Rate {
            bits_per_second,
            burst_bits,
        };
        assert_eq!(bandwidth.ingress, Some(rate(8000, Some(80))));
        assert_eq!(bandwidth.egress, Some(rate(9000, None)));
        let none = with(json!({"ingressRate": 0, "ingressBurst": 0})).unwrap();
        assert_eq!(none.bandwidth.bandwidth().unwrap(), Bandwidth::default());
        for field in ["ingressBurst", "egressBurst"] {
            let error = with(json!({field: 80})).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfiguration);
            assert!(error.message.contains(field), "{error}");
        }
        let negative = with(json!({"ingressRate": -1, "ingressBurst": 1})).unwrap_err();
        assert_eq!(negative.code, Code::Decoding);
    }

    #[test]
    fn the_list_of_valid_attachments_is_read_under_both_names() {
        let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let conf = parse(json!({"cniVersion": "1.1.0", "name": "n", name: list})).unwrap();
            assert_eq!(conf.valid_attachments.unwrap()[0].container_id, "c1");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = NetConf::parse(&bytes);
        }

        #[test]
        fn no_configuration_makes_it_panic(
            version in "1.0.0|0.3.1|[0-9.]{0,6}", name in ".{0,8}", mtu in any::<i64>(),
            sysctl in ".{0,8}", address in ".{0,20}")
        {
            let conf = json!({"cniVersion": version, "name": name, "mtu": mtu, "sysctl": {sysctl: "1"},
                "prevResult": {"ips": [{"address": address}]}});
            if let Ok(conf) = parse(conf) {
                prop_assert!(is_identifier(&conf.name));
                prop_assert!(conf.mtu.is_none_or(|mtu| mtu >= LEAST_MTU));
            }
        }
    }
}
