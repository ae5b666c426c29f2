//! Flannel's annotations of a Node, exactly as flannel writes and reads them (flannel `pkg/subnet/kube/annotations.go`).

use std::collections::BTreeMap;
use std::str::FromStr;

use node_agent_model::Node;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{Attributes, Lease, NotAPeer, VtepMac};

/// Flannel manages this Node's subnet; Nodes without it are no peers.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
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

/// What this node's Node object must say, given what it says now: the administrator's addresses go over ours.
pub(crate) fn annotations(
    attributes: &Attributes,
    now: &BTreeMap<String, String>,
) -> BTreeMap<&'static str, String> {
    let mut wanted = BTreeMap::from([
        (KUBE_SUBNET_MANAGER, "true".to_owned()),
        (BACKEND_TYPE, attributes.backend_type.clone()),
        (BACKEND_DATA, attributes.backend_data.to_string()),
    ]);
    if !attributes.backend_v6_data.is_null() {
        wanted.insert(BACKEND_V6_DATA, attributes.backend_v6_data.to_string());
    }
    let overwrite = |key| now.get(key).filter(|text| !text.is_empty()).cloned();
    if let Some(v4) = attributes.public_ip {
        let text = overwrite(PUBLIC_IP_OVERWRITE).unwrap_or_else(|| v4.to_string());
        wanted.insert(PUBLIC_IP, text);
    }
    if let Some(v6) = attributes.public_ipv6 {
        let text = overwrite(PUBLIC_IPV6_OVERWRITE).unwrap_or_else(|| v6.to_string());
        wanted.insert(PUBLIC_IPV6, text);
    }
    wanted
}

/// What annotations say of an earlier life of their node; what cannot be read is not there.
pub(crate) fn earlier(annotations: &BTreeMap<String, String>) -> Attributes {
    let text = |key| annotations.get(key).map_or("", String::as_str);
    let value = |key| serde_json::from_str(text(key)).unwrap_or(Value::Null);
    Attributes {
        public_ip: text(PUBLIC_IP).parse().ok(),
        public_ipv6: text(PUBLIC_IPV6).parse().ok(),
        backend_type: text(BACKEND_TYPE).to_owned(),
        backend_data: value(BACKEND_DATA),
        backend_v6_data: value(BACKEND_V6_DATA),
    }
}

/// The lease that a Node is.
///
/// # Errors
///
/// When the Node has no podCIDR, is not flannel's, or an annotation cannot be read.
pub fn node_lease(node: &Node) -> Result<Lease, NotAPeer> {
    if node.pod_cidrs.is_empty() {
        return Err(NotAPeer::NoPodCidr);
    }
    let annotation =
        |key: &'static str| node.annotations.get(key).ok_or(NotAPeer::NoAnnotation(key));
    if annotation(KUBE_SUBNET_MANAGER)? != "true" {
        return Err(NotAPeer::NoAnnotation(KUBE_SUBNET_MANAGER));
    }
    let value = |key: &'static str| match node.annotations.get(key) {
        Some(text) => serde_json::from_str(text).map_err(|source| NotAPeer::BadBackendData {
            text: text.clone(),
            source,
        }),
        None => Ok(Value::Null),
    };
    Ok(Lease {
        holder: node.name.clone(),
        subnets: node.pod_cidrs.clone(),
        attributes: Attributes {
            public_ip: address(node, PUBLIC_IP)?,
            public_ipv6: address(node, PUBLIC_IPV6)?,
            backend_type: annotation(BACKEND_TYPE)?.clone(),
            backend_data: value(BACKEND_DATA)?,
            backend_v6_data: value(BACKEND_V6_DATA)?,
        },
        since: node.created,
    })
}

fn address<A: FromStr>(node: &Node, annotation: &'static str) -> Result<Option<A>, NotAPeer> {
    let Some(text) = node
        .annotations
        .get(annotation)
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let parsed = text.parse().map_err(|_| NotAPeer::BadAddress {
        annotation,
        text: text.clone(),
    });
    parsed.map(Some)
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_body_is_byte_for_byte_what_flannel_writes() {
        let data = BackendData {
            vni: 1,
            vtep_mac: VtepMac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]),
        };
        let attributes = Attributes {
            backend_data: serde_json::to_value(data).unwrap(),
            ..Attributes::default()
        };
        let text = &annotations(&attributes, &BTreeMap::new())[BACKEND_DATA];
        assert_eq!(text, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#);
        assert_eq!(serde_json::from_str::<BackendData>(text).unwrap(), data);
        // How flanneld itself recovers the address.
        assert_eq!(
            text.trim_matches(['"', '}']).split(":\"").nth(1),
            Some("12:c6:65:89:b4:e3")
        );
    }

    #[test]
    fn the_administrators_address_is_published_in_place_of_the_uplinks() {
        let attributes = Attributes {
            public_ip: Some([192, 0, 2, 1].into()),
            ..Attributes::default()
        };
        let now = BTreeMap::from([(PUBLIC_IP_OVERWRITE.to_owned(), "198.51.100.7".to_owned())]);
        assert_eq!(annotations(&attributes, &now)[PUBLIC_IP], "198.51.100.7");
        let empty = BTreeMap::from([(PUBLIC_IP_OVERWRITE.to_owned(), String::new())]);
        assert_eq!(annotations(&attributes, &empty)[PUBLIC_IP], "192.0.2.1");
    }

    proptest! {
        #[test]
        fn no_annotation_makes_it_panic(texts in proptest::collection::vec(".{0,30}", 6)) {
            let keys = [KUBE_SUBNET_MANAGER, BACKEND_TYPE, BACKEND_DATA, BACKEND_V6_DATA, PUBLIC_IP, PUBLIC_IPV6];
            let mut annotations: BTreeMap<String, String> =
                keys.map(str::to_owned).into_iter().zip(texts).collect();
            let _ = earlier(&annotations);
            annotations.insert(KUBE_SUBNET_MANAGER.to_owned(), "true".to_owned());
            let pod_cidrs = vec!["10.244.2.0/24".parse().unwrap()];
            let _ = node_lease(&Node { annotations, pod_cidrs, ..Node::default() });
        }
    }
}
