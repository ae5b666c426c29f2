//! EndpointSlices -> Endpoints: a Service's endpoints in the form that older clients read
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#endpoints>).
//!
//! What it says follows the EndpointSlices of the Service's first family, so the two never disagree for longer than a
//! moment. Endpoints of Services without selector are somebody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::endpointslice::{HEADLESS, SERVICE_NAME, owner, selector};
use crate::fault::gone;
use crate::informer::ObjectKey;
use crate::queue::Queue;
use crate::{Informers, Options};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses that Endpoints hold; what comes after them is only in the EndpointSlices.
const MAX_ADDRESSES: usize = 1000;

/// Name, number, protocol and application protocol.
type Port = (Option<String>, i32, Option<String>, Option<String>);

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    let queue = Arc::new(Queue::new());
    subscribe(&informers, &queue);
    informers.services.synced().await;
    informers.slices.synced().await;
    informers.endpoints.synced().await;
    let workers = options.concurrent_service_syncs;
    let sync = |key| sync(&client, &informers, key);
    queue.serve("endpoints", workers, sync).await;
}

fn subscribe(informers: &Informers, queue: &Arc<Queue<ObjectKey>>) {
    let to = queue.clone();
    informers.services.on_change(move |change| {
        let keys = change.both().map(|service| ObjectKey::of(&**service));
        keys.for_each(|key| to.add(key));
    });
    let to = queue.clone();
    informers.slices.on_change(move |change| {
        change.both().filter_map(owner).for_each(|key| to.add(key));
    });
    let to = queue.clone();
    informers.endpoints.on_change(move |change| {
        let ours = change.both().filter(|endpoints| is_ours(endpoints));
        ours.for_each(|endpoints| to.add(ObjectKey::of(&**endpoints)));
    });
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|by| by == US)
}

async fn sync(client: &Client, informers: &Informers, key: ObjectKey) -> Result<(), kube::Error> {
    let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.namespace);
    let existing = informers.endpoints.get(&key);
    let Some(service) = informers.services.get(&key) else {
        let Some(orphan) = existing.filter(|endpoints| is_ours(endpoints)) else {
            return Ok(());
        };
        let only_this = DeleteParams::default().preconditions(Preconditions {
            uid: orphan.uid(),
            resource_version: orphan.resource_version(),
        });
        return gone(api.delete(&key.name, &only_this).await);
    };
    if service.metadata.deletion_timestamp.is_some() || selector(&service).is_none() {
        return Ok(());
    }
    let slices = informers.slices.in_namespace(&key.namespace, |slice| {
        slice.labels().get(SERVICE_NAME) == Some(&key.name)
    });
    let mut wanted = endpoints(&service, &slices);
    if let Some(existing) = &existing {
        // Others may have annotated it.
        let mut annotations = existing.annotations().clone();
        annotations.remove(OVER_CAPACITY);
        annotations.extend(wanted.metadata.annotations.take().unwrap_or_default());
        wanted.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    }
    let post = PostParams::default();
    match existing {
        None => {
            api.create(&post, &wanted).await?;
        }
        Some(existing) if says_the_same(&existing, &wanted) => return Ok(()),
        Some(existing) => {
            wanted.metadata.resource_version = existing.resource_version();
            api.replace(&key.name, &post, &wanted).await?;
        }
    }
    let addresses = wanted
        .subsets
        .iter()
        .flatten()
        .flat_map(|s| s.addresses.iter().flatten());
    tracing::info!(service = %key, ready = addresses.count(), "Endpoints written");
    Ok(())
}

fn says_the_same(a: &Endpoints, b: &Endpoints) -> bool {
    let subsets = |e: &Endpoints| e.subsets.clone().unwrap_or_default();
    subsets(a) == subsets(b) && a.labels() == b.labels() && a.annotations() == b.annotations()
}

