//! The result of ADD in each version of the specification.

use serde_json::{Value, json};

use crate::{Version, Wired};

/// <https://www.cni.dev/docs/spec/#add-success>. `sandbox` is the path of the namespace as the runtime gave it.
pub fn result(
    version: Version,
    wired: &Wired,
    ifname: &str,
    sandbox: &str,
    dns: Option<&Value>,
) -> Value {
    let mut host = json!({"name": wired.host_ifname, "mac": wired.host_mac});
    let mut pod = json!({"name": ifname, "mac": wired.pod_mac, "sandbox": sandbox});
    if version >= Version::V1_1_0 {
        host["mtu"] = json!(wired.mtu);
        pod["mtu"] = json!(wired.mtu);
    }
    let ips = wired.ips.iter().map(|ip| {
        let mut text = json!({"interface": 1, "address": ip.address, "gateway": ip.gateway});
        if version < Version::V1_0_0 {
            text["version"] = json!(if ip.address.is_ipv4() { "4" } else { "6" });
        }
        text
    });
    let routes = wired.ips.iter().map(|ip| {
        let everything = if ip.address.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        json!({"dst": everything})
    });
    json!({
        "cniVersion": version.text(),
        "interfaces": [host, pod],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns.cloned().unwrap_or_else(|| json!({})),
    })
}
