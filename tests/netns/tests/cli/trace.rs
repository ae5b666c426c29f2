//! What `fairlead trace` says is what then happens.

use std::net::{SocketAddr, TcpStream};

use node_agent_model::MapSink;
use serde_json::Value;
use tests_testkit::{
    ServiceSpec, is_root, skip,
    traffic::{Server, greeting},
};

use crate::{Stage, json};

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];

fn trace(stage: &Stage, args: &str) -> Value {
    let args: Vec<&str> = ["trace"]
        .into_iter()
        .chain(args.split_whitespace())
        .collect();
    stage.cluster.nodes[0].run_without_socket_programs(|| json(&stage.pin_dir(), &args))
}

fn steps(trace: &Value) -> String {
    let steps = trace["steps"].as_array().unwrap().iter();
    steps
        .map(|step| {
            format!(
                "{}: {}\n",
                step["at"].as_str().unwrap(),
                step["says"].as_str().unwrap()
            )
        })
        .collect()
}

/// The backend that a real connection gets, by its greeting.
fn connect(stage: &Stage, names: &[String; 2]) -> (TcpStream, SocketAddr) {
    let mut stream = stage
        .client
        .run_without_socket_programs(|| TcpStream::connect(stage.vip))
        .unwrap();
    let name = greeting(&mut stream).unwrap().name;
    let index = names.iter().position(|other| *other == name).unwrap();
    (stream, stage.backends[index])
}

#[test]
fn the_backend_that_a_trace_names_is_the_one_that_the_next_connection_gets() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let names = ["one".to_owned(), "two".to_owned()];
        let _running: Vec<Server> = (0..2)
            .map(|index| {
                let addr = stage.backends[index];
                stage.servers[index]
                    .run(|| Server::tcp(addr, &names[index]))
                    .unwrap()
            })
            .collect();
        let maps = stage.cluster.nodes[0].maps();
        let flow = format!(
            "--src {} --dst {vip} --socket false",
            stage.client_addr(4000)
        );
        let mut seen = Vec::new();
        for _ in 0..3 {
            let before = (maps.snapshot().unwrap(), maps.cursor.entries().unwrap());
            let connections = maps.v4.conns.count() + maps.v6.conns.count();
            let traced = trace(&stage, &flow);
            let after = (maps.snapshot().unwrap(), maps.cursor.entries().unwrap());
            assert!(before == after, "a trace changes nothing");
            let now = maps.v4.conns.count() + maps.v6.conns.count();
            assert_eq!(connections, now, "a trace tracks nothing");

            let (_stream, backend) = connect(&stage, &names);
            let story = steps(&traced);
            assert!(
                story.contains("Service default/web (port http, policy Cluster"),
                "{story}"
            );
            let becomes = traced["becomes"].as_str().unwrap();
            assert!(
                becomes.contains(&format!("-> {backend}")),
                "{backend}: {traced:#}"
            );
            // The second backend is on the other node.
            let remote = backend == stage.backends[1];
            assert_eq!(
                traced["verdict"],
                if remote { "toNetwork" } else { "deliverToPod" }
            );
            assert_eq!(becomes.contains("in VXLAN (VNI 1)"), remote, "{becomes}");
            seen.push(backend);
        }
        assert_eq!(seen[0], seen[2], "round robin");
        assert_ne!(seen[0], seen[1], "round robin");
    }
}

