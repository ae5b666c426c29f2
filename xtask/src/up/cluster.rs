//! The cluster as kubectl sees it: what a user would type, and the waits between.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::place;
use super::progress::Wait;
use crate::command::Run;
use crate::setup;

#[derive(Debug)]
pub struct Kubectl {
    binary: PathBuf,
}

/// A pod as the proof needs it.
#[derive(Debug, Clone)]
pub struct Pod {
    pub name: String,
    pub node: String,
    /// Docker's id of the first container.
    pub container: String,
}

/// The Service of the example.
#[derive(Debug, Clone)]
pub struct Service {
    /// One of each family.
    pub cluster_ips: Vec<String>,
    pub http_node_port: u64,
    pub echo_node_port: u64,
}

impl Kubectl {
    pub fn find() -> Result<Kubectl> {
        let binary = setup::find_kubectl().context("there is no kubectl: run cargo xtask setup")?;
        Ok(Kubectl { binary })
    }

    pub fn path(&self) -> &Path {
        &self.binary
    }

    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        Run::new(&self.binary)
            .args(["--kubeconfig".as_ref(), place::kubeconfig().as_os_str()])
            .args([
                "--cache-dir".as_ref(),
                place::folder().join("kubectl-cache").as_os_str(),
            ])
            .args(arguments)
            .text()
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--output=json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }

    pub fn api_is_ready(&self) -> Wait<()> {
        match self.run(&["get", "--raw=/readyz"]) {
            Ok(_) => Wait::Done(()),
            Err(error) => Wait::Pending(
                error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .to_string(),
            ),
        }
    }

    /// Every node is Ready and its dataplane programmed.
    pub fn nodes_are_ready(&self, count: u8) -> Result<Wait<()>> {
        let nodes = self.json(&["get", "nodes"])?;
        let nodes = items(&nodes);
        let ready = nodes
            .iter()
            .filter(|node| {
                condition(node, "Ready") == Some("True")
                    && condition(node, "NetworkUnavailable") == Some("False")
            })
            .count();
        Ok(if ready == usize::from(count) {
            Wait::Done(())
        } else {
            Wait::Pending(format!(
                "{} registered, {ready} of {count} ready",
                nodes.len()
            ))
        })
    }

    pub fn apply(&self, file: &Path) -> Result<()> {
        self.run(&["apply", "--filename", &file.to_string_lossy()])
            .map(drop)
    }

    /// Every Pod that the file names is Ready.
    pub fn pods_of_file_are_ready(&self, file: &Path) -> Result<Wait<()>> {
        let objects = self.json(&["get", "--filename", &file.to_string_lossy()])?;
        // With one object kubectl prints that object instead of a List.
        let all = if objects["kind"] == "List" {
            items(&objects)
        } else {
            vec![&objects]
        };
        let pods: Vec<&Value> = all
            .into_iter()
            .filter(|object| object["kind"] == "Pod")
            .collect();
        let ready = pods
            .iter()
            .filter(|pod| condition(pod, "Ready") == Some("True"))
            .count();
        Ok(if ready == pods.len() {
            Wait::Done(())
        } else {
            Wait::Pending(format!("{ready} of {} pods ready", pods.len()))
        })
    }

    /// The Service has as many ready endpoints of each family as there are pods.
    pub fn endpoints_are_ready(&self, service: &str, count: usize) -> Result<Wait<()>> {
        let slices = self.json(&[
            "get",
            "endpointslices",
            "--selector",
            &format!("kubernetes.io/service-name={service}"),
        ])?;
        let ready = |family: &str| -> usize {
            let of_family = items(&slices)
                .into_iter()
                .filter(|slice| slice["addressType"] == family);
            of_family
                .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
                .filter(|endpoint| endpoint["conditions"]["ready"] != false)
                .count()
        };
        let (ipv4, ipv6) = (ready("IPv4"), ready("IPv6"));
        Ok(if ipv4 == count && ipv6 == count {
            Wait::Done(())
        } else {
            Wait::Pending(format!("{ipv4} IPv4 and {ipv6} IPv6 of {count}"))
        })
    }

    pub fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        let pods = self.json(&["get", "pods", "--selector", selector])?;
        items(&pods).into_iter().map(Pod::read).collect()
    }

    pub fn service(&self, name: &str) -> Result<Service> {
        let service = self.json(&["get", "service", name])?;
        let spec = &service["spec"];
        let node_port = |port_name: &str| -> Result<u64> {
            let ports = spec["ports"].as_array().into_iter().flatten();
            ports
                .filter(|port| port["name"] == port_name)
                .find_map(|port| port["nodePort"].as_u64())
                .with_context(|| format!("service {name} has no nodePort for its port {port_name}"))
        };
        let addresses = spec["clusterIPs"].as_array().into_iter().flatten();
        Ok(Service {
            cluster_ips: addresses
                .filter_map(|address| address.as_str().map(str::to_string))
                .collect(),
            http_node_port: node_port("http")?,
            echo_node_port: node_port("echo")?,
        })
    }
}

impl Pod {
    fn read(pod: &Value) -> Result<Pod> {
        let text = |pointer: &str| {
            pod.pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_string)
        };
        let name = text("/metadata/name").context("a pod without a name")?;
        let container = text("/status/containerStatuses/0/containerID")
            .and_then(|id| id.strip_prefix("docker://").map(str::to_string));
        Ok(Pod {
            node: text("/spec/nodeName").with_context(|| format!("pod {name} is on no node"))?,
            container: container.with_context(|| {
                format!("pod {name} reports no containerID of the form docker://…")
            })?,
            name,
        })
    }
}

fn items(list: &Value) -> Vec<&Value> {
    list["items"].as_array().into_iter().flatten().collect()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_read_with_its_docker_id() {
        let pod = json!({"metadata": {"name": "hello-1"}, "spec": {"nodeName": "n2"},
            "status": {"containerStatuses": [{"containerID": "docker://abc"}]}});
        let pod = Pod::read(&pod).unwrap();
        assert_eq!(
            (pod.name.as_str(), pod.node.as_str(), pod.container.as_str()),
            ("hello-1", "n2", "abc")
        );
    }

    #[test]
    fn a_pod_without_a_container_says_so() {
        let pod = json!({"metadata": {"name": "hello-1"}, "spec": {"nodeName": "n2"}});
        assert!(
            Pod::read(&pod)
                .unwrap_err()
                .to_string()
                .contains("containerID")
        );
    }

    #[test]
    fn conditions_are_found_by_type() {
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(condition(&node, "Ready"), Some("True"));
        assert_eq!(condition(&node, "NetworkUnavailable"), None);
    }
}
