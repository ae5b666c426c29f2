//! Flannel's annotations of a Node, exactly as flannel writes and reads them (flannel `pkg/subnet/kube/annotations.go`).

use std::collections::BTreeMap;
use std::str::FromStr;

use node_agent_model::Node;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{Attributes, Lease, NotAPeer, VtepMac};

/// What the names of flannel's annotations begin with: flannel's `--kube-annotation-prefix`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AnnotationPrefix(String);

/// No annotations' names begin like this.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is no prefix of annotations: write a domain such as flannel.alpha.coreos.com, or DOMAIN/NAME, in lower case"
)]
pub struct BadPrefix(String);

impl AnnotationPrefix {
    /// Flannel manages this Node's subnet; Nodes without it are no peers.
    #[must_use]
    pub fn kube_subnet_manager(&self) -> String {
        self.with("kube-subnet-manager")
    }

    #[must_use]
    pub fn backend_type(&self) -> String {
        self.with("backend-type")
    }

    #[must_use]
    pub fn backend_data(&self) -> String {
        self.with("backend-data")
    }

    #[must_use]
    pub fn backend_v6_data(&self) -> String {
        self.with("backend-v6-data")
    }

    /// The node's address on the underlay.
    #[must_use]
    pub fn public_ip(&self) -> String {
        self.with("public-ip")
    }

    #[must_use]
    pub fn public_ipv6(&self) -> String {
        self.with("public-ipv6")
    }

    /// Set by the administrator; the node copies it over its public IP.
    #[must_use]
    pub fn public_ip_overwrite(&self) -> String {
        self.with("public-ip-overwrite")
    }

    #[must_use]
    pub fn public_ipv6_overwrite(&self) -> String {
        self.with("public-ipv6-overwrite")
    }

    fn with(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

impl Default for AnnotationPrefix {
    fn default() -> Self {
        Self("flannel.alpha.coreos.com/".to_owned())
    }
}

impl FromStr for AnnotationPrefix {
    type Err = BadPrefix;

    /// As flannel completes it: a domain alone gets a slash, a name after the slash a hyphen.
    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let bad = || BadPrefix(text.to_owned());
        let (domain, name) = text.split_once('/').unwrap_or((text, ""));
        let word = |text: &str| {
            let mut letters = text.bytes();
            letters
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        };
        let labels: Vec<&str> = domain.split('.').collect();
        let is_domain =
            labels.len() > 1 && labels.iter().all(|label| !label.is_empty() && word(label));
        if !is_domain || !word(name) {
            return Err(bad());
        }
        let hyphen = if name.is_empty() || name.ends_with('-') {
            ""
        } else {
            "-"
        };
        Ok(Self(format!("{domain}/{name}{hyphen}")))
    }
}

/// Body of [`AnnotationPrefix::backend_data`] for VXLAN. The order of the fields and the missing blanks matter: flanneld finds its MAC
/// address in it again by cutting the string.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BackendData {
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// No field of flannel's, which leaves it alone: the node takes labelled packets ([`ebpf_abi::direct_label`]).
    #[serde(rename = "DirectReturn", default, skip_serializing_if = "is_false")]
    pub direct_return: bool,
    #[serde(
        rename = "VtepMAC",
        serialize_with = "as_text",
        deserialize_with = "from_text"
    )]
    pub vtep_mac: VtepMac,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What this node's Node object must say, given what it says now: the administrator's addresses go over ours.
pub(crate) fn annotations(
    prefix: &AnnotationPrefix,
    attributes: &Attributes,
    now: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::from([
        (prefix.kube_subnet_manager(), "true".to_owned()),
        (prefix.backend_type(), attributes.backend_type.clone()),
        (prefix.backend_data(), attributes.backend_data.to_string()),
    ]);
    if !attributes.backend_v6_data.is_null() {
        wanted.insert(
            prefix.backend_v6_data(),
            attributes.backend_v6_data.to_string(),
        );
    }
    let overwrite = |key: String| now.get(&key).filter(|text| !text.is_empty()).cloned();
    if let Some(v4) = attributes.public_ip {
        let text = overwrite(prefix.public_ip_overwrite()).unwrap_or_else(|| v4.to_string());
        wanted.insert(prefix.public_ip(), text);
    }
    if let Some(v6) = attributes.public_ipv6 {
        let text = overwrite(prefix.public_ipv6_overwrite()).unwrap_or_else(|| v6.to_string());
        wanted.insert(prefix.public_ipv6(), text);
    }
    wanted
}

/// What annotations say of an earlier life of their node; what cannot be read is not there.
pub(crate) fn earlier(
    prefix: &AnnotationPrefix,
    annotations: &BTreeMap<String, String>,
) -> Attributes {
    let text = |key: String| annotations.get(&key).map_or("", String::as_str);
    let value = |key| serde_json::from_str(text(key)).unwrap_or(Value::Null);
    Attributes {
        public_ip: text(prefix.public_ip()).parse().ok(),
        public_ipv6: text(prefix.public_ipv6()).parse().ok(),
        backend_type: text(prefix.backend_type()).to_owned(),
        backend_data: value(prefix.backend_data()),
        backend_v6_data: value(prefix.backend_v6_data()),
    }
}

