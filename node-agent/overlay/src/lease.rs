//! A node's share of the overlay: its subnets and how to reach it, whichever registry keeps it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A lease as a registry tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    /// Who holds it: the Node's name, or the key in etcd.
    pub holder: String,
    /// At most one a family.
    pub subnets: Vec<IpNetwork>,
    pub attributes: Attributes,
    /// Orders leases of one registry: the smaller is the elder. Seconds since 1970, or etcd's revision.
    pub since: i64,
}

/// What a lease says beside its subnets: flannel's `LeaseAttrs`, in its field order (flannel `pkg/lease/lease.go`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Attributes {
    /// The node's address on the underlay.
    #[serde(rename = "PublicIP")]
    pub public_ip: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    #[serde(rename = "BackendData", skip_serializing_if = "Value::is_null")]
    pub backend_data: Value,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Value::is_null")]
    pub backend_v6_data: Value,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lease_of_flannel_in_etcd_is_read_and_written_byte_for_byte() {
        let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        let attributes: Attributes = serde_json::from_str(text).unwrap();
        assert_eq!(attributes.public_ip, Some(Ipv4Addr::new(192, 168, 64, 3)));
        assert_eq!(serde_json::to_string(&attributes).unwrap(), text);
    }

    #[test]
    fn what_the_udp_and_the_host_gw_backend_leave_out_is_left_out() {
        let attributes = Attributes {
            public_ip: Some(Ipv4Addr::LOCALHOST),
            ..Attributes::default()
        };
        let text = serde_json::to_string(&attributes).unwrap();
        assert_eq!(text, r#"{"PublicIP":"127.0.0.1","PublicIPv6":null}"#);
        assert_eq!(
            serde_json::from_str::<Attributes>(&text).unwrap(),
            attributes
        );
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(text in ".{0,80}", ip in ".{0,16}") {
            let _ = serde_json::from_str::<Attributes>(&text);
            let _ = serde_json::from_value::<Attributes>(serde_json::json!({"PublicIP": ip, "BackendData": text}));
        }
    }
}
