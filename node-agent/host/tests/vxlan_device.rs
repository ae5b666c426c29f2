//! The kernel's VXLAN device, made, kept and given up, in a namespace of its own.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{net::IpAddr, process::Command, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};
use node_agent_host::{Forwarding, MacAddr, Network, NetworkError, VXLAN_DEVICE, VxlanDeviceSpec};

/// Runs `work` on a thread in a new network namespace with an uplink; without root it says so and proves nothing.
fn on_a_machine(work: impl AsyncFnOnce(Network) + Send) {
    if !Uid::effective().is_root() {
        return eprintln!("skipped: making network namespaces needs root");
    }
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link add eth0 type veth peer name eth1");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("addr add 2001:db8::1/64 dev eth0 nodad");
        ip("link set eth0 up");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async { work(Network::connect().unwrap()).await });
    };
    thread::scope(|scope| {
        let done = scope.spawn(inside).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn spec(local: &str) -> VxlanDeviceSpec {
    VxlanDeviceSpec {
        vni: 1,
        port: 8472,
        local: local.parse().unwrap(),
        uplink: nix::net::if_::if_nametoindex("eth0").unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1430,
        checksum: true,
    }
}

#[test]
fn the_device_is_flannels_in_both_families() {
    for (local, remote) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        on_a_machine(async |network| {
            let spec = spec(local);
            let index = network.ensure_vxlan_device(&spec).await.unwrap();
            assert_eq!(
                network.vxlan_device_faults(&spec).await.unwrap(),
                [""; 0],
                "{}",
                ip(&format!("-d link show {VXLAN_DEVICE}"))
            );
            assert_eq!(
                network.ensure_vxlan_device(&spec).await.unwrap(),
                index,
                "one that is right stays"
            );
            let shown = ip(&format!("-d link show {VXLAN_DEVICE}"));
            for part in [
                "vxlan id 1",
                &format!("local {local}"),
                "dev eth0",
                "dstport 8472",
                "nolearning",
                "mtu 1430",
                "02:00:00:00:00:01",
                " udp6zerocsumrx",
                " noudp6zerocsumtx",
                " udpcsum",
            ] {
                assert!(shown.contains(part), "{part}: {shown}");
            }
            let remote: IpAddr = remote.parse().unwrap();
            let peers = Forwarding::from([(MacAddr([2, 0, 0, 0, 0, 2]), remote)]);
            assert_eq!(network.set_forwarding(index, &peers).await.unwrap(), 1);
            assert_eq!(network.set_forwarding(index, &peers).await.unwrap(), 0);
            let shown = run("bridge", &format!("fdb show dev {VXLAN_DEVICE}"));
            assert!(
                shown.contains(&format!("02:00:00:00:00:02 dst {remote} self permanent")),
                "{shown}"
            );
            // The peer moves, another comes; then all go.
            let elsewhere = Forwarding::from([(MacAddr([2, 0, 0, 0, 0, 3]), remote)]);
            assert_eq!(network.set_forwarding(index, &elsewhere).await.unwrap(), 2);
            let none = Forwarding::new();
            assert_eq!(network.set_forwarding(index, &none).await.unwrap(), 1);
            assert_eq!(run("bridge", &format!("fdb show dev {VXLAN_DEVICE}")), "");
            assert!(network.remove_vxlan_device().await.unwrap());
            assert!(!network.remove_vxlan_device().await.unwrap());
        });
    }
}

#[test]
fn whatever_somebody_changes_is_found_and_put_right() {
    for change in [
        "mtu 1400",
        "address 02:00:00:00:00:09",
        "down",
        "type vxlan ageing 7 learning",
    ] {
        on_a_machine(async |network| {
            let spec = spec("192.0.2.1");
            network.ensure_vxlan_device(&spec).await.unwrap();
            ip(&format!("link set {VXLAN_DEVICE} {change}"));
            let faults = network.vxlan_device_faults(&spec).await.unwrap();
            assert_eq!(faults.len(), 1, "{change}: {faults:?}");
            network.ensure_vxlan_device(&spec).await.unwrap();
            assert_eq!(network.vxlan_device_faults(&spec).await.unwrap(), [""; 0]);
        });
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    on_a_machine(async |network| {
        ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0");
        ip("link set flannel.1 up");
        let error = network.ensure_vxlan_device(&spec("192.0.2.1")).await;
        let error = error.unwrap_err();
        assert!(matches!(error, NetworkError::PortTaken { .. }), "{error}");
        assert!(error.to_string().contains("flannel.1"), "{error}");
    });
    on_a_machine(async |network| {
        ip(&format!("link add {VXLAN_DEVICE} type bridge"));
        let error = network.ensure_vxlan_device(&spec("192.0.2.1")).await;
        assert!(matches!(error, Err(NetworkError::NotOurs { .. })));
    });
}
