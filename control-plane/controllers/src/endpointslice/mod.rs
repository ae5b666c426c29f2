//! Service selector and Pods -> EndpointSlices (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>).
//!
//! A change of a Pod concerns only the Services of its namespace whose selector matches it, before or after.

mod plan;
#[cfg(test)]
mod plan_tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::fault::gone;
use crate::informer::{Change, ObjectKey};
use crate::queue::Queue;
use crate::{Informers, Options};
use plan::{Action, MANAGED_BY, US, plan};
pub(crate) use plan::{HEADLESS, SERVICE_NAME};

const ZONE: &str = "topology.kubernetes.io/zone";

struct Controller {
    client: Client,
    informers: Arc<Informers>,
}

pub(crate) async fn run(client: Client, informers: Arc<Informers>, options: &Options) {
    let queue = Arc::new(Queue::new());
    subscribe(&informers, &queue);
    informers.services.synced().await;
    informers.pods.synced().await;
    informers.slices.synced().await;
    informers.nodes.synced().await;
    let controller = Controller { client, informers };
    queue
        .serve("endpointslice", options.concurrent_service_syncs, |key| {
            controller.sync(key)
        })
        .await;
}

fn subscribe(informers: &Arc<Informers>, queue: &Arc<Queue<ObjectKey>>) {
    let to = queue.clone();
    informers.services.on_change(move |change| {
        change
            .both()
            .for_each(|service| to.add(ObjectKey::of(&**service)));
    });
    let to = queue.clone();
    informers.slices.on_change(move |change| {
        change.both().filter_map(owner).for_each(|key| to.add(key));
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.pods.on_change(move |change| {
        if let Some(informers) = all.upgrade()
            && concerns_endpoints(change)
        {
            change
                .both()
                .flat_map(|pod| services_of(&informers, pod))
                .for_each(|key| to.add(key));
        }
    });
    let (to, all) = (queue.clone(), Arc::downgrade(informers));
    informers.nodes.on_change(move |change| {
        let zone = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| zone(node));
        if let Some(informers) = all.upgrade()
            && zone(&change.old) != zone(&change.new)
        {
            let names: Vec<_> = change.both().map(|node| node.name_any()).collect();
            let pods = informers.pods.all();
            pods.iter()
                .filter(|pod| {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
                    node.is_some_and(|node| names.contains(node))
                })
                .flat_map(|pod| services_of(&informers, pod))
                .for_each(|key| to.add(key));
        }
    });
}

/// The Service whose slice this is, if this controller manages it.
pub(crate) fn owner(slice: &Arc<EndpointSlice>) -> Option<ObjectKey> {
    let labels = slice.labels();
    let ours = labels.get(MANAGED_BY).is_some_and(|by| by == US);
    let service = labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(&slice.namespace()?, service))
}

/// Whether an endpoint could look different after this change. Heartbeats and container states do not count.
fn concerns_endpoints(change: &Change<Pod>) -> bool {
    let view = |pod: &Option<Arc<Pod>>| {
        pod.as_ref().map(|pod| {
            let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
            (
                pod.metadata.labels.clone(),
                pod.uid(),
                pod.metadata.deletion_timestamp.is_some(),
                plan::is_ready(pod),
                spec.and_then(|spec| spec.node_name.clone()),
                status.map(|status| {
                    (
                        status.phase.clone(),
                        status.pod_ip.clone(),
                        status.pod_ips.clone(),
                    )
                }),
            )
        })
    };
    view(&change.old) != view(&change.new)
}

fn services_of(informers: &Informers, pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.namespace().unwrap_or_default();
    let matching = informers.services.in_namespace(&namespace, |service| {
        selector(service).is_some_and(|selector| selects(selector, pod))
    });
    matching
        .iter()
        .map(|service| ObjectKey::of(&**service))
        .collect()
}

/// A Service without a selector has its endpoints from somebody else.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.labels();
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn zone(node: &Node) -> Option<String> {
    node.labels().get(ZONE).cloned()
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let existing = self.informers.slices.in_namespace(&key.namespace, |slice| {
            let labels = slice.labels();
            labels.get(SERVICE_NAME) == Some(&key.name)
                && labels.get(MANAGED_BY).is_some_and(|by| by == US)
        });
        let service = self.informers.services.get(&key);
        let actions = match service {
            None => existing.into_iter().map(Action::Delete).collect(),
            Some(service) if service.metadata.deletion_timestamp.is_some() => Vec::new(),
            Some(service) => match selector(&service) {
                None => Vec::new(),
                Some(selector) => {
                    let pods = self
                        .informers
                        .pods
                        .in_namespace(&key.namespace, |pod| selects(selector, pod));
                    let zone_of = |node: &str| {
                        let node = self.informers.nodes.get(&ObjectKey::new("", node))?;
                        zone(&node)
                    };
                    plan(&service, &pods, &existing, &zone_of)
                }
            },
        };
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for action in actions {
            apply(&api, &key, action).await?;
        }
        Ok(())
    }
}

async fn apply(
    api: &Api<EndpointSlice>,
    service: &ObjectKey,
    action: Action,
) -> Result<(), kube::Error> {
    let post = PostParams::default();
    match action {
        Action::Create(slice) => {
            let made = api.create(&post, &slice).await?;
            log(service, &made, "EndpointSlice created");
        }
        Action::Update(slice) => {
            let made = api.replace(&slice.name_any(), &post, &slice).await?;
            log(service, &made, "EndpointSlice updated");
        }
        Action::Delete(slice) => {
            let only_this = DeleteParams::default().preconditions(Preconditions {
                uid: slice.uid(),
                resource_version: slice.resource_version(),
            });
            gone(api.delete(&slice.name_any(), &only_this).await)?;
            log(service, &slice, "EndpointSlice deleted");
        }
    }
    Ok(())
}

fn log(service: &ObjectKey, slice: &EndpointSlice, what: &str) {
    tracing::info!(
        %service,
        slice = slice.name_any(),
        endpoints = slice.endpoints.as_ref().map_or(0, Vec::len),
        uid = slice.uid().unwrap_or_default(),
        resource_version = slice.resource_version().unwrap_or_default(),
        "{what}"
    );
}
