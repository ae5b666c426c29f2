//! The columns of Services and of what stands behind them.

use serde_json::{Value, json};

use super::{AGE, NAME, Printer, age, column, labels, name, or, or_none, wide};
use crate::json::Json;

/// More addresses than these are only counted.
const SHOWN: usize = 3;

pub const SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "How the service is exposed."),
        column(
            "Cluster-IP",
            "The first address of the service inside the cluster.",
        ),
        column("External-IP", "The addresses of the service from outside."),
        column(
            "Port(s)",
            "The ports of the service, with their node ports.",
        ),
        AGE,
        wide("Selector", "The labels of the pods behind the service."),
    ],
    row: |service, now| {
        vec![
            name(service),
            service["spec"]["type"].clone(),
            or_none(service.text("/spec/clusterIP")),
            json!(external_ip(service)),
            or_none(&ports(service)),
            age(service, now),
            labels(service, "/spec/selector"),
        ]
    },
    ..super::PLAIN
};

pub const ENDPOINTS: Printer = Printer {
    columns: &[
        NAME,
        column("Endpoints", "The ready addresses, with their ports."),
        AGE,
    ],
    row: |endpoints, now| {
        let mut all = Vec::new();
        for subset in endpoints.items("/subsets") {
            for address in subset.items("/addresses") {
                let ip = address.text("/ip");
                let ip = if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip.to_owned()
                };
                if subset.items("/ports").is_empty() {
                    all.push(ip.clone());
                }
                for port in subset.items("/ports") {
                    all.push(format!("{ip}:{}", port["port"]));
                }
            }
        }
        vec![
            name(endpoints),
            json!(first(&all, "<none>")),
            age(endpoints, now),
        ]
    },
    ..super::PLAIN
};

pub const ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("AddressType", "The type of the addresses."),
        column("Ports", "The ports of the endpoints."),
        column("Endpoints", "The addresses of the endpoints."),
        AGE,
    ],
    row: |slice, now| {
        let ports: Vec<String> = slice
            .items("/ports")
            .iter()
            .map(|p| match p.integer("/port") {
                Some(port) => port.to_string(),
                None => "*".into(),
            })
            .collect();
        let addresses: Vec<String> = slice
            .items("/endpoints")
            .iter()
            .filter_map(|e| e.items("/addresses").first()?.as_str())
            .map(ToOwned::to_owned)
            .collect();
        vec![
            name(slice),
            slice["addressType"].clone(),
            json!(first(&ports, "<unset>")),
            json!(first(&addresses, "<unset>")),
            age(slice, now),
        ]
    },
    ..super::PLAIN
};

fn first(all: &[String], none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        n if n <= SHOWN => all.join(","),
        n => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
    }
}

fn external_ip(service: &Value) -> String {
    let list = |items: &[Value]| {
        let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
        texts.join(",")
    };
    let own = list(service.items("/spec/externalIPs"));
    match service.text("/spec/type") {
        "ExternalName" => service.text("/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = service
                .items("/status/loadBalancer/ingress")
                .iter()
                .map(|i| match i.text("/ip") {
                    "" => i.text("/hostname"),
                    ip => ip,
                })
                .collect();
            if !own.is_empty() {
                all.push(&own);
            }
            let all = all.join(",");
            if all.is_empty() {
                "<pending>".into()
            } else {
                all
            }
        }
        _ if own.is_empty() => "<none>".into(),
        _ => own,
    }
}

fn ports(service: &Value) -> String {
    let ports = service.items("/spec/ports").iter().map(|port| {
        let protocol = or(port.text("/protocol"), "TCP");
        let protocol = protocol.as_str().unwrap_or_default();
        match port.integer("/nodePort") {
            Some(node) if node > 0 => format!("{}:{node}/{protocol}", port["port"]),
            _ => format!("{}/{protocol}", port["port"]),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn a_service_with_node_ports() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let cells = (SERVICE.row)(&service, Timestamp::now());
        assert_eq!(
            cells[..5],
            [
                json!("s"),
                json!("NodePort"),
                json!("10.0.0.1"),
                json!("<none>"),
                json!("80:30080/TCP,53/UDP")
            ]
        );
        assert_eq!(cells[6], "a=b");
    }

    #[test]
    fn many_endpoints_are_counted() {
        let endpoints: Vec<Value> = (1..=5)
            .map(|n| json!({"addresses": [format!("10.0.0.{n}")]}))
            .collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}]});
        let cells = (ENDPOINT_SLICE.row)(&slice, Timestamp::now());
        assert_eq!(cells[3], "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more...");
    }
}
