//! What an operator gives this node: the file of Services, and annotations with shares.

use node_agent_model::PodShare;
use node_agent_reflect::Objects;

use crate::{Target, texts};

pub const SERVICES_FILE: Target = Target {
    name: "services_file",
    run: |data| {
        if let Ok(text) = std::str::from_utf8(data) {
            // An error is an answer too; that it names the field is tested beside the parser.
            let _ = Objects::parse(text);
        }
    },
    seeds: || {
        texts(&[
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec:\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10]\n  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP, nodePort: 30080}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}]\nendpoints: [{addresses: [10.244.1.2], conditions: {ready: true}, nodeName: n1}]\n",
            "apiVersion: v1\nkind: List\nitems: []\n",
        ])
    },
};
pub const SHARES: Target = Target {
    name: "shares",
    run: |data| {
        if let Ok(text) = std::str::from_utf8(data)
            && let Ok(shares) = PodShare::parse_list(text)
        {
            let sum: u32 = shares.iter().map(|share| u32::from(share.percent)).sum();
            assert!(sum <= 100, "{text:?} is {sum} percent");
        }
    },
    seeds: || texts(&["stable=95,canary=5", "web = 100"]),
};
