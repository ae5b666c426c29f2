//! The agent as `deploy/` starts it on a cluster that somebody else made: over TLS, with a service account's permissions.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Proxy, Rules, Seen, eventually, without_root};
use tests_testkit::{Underlay, program};

const TOKEN: &str = "not-a-secret";

fn deploy(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).join(file)
}

#[test]
fn an_agent_asks_for_nothing_that_its_role_does_not_grant_and_needs_all_of_it() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let proxy = Proxy::start_tls(&underlay, &api).unwrap();
    api.add_node("n1", &["10.244.1.0/24"], json!({})).unwrap();
    // As the kubelet mounts it.
    let run = tempfile::tempdir().unwrap();
    let account = run.path().join("secrets/kubernetes.io/serviceaccount");
    fs::create_dir_all(&account).unwrap();
    fs::write(account.join("token"), TOKEN).unwrap();
    fs::write(account.join("ca.crt"), proxy.authority()).unwrap();
    fs::write(account.join("namespace"), "kube-system").unwrap();
    let machine = underlay.machine(1).unwrap();
    let mut agent = Agent::start_as_pod("n1", machine, run.path(), proxy.address(), &[]).unwrap();
    agent.wait_ready().unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    api.call(Method::POST, services, Some(service)).unwrap();
    // Something to tell in an event.
    let host = &agent.machine().netns;
    host.ip("route del 10.244.1.0/24").unwrap();
    eventually("the repair is told", || {
        let events = api.events()?;
        ensure!(
            events
                .iter()
                .any(|(reason, _)| reason == "HostStateRestored"),
            "{events:?}"
        );
        Ok(())
    })
    .unwrap();
    // The way of somebody who is no pod.
    let kubeconfig = format!("--kubeconfig={}", proxy.kubeconfig(TOKEN).unwrap());
    api.add_node("n2", &["10.244.2.0/24"], json!({})).unwrap();
    let machine = underlay.machine(2).unwrap();
    let mut other = Agent::start("n2", machine, &[&kubeconfig]).unwrap();
    other.wait_ready().unwrap();

    let seen = proxy.take_seen();
    let rules = Rules::read(&deploy("rbac.yaml")).unwrap();
    let refused: Vec<&Seen> = seen.iter().filter(|seen| !rules.allow(seen)).collect();
    assert!(refused.is_empty(), "the role does not grant {refused:#?}");
    assert_eq!(rules.unused(&seen), [""; 0], "nobody needs it");
    assert!(seen.iter().all(|seen| seen.token.as_deref() == Some(TOKEN)));
    println!("{} requests, all granted, each rule needed", seen.len());
}

#[test]
fn the_arguments_of_the_daemonset_are_flags_and_its_variables_are_in_the_config_map() {
    let text = fs::read_to_string(deploy("daemonset.yaml")).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let objects: Vec<Value> = documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect();
    let of_kind = |kind: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind)
            .unwrap()
    };
    let data = of_kind("ConfigMap")["data"].as_object().unwrap();
    let container = &of_kind("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let mut command = Command::new(program("node-agent-daemon", "fairlead-node-agent").unwrap());
    for argument in container["args"].as_array().unwrap() {
        let mut argument = argument.as_str().unwrap().to_owned();
        for (key, value) in data {
            argument = argument.replace(&format!("$({key})"), value.as_str().unwrap());
        }
        assert!(
            !argument.contains("$("),
            "{argument} has a variable that nobody sets"
        );
        command.arg(argument);
    }
    // With all arguments read, the version is told and nothing is done.
    let output = command
        .args(["--node-name=n1", "--version"])
        .output()
        .unwrap();
    let (told, complaint) = (
        output.stdout,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{complaint}");
    assert!(String::from_utf8_lossy(&told).contains("fairlead-node-agent"));
    for key in ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
        assert!(data.contains_key(key), "{key}");
    }
}