/// What a Service's Endpoints should say.
fn endpoints(service: &Service, slices: &[Arc<EndpointSlice>]) -> Endpoints {
    let mut labels = service.labels().clone();
    labels.insert(MANAGED_BY.to_owned(), US.to_owned());
    let spec = service.spec.clone().unwrap_or_default();
    if spec.cluster_ip.as_deref() == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let family = spec.ip_families.unwrap_or_default().into_iter().next();
    let of_family = |slice: &&Arc<EndpointSlice>| {
        family
            .as_ref()
            .is_none_or(|family| *family == slice.address_type)
    };
    let (subsets, truncated) = subsets(slices.iter().filter(of_family));
    let annotations =
        truncated.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Addresses with the same ports are one subset. Says too whether some had no room; those that are ready come first.
fn subsets<'a>(
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
) -> (Vec<EndpointSubset>, bool) {
    let mut by_ports: BTreeMap<Vec<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let named = port.name.clone().filter(|name| !name.is_empty());
            Some((
                named,
                port.port?,
                port.protocol.clone(),
                port.app_protocol.clone(),
            ))
        });
        let ports: BTreeSet<Port> = ports.collect();
        let lists = by_ports.entry(ports.into_iter().collect()).or_default();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready != Some(false);
            // Terminating pods that serve nobody are in no Endpoints.
            if ready || conditions.terminating != Some(true) {
                lists[usize::from(!ready)].extend(address(endpoint));
            }
        }
    }
    let mut room = MAX_ADDRESSES;
    let mut truncated = false;
    for ready in 0..2 {
        for lists in by_ports.values_mut() {
            let list = &mut lists[ready];
            list.sort_by_key(|address| (address.ip.parse::<IpAddr>().ok(), address.ip.clone()));
            truncated |= list.len() > room;
            list.truncate(room);
            room -= list.len();
        }
    }
    let subsets = by_ports
        .into_iter()
        .filter(|(_, lists)| lists.iter().any(|list| !list.is_empty()));
    (subsets.map(subset).collect(), truncated)
}

fn subset((ports, [ready, not_ready]): (Vec<Port>, [Vec<EndpointAddress>; 2])) -> EndpointSubset {
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    let ports = ports
        .into_iter()
        .map(|(name, port, protocol, app_protocol)| EndpointPort {
            name,
            port,
            protocol,
            app_protocol,
        });
    EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: Some(ports.collect()),
    }
}

fn address(endpoint: &Endpoint) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: endpoint.addresses.first()?.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4", "IPv6"], "selector": {"app": "web"}},
        }))
        .unwrap()
    }

    fn slice(family: &str, port: i32, endpoints: &[(&str, Value)]) -> Arc<EndpointSlice> {
        let endpoints = endpoints.iter().map(|(ip, conditions)| {
            json!({"addresses": [ip], "conditions": conditions, "nodeName": "n1"})
        });
        let slice = json!({
            "metadata": {"name": "s"},
            "addressType": family,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    #[test]
    fn addresses_with_the_same_ports_are_one_subset_sorted_and_split_by_readiness() {
        let ready = json!({"ready": true});
        let slices = [
            slice(
                "IPv4",
                80,
                &[("10.0.0.10", ready.clone()), ("10.0.0.9", ready.clone())],
            ),
            slice(
                "IPv4",
                80,
                &[
                    ("10.0.0.3", json!({"ready": false})),
                    (
                        "10.0.0.2",
                        json!({"ready": false, "serving": true, "terminating": true}),
                    ),
                ],
            ),
            slice("IPv4", 81, &[("10.0.0.4", ready.clone())]),
            slice("IPv6", 80, &[("fd00::1", ready)]),
        ];
        let made = endpoints(&service(), &slices);
        let made = serde_json::to_value(&made).unwrap();
        let address = |ip: &str| json!({"ip": ip, "nodeName": "n1"});
        let ports = |port: i32| json!([{"name": "http", "port": port, "protocol": "TCP"}]);
        assert_eq!(
            made["subsets"],
            json!([
                {
                    "addresses": [address("10.0.0.9"), address("10.0.0.10")],
                    "notReadyAddresses": [address("10.0.0.3")],
                    "ports": ports(80),
                },
                {"addresses": [address("10.0.0.4")], "ports": ports(81)},
            ])
        );
        assert_eq!(
            made["metadata"]["labels"],
            json!({"app": "web", MANAGED_BY: US})
        );
    }

    #[test]
    fn a_service_without_pods_has_endpoints_without_subsets() {
        let made = endpoints(&service(), &[slice("IPv4", 80, &[])]);
        assert_eq!(made.subsets, None);
    }

    #[test]
    fn what_has_no_room_is_left_out_and_said() {
        let conditions = |ready: bool| json!({"ready": ready});
        let ips: Vec<String> = (0..1001)
            .map(|i| format!("10.0.{}.{}", i / 250, i % 250))
            .collect();
        // The first is not ready: it has to go, though its address is the lowest.
        let list: Vec<_> = ips
            .iter()
            .enumerate()
            .map(|(at, ip)| (ip.as_str(), conditions(at > 0)))
            .collect();
        let made = endpoints(&service(), &[slice("IPv4", 80, &list)]);
        let subset = &made.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), MAX_ADDRESSES);
        assert_eq!(subset.not_ready_addresses, None);
        assert_eq!(made.annotations()[OVER_CAPACITY], "truncated");
    }
}
