//! The scheduler: gives every Pod a Node. Pure decisions (`decide`), a queue without IO (`queue`), and this thin loop
//! that feeds it from three watches and carries out what it says.

#![forbid(unsafe_code)]

mod cluster;
mod decide;
#[cfg(test)]
mod decide_tests;
mod filter;
mod node;
mod pod;
mod quantity;
mod queue;
mod report;

use std::collections::HashSet;
use std::fmt::Debug;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use filter::{Placement, placement};

use cluster::Selector;
use node::NodeFacts;
use pod::{PodFacts, PodKey};
use queue::{Queue, Work};

/// How the scheduler behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many bindings are on their way to the API server at a time.
    pub concurrent_bindings: usize,
}

#[derive(Debug)]
enum Update {
    Pod(Box<Event<PodFacts>>),
    Node(Event<NodeFacts>),
    Service(Event<ServiceFacts>),
}

/// What counts of a Service: which Pods stand behind it.
#[derive(Debug)]
struct ServiceFacts {
    namespace: String,
    name: String,
    selector: Selector,
}

/// A binding that has been answered; `None` for other work.
type Outcome = Option<(PodFacts, Result<(), kube::Error>)>;

struct Scheduler {
    client: Client,
    queue: Queue,
    running: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// What the lists that are being read have shown so far.
    listed_pods: HashSet<PodKey>,
    listed_nodes: HashSet<String>,
    synced: Synced,
}

/// Which first lists are complete. Before all are, a decision could be wrong.
#[derive(Debug, Default)]
struct Synced {
    pods: bool,
    nodes: bool,
    services: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrent_bindings: 64,
        }
    }
}

/// Schedules until the returned future is dropped. Errors of the API server are retried for ever.
pub async fn run(client: Client, options: Options) {
    let mut updates = updates(&client);
    let mut scheduler = Scheduler {
        client,
        queue: Queue::default(),
        running: FuturesUnordered::new(),
        listed_pods: HashSet::new(),
        listed_nodes: HashSet::new(),
        synced: Synced::default(),
    };
    loop {
        let can_decide = scheduler.synced.all()
            && !scheduler.queue.is_idle()
            && scheduler.running.len() < options.concurrent_bindings.max(1);
        let wake = scheduler.queue.next_wake();
        tokio::select! {
            // What is known should be up to date before the next decision.
            biased;
            update = updates.next() => match update {
                Some(update) => scheduler.take(update),
                None => return,
            },
            Some(outcome) = scheduler.running.next() => scheduler.finish(outcome),
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                scheduler.queue.wake(Instant::now());
            }
            () = std::future::ready(()), if can_decide => scheduler.step(),
        }
    }
}

fn updates(client: &Client) -> SelectAll<BoxStream<'static, Update>> {
    let mut updates = SelectAll::new();
    updates.push(
        watch::<Pod>(client)
            .map(|event| Update::Pod(Box::new(convert(event, |pod| PodFacts::of(&pod)))))
            .boxed(),
    );
    updates.push(
        watch::<Node>(client)
            .map(|event| Update::Node(convert(event, |node| NodeFacts::of(&node))))
            .boxed(),
    );
    updates.push(
        watch::<Service>(client)
            .map(|event| Update::Service(convert(event, |service| ServiceFacts::of(&service))))
            .boxed(),
    );
    updates
}

/// Lists and watches with back-off, for ever.
fn watch<K>(client: &Client) -> BoxStream<'static, Event<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff();
    stream
        .filter_map(|event| async {
            event
                .inspect_err(|error| {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                })
                .ok()
        })
        .boxed()
}

fn convert<A, B>(event: Event<A>, to: impl Fn(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(to(object)),
        Event::Delete(object) => Event::Delete(to(object)),
        Event::InitApply(object) => Event::InitApply(to(object)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

impl ServiceFacts {
    fn of(service: &Service) -> Self {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        Self {
            namespace: service.namespace().unwrap_or_default(),
            name: service.name_any(),
            selector: selector.unwrap_or_default(),
        }
    }
}

impl Synced {
    fn all(&self) -> bool {
        self.pods && self.nodes && self.services
    }
}

impl Scheduler {
    fn take(&mut self, update: Update) {
        match update {
            Update::Pod(event) => self.take_pod(*event),
            Update::Node(event) => self.take_node(event),
            Update::Service(event) => self.take_service(event),
        }
    }

    fn take_pod(&mut self, event: Event<PodFacts>) {
        match event {
            Event::Init => self.listed_pods.clear(),
            Event::InitApply(pod) => {
                self.listed_pods.insert(pod.key());
                self.queue.set_pod(pod);
            }
            Event::InitDone => {
                for gone in self.queue.pods().difference(&self.listed_pods) {
                    self.queue.remove_pod(gone);
                }
                self.listed_pods.clear();
                self.synced.pods = true;
            }
            Event::Apply(pod) => self.queue.set_pod(pod),
            Event::Delete(pod) => self.queue.remove_pod(&pod.key()),
        }
    }

    fn take_node(&mut self, event: Event<NodeFacts>) {
        match event {
            Event::Init => self.listed_nodes.clear(),
            Event::InitApply(node) => {
                self.listed_nodes.insert(node.name.clone());
                self.queue.set_node(node);
            }
            Event::InitDone => {
                for name in self.queue.cluster.node_names() {
                    if !self.listed_nodes.contains(&name) {
                        self.queue.cluster.remove_node(&name);
                    }
                }
                self.listed_nodes.clear();
                self.synced.nodes = true;
            }
            Event::Apply(node) => self.queue.set_node(node),
            Event::Delete(node) => self.queue.cluster.remove_node(&node.name),
        }
    }

    fn take_service(&mut self, event: Event<ServiceFacts>) {
        let cluster = &mut self.queue.cluster;
        match event {
            // Meanwhile Pods spread by their owners and labels only.
            Event::Init => cluster.clear_services(),
            Event::InitApply(service) | Event::Apply(service) => {
                cluster.set_service(&service.namespace, &service.name, service.selector);
            }
            Event::InitDone => self.synced.services = true,
            Event::Delete(service) => cluster.remove_service(&service.namespace, &service.name),
        }
    }

    /// Starts the next piece of work.
    fn step(&mut self) {
        let client = self.client.clone();
        match self.queue.next() {
            None => {}
            Some(Work::Bind { pod, node }) => self.running.push(
                async move {
                    let result = report::bind(&client, &pod, &node).await;
                    Some((pod, result))
                }
                .boxed(),
            ),
            Some(Work::Report { pod, why }) => self.running.push(
                async move {
                    report::unschedulable(&client, &pod, &why).await;
                    None
                }
                .boxed(),
            ),
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some((pod, Err(error))) = outcome {
            let name = format!("{}/{}", pod.namespace, pod.name);
            tracing::warn!(pod = name, uid = pod.uid, %error, "the Pod could not be bound, trying again");
            self.queue.bind_failed(&pod, Instant::now());
        }
    }
}
