//! Namespaces, cgroups and bpffs come and go, on a panic too.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
};

use tests_testkit::{Bpffs, Cgroup, NetNs, Underlay, VethEnd, is_root, skip};

#[test]
fn a_veth_pair_joins_two_namespaces() {
    if !is_root() {
        return skip("needs root");
    }
    let (a, b) = (NetNs::new().unwrap(), NetNs::new().unwrap());
    NetNs::veth(
        VethEnd {
            netns: &a,
            name: "left",
            mac: [2, 0, 0, 0, 0, 1],
        },
        VethEnd {
            netns: &b,
            name: "right",
            mac: [2, 0, 0, 0, 0, 2],
        },
        1500,
    )
    .unwrap();
    a.ip("addr add 10.0.0.1/24 dev left\naddr add fd00::1/64 dev left nodad")
        .unwrap();
    b.ip("addr add 10.0.0.2/24 dev right\naddr add fd00::2/64 dev right nodad")
        .unwrap();
    for addr in ["10.0.0.2:80", "[fd00::2]:80"] {
        let listener = b.run(|| TcpListener::bind(addr)).unwrap();
        let mut client = a.run(|| TcpStream::connect(addr)).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello", "{addr}");
    }
}

#[test]
fn a_failed_command_of_ip_is_told() {
    if !is_root() {
        return skip("needs root");
    }
    let error = NetNs::new()
        .unwrap()
        .ip("link set no_such_if up")
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such_if"), "{error}");
}

#[test]
fn guards_clean_up_when_a_test_panics() {
    if !is_root() {
        return skip("needs root");
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (bpffs, cgroup) = (Bpffs::new().unwrap(), Cgroup::new().unwrap());
        paths = vec![bpffs.path().into(), cgroup.path().into()];
        assert!(paths.iter().all(|path| path.exists()));
        let netns = NetNs::new().unwrap();
        netns.run(|| {
            cgroup.enter().unwrap();
            panic!("as a failing test does");
        })
    }));
    assert!(result.is_err());
    for path in paths {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn machines_on_the_underlay_reach_each_other() {
    if !is_root() {
        return skip("needs root");
    }
    let underlay = Underlay::new(1500).unwrap();
    let (one, two) = (underlay.machine(1).unwrap(), underlay.machine(2).unwrap());
    for ip in [two.ip_for(one.ipv4.into()), two.ip_for(one.ipv6.into())] {
        let listener = two.run(|| TcpListener::bind((ip, 80))).unwrap();
        one.run(|| TcpStream::connect((ip, 80))).unwrap();
        drop(listener);
    }
}
