//! What registries of leases say: net-conf.json, flannel's annotations, flannel's keys in etcd, subnet.env.

use ipnetwork::IpNetwork;
use node_agent_model::Node;
use node_agent_overlay::{
    AnnotationPrefix, Lease, Mode, NetConf, Overlay, OverlayOptions, Peers, SubnetEnv, VtepMac,
    etcd_lease, node_lease,
};

use crate::{Target, texts};

pub const NET_CONF: Target = Target {
    name: "net_conf",
    run: net_conf,
    seeds: || {
        texts(&[
            r#"{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.200.0","Backend":{"Type":"udp","Port":8285}}"#,
            r#"{"enableipv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:10:244:1::","IPv6SubnetMax":"fd00:10:244:ffff::","Backend":{"Type":"host-gw"}}"#,
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"::/0","Backend":{"Type":"vxlan","VNI":4096,"Port":4789,"DirectRouting":true}}"#,
        ])
    },
};
pub const ANNOTATIONS: Target = Target {
    name: "annotations",
    run: annotations,
    seeds: || {
        texts(&[
            "10.244.2.0/24\ntrue\nvxlan\n{\"VNI\":1,\"VtepMAC\":\"12:c6:65:89:b4:e3\"}\nnull\n192.0.2.2\n2001:db8::2",
            "10.244.2.0/24,fd00::/64\ntrue\nhost-gw\nnull\nnull\n192.0.2.2\n",
            "fd00::/64\ntrue\nvxlan\nnull\n{\"VNI\":1,\"VtepMAC\":\"12:c6:65:89:b4:e3\"}\n\n2001:db8::2",
            "10.0.0.0/8\ntrue\n\nnull\nnull\n192.0.2.2\n",
        ])
    },
};
pub const ETCD: Target = Target {
    name: "etcd_lease",
    run: etcd,
    seeds: || {
        texts(&[
            "10.5.52.0-24\n{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}}",
            "10.5.52.0-24&2001:cafe:42:1::-64\n{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":\"2001:db8::3\",\"BackendType\":\"host-gw\"}",
            "10.5.0.0-16\n{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null}",
        ])
    },
};
pub const SUBNET_ENV: Target = Target {
    name: "subnet_env",
    run: |data| {
        if let Ok(text) = std::str::from_utf8(data) {
            for subnet in SubnetEnv::subnets_in(text) {
                assert_eq!(subnet.ip(), subnet.network());
            }
        }
    },
    seeds: || {
        texts(&[
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        ])
    },
};

/// Every subnet that a configuration says it gives, it gives.
fn net_conf(data: &[u8]) {
    let Ok(conf) = NetConf::parse(data) else {
        return;
    };
    for range in conf.ranges {
        let count = range.count();
        for number in [0, 1, count / 2, count.saturating_sub(1)] {
            if number < count {
                let subnet = range.subnet(number);
                assert!(range.gives(subnet), "{range:?} does not give {subnet}");
                assert!(
                    range.network.contains(subnet.network()),
                    "{range:?}: {subnet}"
                );
            }
        }
    }
}

fn overlay(mode: Mode) -> Overlay {
    let options = OverlayOptions {
        node_name: "own".to_owned(),
        mode,
        direct_routing: false,
        underlay_v4: Some([192, 0, 2, 1].into()),
        underlay_v6: Some("2001:db8::1".parse().expect("an address")),
        on_link: vec!["192.0.2.0/24".parse().expect("a prefix")],
        uplink_mtu: 1500,
        port: 8472,
        vni: 1,
        mac: VtepMac([2, 0, 0, 0, 0, 1]),
    };
    Overlay::new(options).expect("these options are good")
}

/// A holder's routes lie within its own subnets, in every mode, and its peers are of its own address.
fn as_peers(lease: &Lease) {
    for mode in [Mode::Vxlan, Mode::Udp, Mode::Direct] {
        let Ok(peers) = overlay(mode).peers(lease) else {
            continue;
        };
        for routes in peers.into_iter().flatten() {
            assert!(
                routes
                    .prefixes
                    .iter()
                    .all(|prefix| lease.subnets.contains(prefix))
            );
            assert!(usize::from(routes.peer.header_len) <= routes.peer.header.len());
        }
    }
    let mut all = Peers::new(overlay(Mode::Vxlan), "own");
    all.put(Lease {
        holder: "other".to_owned(),
        ..lease.clone()
    });
    all.put(lease.clone());
    all.remove(&lease.holder);
}

/// The subnets, then what each annotation says, a line each.
fn annotations(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let cidrs = lines.next().unwrap_or_default().split(',');
    let prefix = AnnotationPrefix::default();
    let keys = [
        prefix.kube_subnet_manager(),
        prefix.backend_type(),
        prefix.backend_data(),
        prefix.backend_v6_data(),
        prefix.public_ip(),
        prefix.public_ipv6(),
    ];
    let node = Node {
        name: "other".to_owned(),
        pod_cidrs: cidrs
            .filter_map(|cidr| cidr.parse::<IpNetwork>().ok())
            .collect(),
        annotations: keys.into_iter().zip(lines.map(str::to_owned)).collect(),
        ..Node::default()
    };
    if let Ok(lease) = node_lease(&prefix, &node) {
        as_peers(&lease);
    }
}

/// The last part of the key, then the value.
fn etcd(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (key, value) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let Ok(key) = std::str::from_utf8(key) else {
        return;
    };
    if let Ok(lease) = etcd_lease(key, value, 1) {
        assert_eq!(lease.holder, key);
        as_peers(&lease);
    }
}
