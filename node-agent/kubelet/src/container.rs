//! What Docker is told to make: from a pod and one of its containers to the body of a create request.

use std::{collections::HashMap, net::IpAddr};

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::{
    env::{ConfigError, expand},
    labels, quantity,
    runtime::PodRef,
};

/// Docker's period of CPU time, in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Size and number of the log files of one container.
const LOG_OPTIONS: [(&str, &str); 2] = [("max-size", "10m"), ("max-file", "3")];

/// The pod's identity; a pod that the API server gave us has all of it.
pub(crate) fn pod_ref(pod: &Pod) -> PodRef {
    let metadata = &pod.metadata;
    PodRef {
        uid: metadata.uid.clone().unwrap_or_default(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// The name that `docker ps` shows, dockershim's: `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`.
pub(crate) fn docker_name(pod: &PodRef, container: &str, attempt: u32) -> String {
    format!(
        "k8s_{container}_{}_{}_{}_{attempt}",
        pod.name, pod.namespace, pod.uid
    )
}

/// The container that holds the pod's namespaces. Its network is empty until the pod is wired, or the host's.
pub(crate) fn sandbox_body(
    pod: &Pod,
    image: &str,
    attempt: u32,
    ips: &[IpAddr],
) -> ContainerCreateBody {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let hostname = hostname(pod);
    let mut hosts: Vec<String> = ips.iter().map(|ip| format!("{hostname}:{ip}")).collect();
    for alias in spec.host_aliases.iter().flatten() {
        hosts.extend(
            alias
                .hostnames
                .iter()
                .flatten()
                .map(|name| format!("{name}:{}", alias.ip)),
        );
    }
    let dns = spec.dns_config.clone().unwrap_or_default();
    let dns_options = dns
        .options
        .unwrap_or_default()
        .into_iter()
        .filter_map(|option| {
            let name = option.name?;
            Some(
                option
                    .value
                    .map_or(name.clone(), |value| format!("{name}:{value}")),
            )
        });
    ContainerCreateBody {
        image: Some(image.to_owned()),
        // Docker refuses a hostname of its own beside the host's network.
        hostname: (!host_network).then_some(hostname),
        labels: Some(labels(&pod_ref(pod), labels::SANDBOX, attempt, image)),
        host_config: Some(HostConfig {
            network_mode: Some(if host_network { "host" } else { "none" }.to_owned()),
            ipc_mode: Some(
                if spec.host_ipc == Some(true) {
                    "host"
                } else {
                    "shareable"
                }
                .to_owned(),
            ),
            pid_mode: (spec.host_pid == Some(true)).then(|| "host".to_owned()),
            dns: dns.nameservers,
            dns_search: dns.searches,
            dns_options: Some(dns_options.collect()),
            extra_hosts: (!host_network).then_some(hosts),
            log_config: Some(log_config()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// A container of the pod, joined to its sandbox.
pub(crate) fn container_body(
    pod: &Pod,
    container: &Container,
    sandbox_id: &str,
    restart_count: u32,
    environment: &[(String, String)],
    mounts: Vec<Mount>,
) -> Result<ContainerCreateBody, ConfigError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    let joined = format!("container:{sandbox_id}");
    let mut labels = labels(&pod_ref(pod), &container.name, restart_count, &image);
    labels.insert(labels::SANDBOX_ID.to_owned(), sandbox_id.to_owned());
    let expanded = |words: &Option<Vec<String>>| {
        words.as_ref().map(|words| {
            words
                .iter()
                .map(|word| expand(word, environment))
                .collect::<Vec<_>>()
        })
    };
    let mut host_config = HostConfig {
        network_mode: Some(joined.clone()),
        ipc_mode: Some(if spec.host_ipc == Some(true) {
            "host".to_owned()
        } else {
            joined.clone()
        }),
        pid_mode: pid_mode(&spec, joined),
        mounts: Some(mounts),
        log_config: Some(log_config()),
        ..HostConfig::default()
    };
    set_resources(&mut host_config, container)?;
    let user = set_security(&mut host_config, &spec, container);
    Ok(ContainerCreateBody {
        image: Some(image),
        user,
        env: Some(
            environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        ),
        // Kubernetes' command is Docker's entrypoint, its args are Docker's command.
        entrypoint: expanded(&container.command),
        cmd: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        tty: container.tty,
        open_stdin: container.stdin,
        stdin_once: container.stdin_once,
        labels: Some(labels),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    })
}

/// `spec.hostname` or the pod's name, at most 63 characters (`HOST_NAME_MAX` is 64).
pub(crate) fn hostname(pod: &Pod) -> String {
    let given = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty());
    let mut name = given
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn pid_mode(spec: &PodSpec, joined: String) -> Option<String> {
    if spec.host_pid == Some(true) {
        return Some("host".to_owned());
    }
    (spec.share_process_namespace == Some(true)).then_some(joined)
}

fn labels(pod: &PodRef, container: &str, count: u32, image: &str) -> HashMap<String, String> {
    [
        (labels::POD_UID, pod.uid.clone()),
        (labels::POD_NAMESPACE, pod.namespace.clone()),
        (labels::POD_NAME, pod.name.clone()),
        (labels::CONTAINER_NAME, container.to_owned()),
        (labels::RESTART_COUNT, count.to_string()),
        (labels::IMAGE, image.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// As the kubelet turns requests and limits into cgroup values (`pkg/kubelet/cm/helpers_linux.go`).
fn set_resources(host_config: &mut HostConfig, container: &Container) -> Result<(), ConfigError> {
    let resources = container.resources.clone().unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    let read = |resource: &str, value: &str, parse: fn(&str) -> Option<i64>| {
        parse(value)
            .filter(|number| *number >= 0)
            .ok_or_else(|| ConfigError::Quantity {
                resource: resource.to_owned(),
                value: value.to_owned(),
            })
    };
    if let Some(cpu) = requests.get("cpu").or(limits.get("cpu")) {
        let milli = read("cpu", &cpu.0, quantity::milli)?;
        host_config.cpu_shares = Some((milli * 1024 / 1000).max(2));
    }
    if let Some(cpu) = limits.get("cpu") {
        let milli = read("cpu", &cpu.0, quantity::milli)?;
        host_config.cpu_period = Some(CPU_PERIOD);
        host_config.cpu_quota = Some((milli * CPU_PERIOD / 1000).max(1000));
    }
    if let Some(memory) = limits.get("memory") {
        let bytes = read("memory", &memory.0, quantity::units)?;
        host_config.memory = Some(bytes);
        // Equal means: no swap.
        host_config.memory_swap = Some(bytes);
    }
    Ok(())
}

/// Sets what the container may do; answers as whom it runs.
fn set_security(
    host_config: &mut HostConfig,
    spec: &PodSpec,
    container: &Container,
) -> Option<String> {
    let own = container.security_context.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    host_config.privileged = own.privileged;
    host_config.readonly_rootfs = own.read_only_root_filesystem;
    if own.allow_privilege_escalation == Some(false) {
        host_config.security_opt = Some(vec!["no-new-privileges".to_owned()]);
    }
    let capabilities = own.capabilities.unwrap_or_default();
    host_config.cap_add = capabilities.add;
    host_config.cap_drop = capabilities.drop;
    let groups = of_pod
        .supplemental_groups
        .unwrap_or_default()
        .into_iter()
        .chain(of_pod.fs_group);
    host_config.group_add = Some(groups.map(|group| group.to_string()).collect());
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    match (user, group) {
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (Some(user), None) => Some(user.to_string()),
        (None, Some(group)) => Some(format!("0:{group}")),
        (None, None) => None,
    }
}

fn log_config() -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(
            LOG_OPTIONS
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let metadata = json!({ "name": "web", "namespace": "default", "uid": "u1" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn body(spec: serde_json::Value) -> Result<ContainerCreateBody, ConfigError> {
        let pod = pod(spec);
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let environment = [("WHO".to_owned(), "you".to_owned())];
        container_body(&pod, &container, "s0", 2, &environment, Vec::new())
    }

    #[test]
    fn command_and_args_are_dockers_entrypoint_and_command() {
        let body = body(json!({ "containers": [{
            "name": "a", "image": "i", "command": ["hello", "$(WHO)"], "args": ["$(WHO)", "$$(WHO)", "$(NOBODY)"] }] }))
        .unwrap();
        assert_eq!(body.entrypoint.unwrap(), ["hello", "you"]);
        assert_eq!(body.cmd.unwrap(), ["you", "$(WHO)", "$(NOBODY)"]);
        assert_eq!(body.env.unwrap(), ["WHO=you"]);
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("container:s0"));
        assert_eq!(host.ipc_mode.as_deref(), Some("container:s0"));
        assert_eq!(host.pid_mode, None);
    }

    #[test]
    fn resources_become_cgroup_values_and_nonsense_is_named() {
        let with = |resources: serde_json::Value| {
            body(json!({ "containers": [{ "name": "a", "image": "i", "resources": resources }] }))
        };
        let host = with(json!({ "limits": { "cpu": "1m", "memory": "1Ki" } }))
            .unwrap()
            .host_config
            .unwrap();
        assert_eq!(
            (host.cpu_shares, host.cpu_quota, host.memory),
            (Some(2), Some(1000), Some(1024))
        );
        let host = with(json!({})).unwrap().host_config.unwrap();
        assert_eq!(
            (host.cpu_shares, host.cpu_quota, host.memory),
            (None, None, None)
        );
        let error = with(json!({ "limits": { "memory": "much" } })).unwrap_err();
        assert_eq!(
            error.to_string(),
            "resource memory has the value \"much\", which is no quantity"
        );
    }

    #[test]
    fn who_runs_is_the_containers_choice_before_the_pods() {
        let user = |pod: serde_json::Value, own: serde_json::Value| {
            let container = json!({ "name": "a", "image": "i", "securityContext": own });
            body(json!({ "securityContext": pod, "containers": [container] }))
                .unwrap()
                .user
        };
        assert_eq!(user(json!({}), json!({})), None);
        assert_eq!(
            user(json!({ "runAsUser": 5 }), json!({})).as_deref(),
            Some("5")
        );
        assert_eq!(
            user(
                json!({ "runAsUser": 5, "runAsGroup": 6 }),
                json!({ "runAsUser": 7 })
            )
            .as_deref(),
            Some("7:6")
        );
    }

    #[test]
    fn the_sandbox_has_no_network_unless_it_is_the_hosts() {
        let ips = ["10.244.1.2".parse().unwrap()];
        let own = sandbox_body(&pod(json!({ "containers": [] })), "pause", 0, &ips);
        assert_eq!(own.hostname.as_deref(), Some("web"));
        let host = own.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.extra_hosts.unwrap(), ["web:10.244.1.2"]);
        let shared = sandbox_body(
            &pod(json!({ "hostNetwork": true, "containers": [] })),
            "pause",
            0,
            &[],
        );
        assert_eq!(shared.hostname, None);
        assert_eq!(
            shared.host_config.unwrap().network_mode.as_deref(),
            Some("host")
        );
    }

    #[test]
    fn a_long_name_makes_a_hostname_that_linux_takes() {
        let mut long = pod(json!({ "containers": [] }));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(100)));
        assert_eq!(hostname(&long), "a".repeat(62));
    }
}
