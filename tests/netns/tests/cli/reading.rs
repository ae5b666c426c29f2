//! What is listed is what the dataplane has.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
};

use tests_testkit::{
    is_root, skip,
    traffic::{Server, ask_udp, greeting},
};

use crate::{Stage, fairlead, json};

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];

#[test]
fn services_are_listed_by_name_with_their_backends() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let pins = stage.pin_dir();
        let table = fairlead(&pins, &["service", "list"]).unwrap();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert_eq!(
            lines[0],
            [
                "NAMESPACE",
                "NAME",
                "PORT",
                "PROTOCOL",
                "POLICY",
                "FRONTENDS",
                "ACTIVE",
                "CONNECTIONS"
            ]
        );
        assert_eq!(lines[1][..5], ["default", "dns", "-", "UDP", "Cluster"]);
        assert_eq!(lines[2][..5], ["default", "web", "http", "TCP", "Cluster"]);
        assert!(table.contains("30080 (external)"), "{table}");

        let services = json(&pins, &["service", "get", "default/web"]);
        let web = &services["services"][0];
        assert_eq!(web["name"], "web");
        let addresses: Vec<&str> = web["backends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|backend| backend["address"].as_str().unwrap())
            .collect();
        assert_eq!(addresses, stage.backends.map(|addr| addr.to_string()));
        // The same by its address, as YAML.
        let yaml = fairlead(&pins, &["service", "get", vip, "-o", "yaml"]).unwrap();
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(yaml["services"].as_array().unwrap().len(), 2, "TCP and UDP");
        assert_eq!(yaml["services"][1], *web);

        let udp = json(&pins, &["service", "list", "--filter", "protocol=udp"]);
        assert_eq!(udp["services"].as_array().unwrap().len(), 1);
        let missing = fairlead(&pins, &["service", "get", "default/other"]).unwrap_err();
        assert!(missing.contains("no Service default/other"), "{missing}");

        let backends = json(
            &pins,
            &["backend", "list", "--filter", "service=default/dns"],
        );
        let backends = backends["backends"].as_array().unwrap();
        assert_eq!(backends.len(), 2);
        assert_eq!(backends[0]["state"], "active");
    }
}

#[test]
fn a_connection_is_listed_with_its_service_and_its_state() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let pins = stage.pin_dir();
        let _running: Vec<Server> = stage
            .servers
            .iter()
            .zip(stage.backends)
            .flat_map(|(pod, addr)| {
                [
                    pod.run(|| Server::tcp(addr, "backend")).unwrap(),
                    pod.run(|| Server::udp(addr, "backend")).unwrap(),
                ]
            })
            .collect();
        let (mut stream, client) = stage.client.run_without_socket_programs(|| {
            let stream = TcpStream::connect(stage.vip).unwrap();
            let client = stream.local_addr().unwrap();
            (stream, client)
        });
        greeting(&mut stream).unwrap();
        stage.client.run(|| ask_udp(stage.vip, 3)).unwrap();

        let list = |filter: &[&str]| {
            let filters = filter.iter().flat_map(|filter| ["--filter", filter]);
            let args: Vec<&str> = ["conntrack", "list"].into_iter().chain(filters).collect();
            json(&pins, &args)["connections"]
                .as_array()
                .unwrap()
                .clone()
        };
        let tcp = list(&["service=default/web"]);
        assert_eq!(tcp.len(), 1, "{tcp:?}");
        assert_eq!(tcp[0]["protocol"], "TCP");
        assert_eq!(tcp[0]["source"], client.to_string());
        assert_eq!(tcp[0]["destination"], vip);
        assert_eq!(tcp[0]["state"], "established");
        let translated: SocketAddr = tcp[0]["translatedDestination"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(stage.backends.contains(&translated), "{translated}");
        assert!(tcp[0]["idleSeconds"].as_f64().unwrap() < 60.0);

        assert_eq!(list(&["protocol=udp"])[0]["service"], "default/dns");
        assert_eq!(list(&["protocol=udp", "service=default/web"]).len(), 0);
        let port = format!("port={}", client.port());
        // Every connection with that port at one of its ends, and no other: UDP may have chosen the same number.
        let ends = [
            "source",
            "destination",
            "translatedSource",
            "translatedDestination",
        ];
        let has_port = |connection: &serde_json::Value| {
            ends.iter().any(|end| {
                let end: SocketAddr = connection[end].as_str().unwrap().parse().unwrap();
                end.port() == client.port()
            })
        };
        // How long they were idle goes on.
        let which = |connection: serde_json::Value| {
            ["protocol", "source", "destination"].map(|field| connection[field].clone())
        };
        let expected: Vec<_> = list(&[]).into_iter().filter(has_port).map(which).collect();
        assert!(
            expected.contains(&which(tcp[0].clone())),
            "{port}: {expected:?}"
        );
        let listed: Vec<_> = list(&[&port]).into_iter().map(which).collect();
        assert_eq!(listed, expected, "{port}");
        assert_eq!(list(&[&format!("address={}", client.ip())]).len(), 2);
        let table = fairlead(&pins, &["conntrack", "list"]).unwrap();
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}