/// The lease that a Node is.
///
/// # Errors
///
/// When the Node has no podCIDR, is not flannel's, or an annotation cannot be read.
pub fn node_lease(prefix: &AnnotationPrefix, node: &Node) -> Result<Lease, NotAPeer> {
    if node.pod_cidrs.is_empty() {
        return Err(NotAPeer::NoPodCidr);
    }
    let annotation = |key: String| match node.annotations.get(&key) {
        Some(text) => Ok(text),
        None => Err(NotAPeer::NoAnnotation(key)),
    };
    if annotation(prefix.kube_subnet_manager())? != "true" {
        return Err(NotAPeer::NoAnnotation(prefix.kube_subnet_manager()));
    }
    let value = |key: String| match node.annotations.get(&key) {
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
            public_ip: address(node, prefix.public_ip())?,
            public_ipv6: address(node, prefix.public_ipv6())?,
            backend_type: annotation(prefix.backend_type())?.clone(),
            backend_data: value(prefix.backend_data())?,
            backend_v6_data: value(prefix.backend_v6_data())?,
        },
        since: node.created,
    })
}

fn address<A: FromStr>(node: &Node, annotation: String) -> Result<Option<A>, NotAPeer> {
    let Some(text) = node
        .annotations
        .get(&annotation)
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
            direct_return: false,
            vtep_mac: VtepMac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]),
        };
        let with_more = BackendData {
            direct_return: true,
            ..data
        };
        for (data, expected) in [
            (data, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            (
                with_more,
                r#"{"DirectReturn":true,"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
            ),
        ] {
            let attributes = Attributes {
                backend_data: serde_json::to_value(data).unwrap(),
                ..Attributes::default()
            };
            let prefix = AnnotationPrefix::default();
            let text = &annotations(&prefix, &attributes, &BTreeMap::new())[&prefix.backend_data()];
            assert_eq!(text, expected);
            assert_eq!(serde_json::from_str::<BackendData>(text).unwrap(), data);
            // How flanneld itself recovers the address.
            assert_eq!(
                text.trim_matches(['"', '}']).split(":\"").nth(1),
                Some("12:c6:65:89:b4:e3")
            );
        }
    }

    #[test]
    fn the_administrators_address_is_published_in_place_of_the_uplinks() {
        let attributes = Attributes {
            public_ip: Some([192, 0, 2, 1].into()),
            ..Attributes::default()
        };
        for (text, published) in [("198.51.100.7", "198.51.100.7"), ("", "192.0.2.1")] {
            let prefix = AnnotationPrefix::default();
            let now = BTreeMap::from([(prefix.public_ip_overwrite(), text.to_owned())]);
            let wanted = annotations(&prefix, &attributes, &now);
            assert_eq!(wanted[&prefix.public_ip()], published);
        }
    }

    #[test]
    fn a_prefix_is_completed_as_flannel_completes_it() {
        for (text, name) in [
            (
                "flannel.alpha.coreos.com",
                "flannel.alpha.coreos.com/public-ip",
            ),
            (
                "flannel.alpha.coreos.com/",
                "flannel.alpha.coreos.com/public-ip",
            ),
            ("example.org/net", "example.org/net-public-ip"),
            ("example.org/net-", "example.org/net-public-ip"),
        ] {
            let prefix: AnnotationPrefix = text.parse().unwrap();
            assert_eq!(prefix.public_ip(), name);
        }
        for bad in [
            "",
            "/",
            "example",
            "example.org/a/b",
            "Example.org",
            "a..b/c",
            "a.b/C",
        ] {
            let error = bad.parse::<AnnotationPrefix>().unwrap_err().to_string();
            assert!(error.contains("DOMAIN/NAME"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_prefix_makes_it_panic(text in ".{0,30}") {
            let _ = text.parse::<AnnotationPrefix>();
        }

        #[test]
        fn no_annotation_makes_it_panic(texts in proptest::collection::vec(".{0,30}", 6)) {
            let prefix = AnnotationPrefix::default();
            let keys = [prefix.kube_subnet_manager(), prefix.backend_type(), prefix.backend_data(),
                prefix.backend_v6_data(), prefix.public_ip(), prefix.public_ipv6()];
            let mut annotations: BTreeMap<String, String> = keys.into_iter().zip(texts).collect();
            let _ = earlier(&prefix, &annotations);
            annotations.insert(prefix.kube_subnet_manager(), "true".to_owned());
            let pod_cidrs = vec!["10.244.2.0/24".parse().unwrap()];
            let _ = node_lease(&prefix, &Node { annotations, pod_cidrs, ..Node::default() });
        }
    }
}
