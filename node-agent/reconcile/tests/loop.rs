//! The loop against maps that can fail, be full, or be changed behind its back.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ebpf_abi::Endpoint;
use node_agent_model::{
    Capacity, Change, ChangeId, EndpointSlice, MapOp, MapSink, ObjectName, Protocol, Service,
    ServicePort, SinkError, SliceEndpoint, SlicePort, Snapshot,
};
use node_agent_reconcile::{ApplyError, Handle, Metrics, Options, Reconciler};
use prometheus_client::registry::Registry;

/// Maps that outlive the loop, as pinned ones do.
#[derive(Clone, Debug, Default)]
struct Maps(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    maps: Snapshot,
    applied: usize,
    /// Operations until one fails, and how often that happens.
    fail_after: Option<(usize, usize)>,
}

impl Maps {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl MapSink for Maps {
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), SinkError> {
        let mut state = self.state();
        for (index, op) in ops.iter().enumerate() {
            if let Some((after, times)) = state.fail_after
                && index == after
                && times > 0
            {
                state.fail_after = Some((after, times - 1));
                let source = io::Error::from(io::ErrorKind::StorageFull);
                return Err(SinkError {
                    map: "service_v2",
                    action: "update",
                    index: Some(index),
                    full: true,
                    source,
                });
            }
            state.maps.apply_one(op);
            state.applied += 1;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, SinkError> {
        Ok(self.state().maps.clone())
    }
}

fn start(maps: &Maps, options: Options) -> (Handle, Registry) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (reconciler, handle) = Reconciler::new(maps.clone(), options, metrics).unwrap();
    tokio::spawn(reconciler.run());
    (handle, registry)
}

fn options() -> Options {
    Options::new("here", ["services", "pods"])
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

async fn web(handle: &Handle, backends: &[&str]) {
    let name = ObjectName::new("default", "web");
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let ip: IpAddr = "10.96.0.1".parse().unwrap();
    let service = Service {
        cluster_ips: vec![ip],
        ports: vec![port],
        ..Service::default()
    };
    handle
        .change(
            Change::Service(name.clone(), Some(service)),
            ChangeId::default(),
        )
        .await
        .unwrap();
    let endpoint = |addr: &&str| SliceEndpoint::at(addr.parse().unwrap());
    let slice = EndpointSlice {
        service: name.clone(),
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: backends.iter().map(endpoint).collect(),
    };
    handle
        .change(
            Change::EndpointSlice(name, Some(slice)),
            ChangeId::default(),
        )
        .await
        .unwrap();
}

async fn sources(handle: &Handle) {
    handle.synced("services").await.unwrap();
    handle.synced("pods").await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_before_every_source_has_listed() {
    let maps = Maps::default();
    let (handle, _registry) = start(&maps, options());
    web(&handle, &["10.244.1.2"]).await;
    handle.synced("services").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(maps.state().applied, 0);
    assert_eq!(
        handle.status().not_ready(),
        ["the first list of pods is not complete"]
    );
    handle.synced("pods").await.unwrap();
    handle.wait_synced().await.unwrap();
    assert_eq!(handle.status().not_ready(), [""; 0]);
    assert_eq!(maps.state().maps.v4.frontends.len(), 1);
}

#[tokio::test]
async fn a_restart_in_an_unchanged_world_writes_nothing_and_the_metric_says_so() {
    let maps = Maps::default();
    let (handle, registry) = start(&maps, options());
    web(&handle, &["10.244.1.2", "10.244.1.3"]).await;
    sources(&handle).await;
    handle.flush().await.unwrap();
    let applied = maps.state().applied;
    assert_eq!(applied, 7);
    assert!(
        text(&registry).contains("fairlead_map_operations_total{map=\"backend4_v1\"} 2"),
        "{}",
        text(&registry)
    );
    drop(handle);

    let (handle, registry) = start(&maps, options());
    web(&handle, &["10.244.1.2", "10.244.1.3"]).await;
    sources(&handle).await;
    handle.flush().await.unwrap();
    assert_eq!(maps.state().applied, applied);
    let text = text(&registry);
    let values = text
        .lines()
        .filter(|line| line.starts_with("fairlead_map_operations_total"));
    assert_eq!(values.clone().count(), 16);
    assert!(values.clone().all(|line| line.ends_with(" 0")), "{text}");
}

#[tokio::test]
async fn what_vanished_while_the_agent_was_away_is_removed_after_the_first_lists() {
    let maps = Maps::default();
    let (handle, _registry) = start(&maps, options());
    web(&handle, &["10.244.1.2"]).await;
    sources(&handle).await;
    handle.flush().await.unwrap();
    drop(handle);
    let (handle, _registry) = start(&maps, options());
    sources(&handle).await;
    handle.flush().await.unwrap();
    assert!(maps.state().maps.is_idle());
}

#[tokio::test]
async fn a_failed_batch_is_reported_read_back_and_finished() {
    let maps = Maps::default();
    maps.state().fail_after = Some((1, 2));
    let (handle, registry) = start(&maps, options());
    web(&handle, &["10.244.1.2"]).await;
    sources(&handle).await;
    let failure = handle.flush().await.unwrap_err();
    assert!(
        matches!(&failure, ApplyError::Failed(text) if text.contains("service_v2")),
        "{failure}"
    );
    assert!(handle.status().not_ready()[0].contains("service_v2"));
    handle.wait_synced().await.unwrap();
    assert_eq!(maps.state().maps.v4.frontends.len(), 1);
    assert_eq!(handle.status().error, None);
    assert!(text(&registry).contains("fairlead_sync_failures_total 2"));
    let by_map = "fairlead_map_failures_total{map=\"service_v2\"} 2";
    assert!(text(&registry).contains(by_map));
}

#[tokio::test]
async fn maps_that_somebody_changed_are_repaired() {
    let maps = Maps::default();
    let (handle, registry) = start(
        &maps,
        Options {
            compare_every: Duration::from_millis(40),
            ..options()
        },
    );
    web(&handle, &["10.244.1.2"]).await;
    sources(&handle).await;
    handle.flush().await.unwrap();
    maps.state().maps.v4.frontends.clear();
    for _ in 0..100 {
        if !maps.state().maps.v4.frontends.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(maps.state().maps.v4.frontends.len(), 1);
    handle.flush().await.unwrap();
    assert!(
        text(&registry).contains("fairlead_repairs_total 1"),
        "{}",
        text(&registry)
    );
}

#[tokio::test]
async fn an_endpoint_that_does_not_fit_is_an_error_to_who_waits_for_it() {
    let maps = Maps::default();
    let capacity = Capacity {
        endpoints4: 1,
        ..Capacity::default()
    };
    let (handle, _registry) = start(
        &maps,
        Options {
            capacity,
            ..options()
        },
    );
    sources(&handle).await;
    let endpoint = |last: u8| {
        Change::Endpoint(
            IpAddr::from([10, 244, 1, last]),
            Some(Endpoint {
                ifindex: 3,
                ..Endpoint::default()
            }),
        )
    };
    handle
        .change(endpoint(2), ChangeId::default())
        .await
        .unwrap();
    handle.flush().await.unwrap();
    handle
        .change(endpoint(3), ChangeId::default())
        .await
        .unwrap();
    let refused = handle.flush().await.unwrap_err();
    assert_eq!(
        refused,
        ApplyError::Refused {
            object: "10.244.1.3".to_owned(),
            map: ebpf_abi::maps::ENDPOINT4
        }
    );
    assert_eq!(maps.state().maps.v4.endpoints.len(), 1);
}

#[tokio::test]
async fn changes_that_come_together_are_planned_together() {
    let maps = Maps::default();
    let (handle, _registry) = start(
        &maps,
        Options {
            coalesce: Duration::from_millis(500),
            ..options()
        },
    );
    web(&handle, &["10.244.1.1"]).await;
    sources(&handle).await;
    handle.flush().await.unwrap();
    // Its address, a backend, a slot, a service and its name, a frontend.
    assert_eq!(maps.state().applied, 6);
    for last in 2..100 {
        web(&handle, &[&format!("10.244.1.{last}")]).await;
    }
    handle.flush().await.unwrap();
    // Of 98 sets only the last was written: the slot, the backend that came and the one that went.
    assert_eq!(maps.state().applied, 9);
}

#[tokio::test]
async fn the_first_change_of_a_quiet_time_waits_for_no_other() {
    let maps = Maps::default();
    let (handle, _registry) = start(
        &maps,
        Options {
            coalesce: Duration::from_secs(5),
            ..options()
        },
    );
    sources(&handle).await;
    handle.flush().await.unwrap();
    // Nothing was written for long.
    web(&handle, &["10.244.1.2"]).await;
    let began = tokio::time::Instant::now();
    while maps.state().maps.v4.frontends.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(4), "it waits");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What follows is collected.
    web(&handle, &["10.244.1.3"]).await;
    handle.flush().await.unwrap();
    assert!(
        began.elapsed() > Duration::from_secs(4),
        "it was not collected"
    );
}

#[tokio::test]
async fn changes_are_counted_under_kube_proxys_names_and_timed_from_their_trigger() {
    let maps = Maps::default();
    let (handle, registry) = start(&maps, options());
    web(&handle, &["10.244.1.2"]).await;
    let said = text(&registry);
    assert!(!said.contains("kubeproxy_sync_proxy_rules_duration_seconds_count 1"));
    sources(&handle).await;
    handle.flush().await.unwrap();

    let change = |addr: &str, triggered_at| {
        let slice = EndpointSlice {
            service: ObjectName::new("default", "web"),
            ports: Vec::new(),
            endpoints: vec![SliceEndpoint::at(addr.parse().unwrap())],
        };
        let id = ChangeId {
            triggered_at,
            ..ChangeId::default()
        };
        let name = ObjectName::new("default", "web-2");
        handle.change(Change::EndpointSlice(name, Some(slice)), id)
    };
    // Long ago: before this process ran.
    change("10.244.1.3", Some(std::time::SystemTime::UNIX_EPOCH))
        .await
        .unwrap();
    handle.flush().await.unwrap();
    change("10.244.1.4", Some(std::time::SystemTime::now()))
        .await
        .unwrap();
    handle.flush().await.unwrap();
    let said = text(&registry);
    for line in [
        "kubeproxy_network_programming_duration_seconds_count 1\n",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\"} 1\n",
        "kubeproxy_sync_proxy_rules_service_changes_total 1\n",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0\n",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 3\n",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0\n",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert!(!said.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds 0.0\n"));
}

#[tokio::test]
async fn health_checks_are_told_when_the_maps_hold_what_they_say() {
    let maps = Maps::default();
    let (handle, _registry) = start(&maps, options());
    let mut checks = handle.health_checks();
    let name = ObjectName::new("default", "web");
    let service = Service {
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        health_check_node_port: Some(32000),
        ..Service::default()
    };
    let change = Change::Service(name.clone(), Some(service));
    handle.change(change, ChangeId::default()).await.unwrap();
    assert!(checks.borrow_and_update().is_empty());
    sources(&handle).await;
    handle.flush().await.unwrap();
    let check = checks.borrow_and_update().get(&name).copied().unwrap();
    assert_eq!((check.port, check.local_endpoints), (32000, 0));
    let change = Change::Service(name.clone(), None);
    handle.change(change, ChangeId::default()).await.unwrap();
    handle.flush().await.unwrap();
    assert!(checks.borrow_and_update().is_empty());
}