#[test]
fn drops_maps_and_status_tell_how_the_node_is() {
    if !is_root() {
        return skip("needs root");
    }
    let stage = Stage::new(VIPS[0]);
    let pins = stage.pin_dir();
    assert_eq!(
        fairlead(&pins, &["drops"]).unwrap(),
        "nothing was dropped\n"
    );
    let empty = tests_testkit::ServiceSpec::udp("10.96.0.11:80".parse().unwrap(), []);
    let mut cluster = stage.cluster;
    cluster.publish(&empty).unwrap();
    // Only answers may come to the address of source NAT.
    let source_nat = (cluster.nodes[0].addresses.pod_v4(0), 80).into();
    stage.client.run(|| ask_udp(source_nat, 1)).unwrap_err();
    let drops = fairlead(&pins, &["drops"]).unwrap();
    assert!(drops.contains("no_connection"), "{drops}");
    assert!(!drops.contains("malformed"), "{drops}");
    assert!(
        fairlead(&pins, &["drops", "--all"])
            .unwrap()
            .contains("malformed")
    );

    let maps = json(&pins, &["maps"]);
    let conn = maps["maps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|map| map["name"] == "conn4_v2")
        .unwrap();
    assert_eq!(conn["maxEntries"], 16384);
    assert!(conn["memoryBytes"].as_u64().unwrap() > 16384 * 48);

    let node = &cluster.nodes[0];
    let status = node.run_without_socket_programs(|| json(&pins, &["status"]));
    assert!(status["agent"]["process"].is_null());
    assert!(
        status["warnings"][0]
            .as_str()
            .unwrap()
            .contains("no agent runs")
    );
    assert_eq!(status["counts"]["services"], 3);
    assert_eq!(status["counts"]["servicesWithoutBackend"], 1);
    assert_eq!(status["counts"]["peers"], 1);
    let host_device = status["node"]["hostDevice"].as_str().unwrap();
    assert!(host_device.starts_with("fairlead0 "), "{host_device}");
    let programs = status["programs"].as_array().unwrap();
    let names: Vec<_> = programs
        .iter()
        .map(|p| p["link"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"from_network") && names.contains(&"connect6"),
        "{names:?}"
    );
}

#[test]
fn every_kind_of_map_is_measured_and_none_of_the_nodes_is_touched() {
    if !is_root() {
        return skip("needs root");
    }
    let bench = json(
        Path::new("/nonexistent"),
        &["bench-map", "--entries", "500"],
    );
    let maps = bench["maps"].as_array().unwrap();
    let like = |name: &str| maps.iter().find(|map| map["like"] == name).unwrap();
    for name in [
        ebpf_abi::maps::FRONTEND4,
        ebpf_abi::maps::SLOT,
        ebpf_abi::maps::CONN6,
        ebpf_abi::maps::ROUTE4,
    ] {
        let map = like(name);
        for time in ["writeNs", "batchWriteNs", "readNs", "batchReadNs"] {
            let ns = map[time].as_u64().unwrap();
            assert!((1..1_000_000).contains(&ns), "{name} {time} {ns}");
        }
    }
    assert!(like(ebpf_abi::maps::SLOT)["deleteNs"].is_null());
    let wrong = fairlead(Path::new("/nonexistent"), &["bench-map", "--entries", "0"]);
    assert!(wrong.unwrap_err().contains("--entries"));
}

#[test]
fn a_directory_without_pins_is_named_with_what_it_lacks() {
    if !is_root() {
        return skip("needs root");
    }
    let error = fairlead(Path::new("/nonexistent"), &["service", "list"]).unwrap_err();
    assert!(
        error.contains("no agent ran with this directory"),
        "{error}"
    );
    let usage = fairlead(
        Path::new("/nonexistent"),
        &["conntrack", "list", "--filter", "x"],
    );
    assert!(usage.unwrap_err().contains("write address="));
}
