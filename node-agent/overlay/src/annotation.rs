//! Flannel's annotations of a Node, exactly as flannel writes and reads them.

use serde::{Deserialize, Serialize, Serializer};

use crate::VtepMac;

/// Flannel manages this Node's subnet; Nodes without it are no peers.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The node's address on the underlay.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
pub const PUBLIC_IPV6_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ipv6-overwrite";
/// Set by the administrator; the node copies it over its public IP.
pub const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";

/// Body of [`BACKEND_DATA`] for VXLAN. The order of the fields and the missing blanks matter: flanneld finds its MAC
/// address in it again by cutting the string.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BackendData {
    #[serde(rename = "VNI")]
    pub vni: u32,
    #[serde(
        rename = "VtepMAC",
        serialize_with = "as_text",
        deserialize_with = "from_text"
    )]
    pub vtep_mac: VtepMac,
}

fn as_text<S: Serializer>(mac: &VtepMac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<VtepMac, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_byte_for_byte_what_flannel_writes() {
        let data = BackendData {
            vni: 1,
            vtep_mac: VtepMac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]),
        };
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(text, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#);
        assert_eq!(serde_json::from_str::<BackendData>(&text).unwrap(), data);
        // How flanneld itself recovers the address.
        assert_eq!(
            text.trim_matches(['"', '}']).split(":\"").nth(1),
            Some("12:c6:65:89:b4:e3")
        );
    }
}
