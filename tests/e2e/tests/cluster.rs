//! One cluster, several things that must not disturb it. The cases run one after the other on the same cluster.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tests_e2e::{Agent, Backend, Cluster, Pod, Position, Probe, Running, Tally};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

type Case = fn(&Cluster) -> Result<()>;

const CASES: [(&str, Case); 4] = [
    (
        "no_netfilter_rule_and_no_conntrack_entry_on_any_node",
        no_netfilter,
    ),
    (
        "every_pinned_map_dumps_with_field_names",
        maps_dump_with_names,
    ),
    (
        "agent_killed_during_10000_requests_loses_none_and_changes_nothing_on_return",
        agent_killed,
    ),
    (
        "endpoints_replaced_200_times_under_1000_connections_a_second_disturb_none",
        endpoints_replaced,
    ),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // One cluster: what one case does to it, another would see.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(
            &arguments,
            CASES
                .iter()
                .map(|(name, _)| Trial::test(*name, || Ok(())))
                .collect(),
        )
        .exit();
    }
    let cluster = match Cluster::start() {
        Ok(cluster) => Arc::new(Mutex::new(Some(cluster))),
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::exit(1);
        }
    };
    let trials = CASES
        .iter()
        .map(|(name, case)| {
            let cluster = Arc::clone(&cluster);
            Trial::test(*name, move || {
                // A case that panicked poisons the lock, not the cluster.
                let guard = cluster
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let cluster = guard.as_ref().ok_or("the cluster is gone")?;
                case(cluster).map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(
        cluster
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take(),
    );
    conclusion.exit();
}

// === cases ===

fn no_netfilter(cluster: &Cluster) -> Result<()> {
    let traffic = everywhere(cluster, 200, 200)?;
    finish_without_loss(traffic)?;
    for node in NODES {
        let rules = cluster.output(node, &["nft", "list", "ruleset"])?;
        ensure!(
            rules.trim().is_empty(),
            "{node} has nftables rules:\n{rules}"
        );
        for save in [
            "iptables-save",
            "ip6tables-save",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
        ] {
            let rules = cluster.output(node, &[save])?;
            ensure!(
                rules
                    .lines()
                    .all(|line| line.starts_with('#') || line.is_empty()),
                "{node}: {save} prints\n{rules}"
            );
        }
        let script = "if [ -e /proc/net/nf_conntrack ]; then cat /proc/net/nf_conntrack; else echo absent; fi";
        let entries = cluster.output(node, &["sh", "-c", script])?;
        if entries.trim() == "absent" {
            println!("{node}: not checked for entries: the kernel has no /proc/net/nf_conntrack");
            continue;
        }
        ensure!(
            entries.trim().is_empty(),
            "{node} has nf_conntrack entries:\n{entries}"
        );
    }
    Ok(())
}

fn maps_dump_with_names(cluster: &Cluster) -> Result<()> {
    let folder = "/sys/fs/bpf/fairlead";
    let list = cluster.output(
        "n1",
        &["find", folder, "-maxdepth", "1", "-name", "*_v[0-9]*"],
    )?;
    let maps: Vec<&str> = list.lines().collect();
    ensure!(
        maps.len() >= 15,
        "only {} maps below {folder}: {maps:?}",
        maps.len()
    );
    let mut empty = BTreeSet::new();
    for map in maps {
        let text = cluster.output("n1", &["bpftool", "--json", "map", "dump", "pinned", map])?;
        let entries: Value = serde_json::from_str(&text)
            .with_context(|| format!("bpftool on {map}: {text:.200}"))?;
        let entries = entries
            .as_array()
            .with_context(|| format!("bpftool prints no list for {map}"))?;
        match entries.first() {
            Some(first) => ensure!(
                first.get("formatted").is_some(),
                "{map} has no field names: {first}"
            ),
            None => {
                // Nothing to dump: the types that a dump would use.
                let types = ["bpftool", "btf", "dump", "map", "pinned", map, "kv"];
                let types = cluster.output("n1", &types)?;
                ensure!(types.contains("STRUCT"), "{map} has no fields: {types}");
                empty.insert(map);
            }
        }
    }
    let may_be_empty = |map: &str| {
        ["affinity", "conn", "fragment", "range", "socket"]
            .iter()
            .any(|kind| map.contains(kind))
    };
    let wrong: Vec<_> = empty.into_iter().filter(|map| !may_be_empty(map)).collect();
    ensure!(
        wrong.is_empty(),
        "nothing in {wrong:?} on a node with pods and services"
    );
    Ok(())
}

fn agent_killed(cluster: &Cluster) -> Result<()> {
    let traffic = everywhere(cluster, 10_000, 1_000)?;
    thread::sleep(Duration::from_secs(2));
    let agent = Agent::of(cluster, "n1")?;
    agent.kill()?;
    thread::sleep(Duration::from_secs(2));
    let mut again = agent.restart(cluster)?;
    agent.wait_ready(cluster)?;
    finish_without_loss(traffic)?;
    ensure!(
        again.try_wait()?.is_none(),
        "the agent that was started again has ended"
    );
    let operations = agent.metric(cluster, "fairlead_map_operations_total")?;
    ensure!(
        operations == 0.0,
        "the agent changed {operations} map entries of an unchanged world"
    );
    Ok(())
}

/// A Service without selector whose three EndpointSlices this test writes, each with one server. A server that was
/// taken out is closed a second later: whoever is still sent to it is refused.
fn endpoints_replaced(cluster: &Cluster) -> Result<()> {
    const REPLACEMENTS: usize = 200;
    const FIRST_PORT: u16 = 20_000;
    /// From the answer to the write until every node must have turned away, and what had been sent has arrived.
    const GRACE: Duration = Duration::from_secs(1);
    let pods = cluster.pods()?;
    let pids = pods
        .iter()
        .map(|pod| pod.pid(cluster))
        .collect::<Result<Vec<_>>>()?;
    let start = |number: usize| {
        let port = FIRST_PORT + u16::try_from(number).context("too many servers")?;
        let which = number % pods.len();
        Backend::start(cluster, &pods[which], &pids[which], port)
    };
    cluster.apply_json(&json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "replaced"},
        "spec": {"type": "NodePort", "ports": [{"name": "http", "port": 80}]}}))?;
    let mut chosen = VecDeque::new();
    for number in 0..3 {
        let backend = start(number)?;
        cluster.apply_json(&slice(number, &backend))?;
        chosen.push_back(backend);
    }
    let clients = replaced_clients(cluster, &pods)?;
    wait_for_answers(cluster, &clients, &chosen)?;

    // 250 a second from each of the four; long enough for the replacements, and cut short by none.
    let seconds = 60;
    let traffic = clients
        .into_iter()
        .map(|(from, target)| {
            Probe {
                from,
                target,
                count: 250 * seconds,
                rate: 250,
            }
            .start(cluster)
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let mut withdrawn: VecDeque<(Instant, Backend)> = VecDeque::new();
    let mut known: BTreeSet<String> = chosen.iter().map(|backend| backend.name.clone()).collect();
    for number in 3..REPLACEMENTS + 3 {
        let backend = start(number)?;
        cluster.apply_json(&slice(number % 3, &backend))?;
        known.insert(backend.name.clone());
        chosen.push_back(backend);
        withdrawn.extend(chosen.pop_front().map(|backend| (Instant::now(), backend)));
        while withdrawn
            .front()
            .is_some_and(|(at, _)| at.elapsed() > GRACE)
        {
            drop(withdrawn.pop_front());
        }
    }
    let took = begun.elapsed();
    thread::sleep(GRACE);
    drop(withdrawn);
    ensure!(
        took + 2 * GRACE < Duration::from_secs(u64::from(seconds)),
        "{REPLACEMENTS} replacements took {took:?}: longer than the traffic"
    );
    println!("{REPLACEMENTS} replacements in {took:?}");
    let tallies = finish_without_loss(traffic)?;
    let answered: BTreeSet<String> = tallies
        .into_iter()
        .flat_map(|tally| tally.backends.into_keys())
        .collect();
    let strangers: Vec<_> = answered.difference(&known).collect();
    let unreached: Vec<_> = known.difference(&answered).collect();
    ensure!(
        strangers.is_empty() && unreached.is_empty(),
        "answered, but no endpoint: {strangers:?}; an endpoint, but never reached: {unreached:?}"
    );
    cluster.kubectl(&["delete", "service", "replaced"])?;
    cluster.kubectl(&[
        "delete",
        "endpointslice",
        "--selector=kubernetes.io/service-name=replaced",
    ])?;
    Ok(())
}

/// From where the Service `replaced` is asked, and how: two pods, a process of a node, and outside.
fn replaced_clients(cluster: &Cluster, pods: &[Pod]) -> Result<[(Position, String); 4]> {
    let service = cluster.get(&["service", "replaced"])?;
    let in_cluster = format!("http://{}:80/", text(&service, "/spec/clusterIP")?);
    let node_port = service
        .pointer("/spec/ports/0/nodePort")
        .context("no nodePort")?;
    Ok([
        (Position::InPod(pods[0].clone()), in_cluster.clone()),
        (Position::InPod(pods[3].clone()), in_cluster.clone()),
        (Position::Host("n2".to_string()), in_cluster),
        (
            Position::Host("outside".to_string()),
            format!("http://172.31.240.11:{node_port}/"),
        ),
    ])
}

// === helpers ===

/// Probes of the example service from a pod on each node, a process on each node, and outside, over TCP and UDP:
/// together at least `total` requests at about `rate` a second.
fn everywhere(cluster: &Cluster, total: u32, rate: u32) -> Result<Vec<Running>> {
    let service = cluster.get(&["service", "hello"])?;
    let cluster_ip = text(&service, "/spec/clusterIP")?;
    let port = |index: u8| {
        let port = service.pointer(&format!("/spec/ports/{index}/nodePort"));
        port.cloned()
            .context("a port of the service hello has no nodePort")
    };
    let pods = cluster.pods()?;
    let mut clients = Vec::new();
    for node in NODES {
        let pod = pods
            .iter()
            .find(|pod| pod.node == node)
            .with_context(|| format!("no pod on {node}"))?;
        for from in [
            Position::InPod(pod.clone()),
            Position::Host(node.to_string()),
        ] {
            clients.push((from.clone(), format!("http://{cluster_ip}:80/")));
            clients.push((from, format!("udp:{cluster_ip}:9000")));
        }
    }
    let outside = Position::Host("outside".to_string());
    clients.push((
        outside.clone(),
        format!("http://172.31.240.11:{}/", port(0)?),
    ));
    clients.push((outside, format!("udp:172.31.240.11:{}", port(1)?)));
    let each = u32::try_from(clients.len()).context("too many clients")?;
    clients
        .into_iter()
        .map(|(from, target)| {
            Probe {
                from,
                target,
                count: total.div_ceil(each),
                rate: rate.div_ceil(each),
            }
            .start(cluster)
        })
        .collect()
}

fn finish_without_loss(traffic: Vec<Running>) -> Result<Vec<Tally>> {
    let finished = traffic
        .into_iter()
        .map(Running::finish)
        .collect::<Result<Vec<_>>>()?;
    let mut faults = Vec::new();
    let mut tallies = Vec::new();
    for (probe, tally) in finished {
        if tally.replies != tally.sent || !tally.errors.is_empty() || tally.sent != probe.count {
            faults.push(format!(
                "{:?} -> {}: {} of {} answered, {:?}",
                probe.from, probe.target, tally.replies, tally.sent, tally.errors
            ));
        }
        tallies.push(tally);
    }
    ensure!(faults.is_empty(), "requests failed:\n{}", faults.join("\n"));
    println!(
        "{} requests, all answered",
        tallies.iter().map(|tally| tally.sent).sum::<u32>()
    );
    Ok(tallies)
}

/// Until each client reaches exactly these servers: the nodes learn of a new service one after the other.
fn wait_for_answers(
    cluster: &Cluster,
    clients: &[(Position, String)],
    backends: &VecDeque<Backend>,
) -> Result<()> {
    let expected: BTreeSet<&String> = backends.iter().map(|backend| &backend.name).collect();
    let begun = Instant::now();
    for (from, target) in clients {
        loop {
            let probe = Probe {
                from: from.clone(),
                target: target.clone(),
                count: 6,
                rate: 100,
            };
            let (_, tally) = probe.start(cluster)?.finish()?;
            if tally.backends.keys().collect::<BTreeSet<_>>() == expected && tally.errors.is_empty()
            {
                break;
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "{from:?} -> {target}: {tally:?}"
            );
        }
    }
    Ok(())
}

/// The EndpointSlice of the Service `replaced` with this number, with one server in it.
fn slice(number: usize, backend: &Backend) -> Value {
    let endpoint = json!({"addresses": [backend.pod.ipv4], "conditions": {"ready": true}, "nodeName": backend.pod.node});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("replaced-{number}"), "labels": {"kubernetes.io/service-name": "replaced"}},
        "ports": [{"name": "http", "port": backend.port, "protocol": "TCP"}],
        "endpoints": [endpoint]})
}

fn text(object: &Value, pointer: &str) -> Result<String> {
    let value = object.pointer(pointer).and_then(Value::as_str);
    value
        .map(str::to_string)
        .with_context(|| format!("no {pointer} in {object}"))
}
