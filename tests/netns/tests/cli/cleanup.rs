//! A node is given back as it was, and not under an agent's feet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ebpf_abi::maps;
use node_agent_host::{SysctlRecord, kube_proxy_rules, plan_host_sysctls, sysctl_record};
use node_agent_maps::PinLock;
use serde_json::Value;
use tests_testkit::{Cluster, NetNs, is_root, skip};

use crate::{fairlead, json};

fn names<'a>(cleanup: &'a Value, list: &str, kind: &str) -> Vec<&'a str> {
    let items = cleanup[list].as_array().unwrap().iter();
    let of_kind = items.filter(|item| item["kind"] == kind);
    of_kind.map(|item| item["name"].as_str().unwrap()).collect()
}

/// `cleanup` that looks for files in `directory` alone: this machine's own are none of a test's business.
pub fn cleanup_args(directory: &Path, state_dir: &str) -> Vec<String> {
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    vec![
        "cleanup".into(),
        format!("--state-dir={state_dir}"),
        format!("--cni-bin-dir={}", at("bin")),
        format!("--cni-conf-dir={}", at("net.d")),
        format!("--cni-socket={}", at("cni.sock")),
        format!("--subnet-env={}", at("subnet.env")),
    ]
}

/// The plugin installed as the agent does it, beside one of somebody else.
fn place_cni(directory: &Path) -> [PathBuf; 2] {
    let (bin, conf) = (directory.join("bin"), directory.join("net.d"));
    let plugin = directory.join("plugin");
    fs::write(&plugin, "plugin").unwrap();
    node_agent_cni::install(&plugin, &bin, &conf, &directory.join("cni.sock")).unwrap();
    fs::write(bin.join("other"), "plugin").unwrap();
    node_agent_cni::installed_files(&bin, &conf)
}

#[test]
fn cleanup_removes_pins_interface_and_routes_and_says_so() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    cluster.add_pod(0).unwrap();
    let node = &cluster.nodes[0];
    let pins = node.pin_dir();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().join("fairlead");
    fs::create_dir_all(state_dir.join("leases/a")).unwrap();
    let state_dir = state_dir.to_str().unwrap();
    let cni_files = place_cni(state.path());
    let clean = |more: &[&str]| {
        let args = cleanup_args(state.path(), state_dir);
        let args: Vec<&str> = args
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        node.run_without_socket_programs(|| fairlead(&pins, &args))
    };

    let agent = PinLock::acquire(&pins).unwrap();
    let refused = clean(&[]).unwrap_err();
    let me = format!("in use by process {}", std::process::id());
    assert!(
        refused.contains("--force") && refused.contains(&me),
        "{refused}"
    );
    let status = node.run_without_socket_programs(|| json(&pins, &["status"]));
    let process = status["agent"]["process"].as_str().unwrap();
    assert!(
        process.contains(&std::process::id().to_string()),
        "{process}"
    );
    drop(agent);

    let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let would = parse(clean(&["--dry-run", "-o", "json"]).unwrap());
    assert!(pins.join(maps::CONN4).exists(), "a dry run removes nothing");
    let did = parse(clean(&["-o", "json"]).unwrap());
    for kind in ["link", "program", "map", "interface"] {
        assert_eq!(
            names(&would, "removed", kind),
            names(&did, "removed", kind),
            "{kind}"
        );
    }
    assert!(names(&did, "removed", "link").contains(&"from_network"));
    assert!(names(&did, "removed", "program").contains(&"from_pod"));
    assert!(names(&did, "removed", "map").contains(&maps::SERVICE_NAME));
    assert_eq!(names(&did, "removed", "interface"), ["fairlead0"]);
    let files = names(&did, "removed", "file");
    for file in cni_files {
        assert!(
            !file.exists() && files.contains(&file.to_str().unwrap()),
            "{file:?}: {files:?}"
        );
    }
    assert!(
        state.path().join("bin/other").exists(),
        "plugins of others stay"
    );
    assert!(names(&did, "removed", "route").contains(&"10.96.0.0/16"));
    assert_eq!(names(&did, "left", "interface").len(), 1, "the pod's link");

    assert!(!pins.exists());
    assert!(!Path::new(state_dir).exists());
    assert!(node.netns().ip("link show fairlead0").is_err());
    let again = clean(&[]).unwrap();
    assert!(again.starts_with("nothing of Fairlead"), "{again}");
}

#[test]
fn cleanup_gives_kernel_parameters_their_old_values_unless_somebody_set_them_since() {
    if !is_root() {
        return skip("needs root");
    }
    let netns = NetNs::new().unwrap();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().to_str().unwrap();
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let ports = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    netns.run(|| {
        fs::write(forward, "0").unwrap();
        fs::write(ports, "8080").unwrap();
        let changes = plan_host_sysctls(&(61000..=63999)).unwrap();
        let mut record = SysctlRecord::open(&sysctl_record(state.path())).unwrap();
        record.note(&changes).unwrap();
        changes.iter().for_each(|change| change.apply().unwrap());
        assert_eq!(
            (read(forward).as_str(), read(ports).as_str()),
            ("1", "8080,61000-63999")
        );
        // What an agent that starts again would change.
        assert!(plan_host_sysctls(&(61000..=63999)).unwrap().is_empty());
        fs::write(ports, "9090").unwrap();

        let args = cleanup_args(state.path(), state_dir);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let did = json(Path::new("/nonexistent"), &args);
        assert!(
            names(&did, "removed", "sysctl").contains(&forward),
            "{did:#}"
        );
        assert_eq!(names(&did, "left", "sysctl"), [ports]);
        assert_eq!(
            (read(forward).as_str(), read(ports).as_str()),
            ("0", "9090")
        );
    });
}

#[test]
fn the_rules_of_a_kube_proxy_are_found_and_those_of_others_are_not() {
    if !is_root() {
        return skip("needs root");
    }
    let netns = NetNs::new().unwrap();
    let run = |command: &str| {
        let mut words = command.split_whitespace();
        let status = netns.run(|| {
            std::process::Command::new(words.next().unwrap())
                .args(words)
                .status()
        });
        matches!(status, Ok(status) if status.success())
    };
    if !run("nft list tables") || !run("iptables-nft -t nat -N DOCKER") {
        return skip("needs nft and iptables-nft");
    }
    assert_eq!(netns.run(kube_proxy_rules).found, Vec::<String>::new());
    assert!(run("iptables-nft -t nat -N KUBE-SERVICES"));
    assert!(run("nft add table ip6 kube-proxy"));
    assert_eq!(
        netns.run(kube_proxy_rules).found,
        [
            "1 chains KUBE-* in table nat (iptables-nft-save)",
            "nftables table ip6 kube-proxy (nft list tables)"
        ]
    );
}
