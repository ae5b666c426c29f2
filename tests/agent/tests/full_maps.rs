//! More than the maps hold: the old stays, and the operator hears of the new.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use node_agent_maps::Maps;
use serde_json::json;
use tests_agent::{Agent, Api, eventually, without_root};
use tests_testkit::Underlay;

const ENDPOINTS: u32 = 600;

/// A Service with so many endpoints that two of its kind do not fit into a map of 1024 backends.
fn create(api: &Api, name: &'static str, number: u32) {
    let slices = (0..ENDPOINTS / 100).map(|slice| {
        let endpoints: Vec<_> = (0..100)
            .map(|index| json!({"addresses": [format!("10.2{number}.{slice}.{}", index + 1)]}))
            .collect();
        json!({"metadata": {"name": format!("{name}-{slice}"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
    });
    let slices: Vec<_> = slices.collect();
    let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    api.ask(async move |client| {
        let services: kube::Api<Service> = kube::Api::default_namespaced(client.clone());
        let service = serde_json::from_value(service)?;
        services.create(&PostParams::default(), &service).await?;
        let all: kube::Api<EndpointSlice> = kube::Api::default_namespaced(client);
        for slice in slices {
            let slice = serde_json::from_value(slice)?;
            all.create(&PostParams::default(), &slice).await?;
        }
        Ok(())
    })
    .unwrap();
}

fn delete(api: &Api, name: &'static str) {
    api.ask(async move |client| {
        let services: kube::Api<Service> = kube::Api::default_namespaced(client);
        services.delete(name, &DeleteParams::default()).await?;
        Ok(())
    })
    .unwrap();
}

/// How many backends each service of the maps has, in rising order.
fn sets(agent: &Agent) -> Result<Vec<u32>> {
    let maps = Maps::open_read_only(&agent.pin_dir())?;
    let services = maps.service.entries()?.into_iter();
    let mut sets: Vec<u32> = services.map(|(_, service)| service.slot_count).collect();
    sets.sort_unstable();
    Ok(sets)
}

fn metric(agent: &Agent, name: &str) -> f64 {
    let text = agent.get("/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn what_does_not_fit_is_refused_by_name_in_an_event_and_a_metric_and_served_when_there_is_room() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let flags = [
        "--endpoints-max=1024",
        "--services-max=1024",
        "--conntrack-max=4096",
    ];
    let agent = Agent::node(&underlay, &api, 1, &["10.244.1.0/24"], &flags).unwrap();
    create(&api, "first", 1);
    eventually("the first Service's endpoints", || {
        let sets = sets(&agent)?;
        ensure!(sets.contains(&ENDPOINTS), "{sets:?}");
        Ok(())
    })
    .unwrap();
    create(&api, "second", 2);
    let said = "default/second is not served: map backend4_v1 has no room for it";
    eventually("an event about the second", || {
        let events = api.events()?;
        let told = |(reason, message): &(String, String)| reason == "MapFull" && message == said;
        ensure!(events.iter().any(told), "{events:?}");
        Ok(())
    })
    .unwrap();
    assert!(metric(&agent, "fairlead_map_failures_total{map=\"backend4_v1\"}") > 0.0);
    assert!(metric(&agent, "fairlead_refused_objects") > 0.0);
    let full = sets(&agent).unwrap();
    assert!(
        full.contains(&ENDPOINTS),
        "the first is served as before: {full:?}"
    );
    delete(&api, "first");
    eventually("the second Service's endpoints", || {
        let sets = sets(&agent)?;
        ensure!(sets.contains(&ENDPOINTS), "{sets:?}");
        ensure!(
            metric(&agent, "fairlead_refused_objects") == 0.0,
            "still refused"
        );
        Ok(())
    })
    .unwrap();
}