#[test]
fn a_connection_that_is_open_is_traced_along_its_entry() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let names = ["one".to_owned(), "two".to_owned()];
        let _running: Vec<Server> = (0..2)
            .map(|index| {
                let addr = stage.backends[index];
                stage.servers[index]
                    .run(|| Server::tcp(addr, &names[index]))
                    .unwrap()
            })
            .collect();
        let (stream, backend) = connect(&stage, &names);
        let client = stage.client.run(|| stream.local_addr()).unwrap();
        let traced = trace(&stage, &format!("--src {client} --dst {vip} --established"));
        assert!(
            steps(&traced).contains("is known and becomes"),
            "{traced:#}"
        );
        assert!(
            traced["becomes"]
                .as_str()
                .unwrap()
                .contains(&backend.to_string()),
            "{traced:#}"
        );
        // The answer, as it comes out of the pod or the network, gets the service's address back.
        if backend == stage.backends[0] {
            let answer = trace(
                &stage,
                &format!("--src {backend} --dst {client} --established"),
            );
            assert_eq!(answer["from"], "pod");
            assert!(
                answer["becomes"].as_str().unwrap().starts_with(vip),
                "{answer:#}"
            );
        }
    }
}

#[test]
fn connect_is_traced_where_its_program_is_attached() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let mut stage = Stage::new(vip);
        let flow = format!("--src {} --dst {vip}", stage.client_addr(4000));
        let traced = trace(&stage, &flow);
        let story = steps(&traced);
        assert!(story.contains("socket: connect() leads to"), "{story}");
        assert!(
            !story.contains("tracking:"),
            "no packet is translated: {story}"
        );

        let mut empty: SocketAddr = vip.parse().unwrap();
        empty.set_port(81);
        stage.cluster.publish(&ServiceSpec::tcp(empty, [])).unwrap();
        let flow = format!("--src {} --dst {empty}", stage.client_addr(4000));
        assert_eq!(trace(&stage, &flow)["verdict"], "refused");
        let on_the_way = trace(&stage, &format!("{flow} --socket false"));
        assert_eq!(on_the_way["verdict"], "reflect", "a reset");
        // The programs are gone: the same connection is decided on the way.
        stage.cluster.nodes[0]
            .dataplane()
            .detach("connect4")
            .unwrap();
        stage.cluster.nodes[0]
            .dataplane()
            .detach("connect6")
            .unwrap();
        assert_eq!(trace(&stage, &flow)["verdict"], "reflect");
    }
}

#[test]
fn packets_from_outside_to_the_node_and_to_the_world_are_told_apart() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let family = stage.vip.ip();
        let outside = stage.cluster.outside.ip_for(family);
        let node = stage.cluster.nodes[0].ip_for(family);
        let at = SocketAddr::new;
        let ask = |src: SocketAddr, dst: SocketAddr, more: &str| {
            trace(
                &stage,
                &format!("--src {src} --dst {dst} --socket false {more}"),
            )
        };
        // Two turns: the backend on the other node needs source NAT, the one here does not.
        let external = ask(at(outside, 5000), at(node, 30080), "");
        assert_eq!(external["from"], "network");
        assert!(
            steps(&external).contains("reached from outside too"),
            "{external:#}"
        );
        // A ClusterIP is not for the world.
        let cluster_ip = ask(at(outside, 5000), stage.vip, "");
        assert_eq!(cluster_ip["verdict"], "pass", "{cluster_ip:#}");
        // A pod's packet into the world gets the node's address.
        let masqueraded = ask(stage.client_addr(4000), at(outside, 443), "");
        assert_eq!(masqueraded["verdict"], "toNetwork");
        let becomes = masqueraded["becomes"].as_str().unwrap();
        let source = becomes
            .split(" -> ")
            .next()
            .unwrap()
            .parse::<SocketAddr>()
            .unwrap();
        assert_eq!(source.ip(), node);
        assert!((20000..24000).contains(&source.port()), "{source}");
        // Longer than the way allows, or at its end.
        let remote = stage.backends[1];
        assert_eq!(
            ask(stage.client_addr(4000), remote, "--size 1460")["verdict"],
            "reflect"
        );
        assert_eq!(
            ask(stage.client_addr(4000), remote, "--ttl 1")["verdict"],
            "reflect"
        );
        // A forged source is traced, and called so.
        let forged = ask(at(outside, 1), remote, "--from pod");
        assert!(steps(&forged).contains("forged"), "{forged:#}");
    }
}
