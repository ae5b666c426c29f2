//! One list-and-watch a kind, all into one channel.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use node_agent_model::{ChangeId, ObjectName};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::{Kind, Reflected};

/// A kind whose first complete list must have been heard before anything is removed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Source {
    Services,
    EndpointSlices,
    Nodes,
}

/// All of them.
pub const SOURCES: [Source; 3] = [Source::Services, Source::EndpointSlices, Source::Nodes];

/// When the change of a Pod or Service happened that made the control plane change the object.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#endpoints-kubernetes-io-last-change-trigger-time>
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What the backoff comes to; it does not end.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What the streams say.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is an object: a box would cost each of them an allocation"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Object {
        reflected: Reflected,
        id: ChangeId,
    },
    /// A list of this source is complete.
    Synced(Source),
}

impl Source {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
        }
    }
}

/// Watches until the receiver is gone.
pub async fn run(client: kube::Client, out: mpsc::Sender<Message>) {
    tokio::join!(
        watch::<Service>(Source::Services, Api::all(client.clone()), out.clone()),
        watch::<EndpointSlice>(
            Source::EndpointSlices,
            Api::all(client.clone()),
            out.clone()
        ),
        watch::<Node>(Source::Nodes, Api::all(client), out),
    );
}

async fn watch<K: Kind>(source: Source, api: Api<K>, out: mpsc::Sender<Message>) {
    let mut mirror = Names::default();
    let mut waits = Waits::default();
    loop {
        // A new watcher begins with a list.
        let mut stream = pin!(watcher::watcher(api.clone(), watcher::Config::default()));
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    for message in mirror.messages(source, event) {
                        if out.send(message).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let wait = waits.after(&error);
                    warn!(
                        source = source.label(),
                        error = &error as &dyn std::error::Error,
                        ?wait,
                        "watch failed"
                    );
                    tokio::time::sleep(wait).await;
                    if was_not_understood(&error) {
                        break;
                    }
                }
            }
        }
    }
}

/// How long to wait after failures. Each grows to half a minute, and as much again at random, so that the nodes of a cluster
/// do not come back at once; only two minutes without a failure make it short again. A list that succeeds does not: what
/// follows may fail for ever, and every try would be a list.
#[derive(Default)]
struct Waits {
    failed: DefaultBackoff,
    /// A server that forgot what changed since, as one that was started anew, is there and asks for a list: however long it
    /// was away before, nobody waits as long again.
    expired: DefaultBackoff,
}

impl Waits {
    fn after(&mut self, error: &watcher::Error) -> Duration {
        let backoff = match has_expired(error) {
            true => &mut self.expired,
            false => &mut self.failed,
        };
        backoff.next().unwrap_or(LONGEST_WAIT)
    }
}

/// `410 Gone`, as an answer or as an event.
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#410-gone-responses>
fn has_expired(error: &watcher::Error) -> bool {
    const GONE: u16 = 410;
    match error {
        watcher::Error::WatchError(status) => status.code == GONE,
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == GONE,
        _ => false,
    }
}

/// Whether an event came that could not be read: the watch would go on behind it, and only a list tells what it was. One
/// that is some JSON object is given as a `Status` without a word, since that has no field that must be there.
fn was_not_understood(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_))
    )
}

/// The names that were announced, to find out what a new list has lost.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeSet<ObjectName>,
    listed: BTreeSet<ObjectName>,
}

impl Names {
    pub(crate) fn messages<K: Kind>(&mut self, source: Source, event: Event<K>) -> Vec<Message> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(name_of(&object));
                vec![self.applied(source, &object)]
            }
            Event::Apply(object) => vec![self.applied(source, &object)],
            Event::Delete(object) => {
                let (name, id) = (name_of(&object), id_of(&object));
                debug!(source = source.label(), object = %name, change = %id, "deleted");
                self.known.remove(&name);
                vec![Message::Object {
                    reflected: K::removed(name),
                    id,
                }]
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> = self.known.difference(&listed).cloned().collect();
                let mut messages = Vec::new();
                for name in gone {
                    debug!(source = source.label(), object = %name, "no longer listed");
                    self.known.remove(&name);
                    messages.push(Message::Object {
                        reflected: K::removed(name),
                        id: ChangeId::default(),
                    });
                }
                info!(
                    source = source.label(),
                    objects = self.known.len(),
                    "list complete"
                );
                messages.push(Message::Synced(source));
                messages
            }
        }
    }

    fn applied<K: Kind>(&mut self, source: Source, object: &K) -> Message {
        let (name, id) = (name_of(object), id_of(object));
        debug!(source = source.label(), object = %name, change = %id, "applied");
        self.known.insert(name.clone());
        Message::Object {
            reflected: object.reflect(name),
            id,
        }
    }
}

fn name_of<K: Kind>(object: &K) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

fn id_of<K: Kind>(object: &K) -> ChangeId {
    let meta = object.meta();
    ChangeId {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        triggered_at: meta
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(TRIGGER_TIME))
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map(SystemTime::from),
    }
}

#[cfg(test)]
mod tests {
    use node_agent_model::Change;

    use super::*;

    fn service(name: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.to_owned());
        service.metadata.namespace = Some("default".to_owned());
        service
    }

    fn removals(messages: &[Message]) -> Vec<String> {
        let removal = |message: &Message| match message {
            Message::Object {
                reflected: Reflected::Change(Change::Service(name, None)),
                id,
            } if id.uid.is_empty() => Some(name.to_string()),
            _ => None,
        };
        messages.iter().filter_map(removal).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_for_an_hour_is_asked_less_and_less_and_by_each_node_at_another_time()
     {
        let node = || {
            let mut backoff = DefaultBackoff::default();
            move || backoff.next().unwrap()
        };
        let mut waits = Vec::new();
        let (mut one, mut away) = (node(), Duration::ZERO);
        while away < Duration::from_secs(3600) {
            let wait = one();
            tokio::time::advance(wait).await;
            away += wait;
            waits.push(wait);
        }
        assert!(waits[0] < Duration::from_secs(2), "{waits:?}");
        assert!(
            waits.iter().all(|wait| *wait <= 2 * LONGEST_WAIT),
            "{waits:?}"
        );
        assert!(waits.len() < 130, "{} tries in an hour", waits.len());
        // Many nodes that fail together do not come back together.
        let mut firsts: Vec<Duration> = (0..100).map(|_| node()()).collect();
        firsts.sort();
        firsts.dedup();
        assert!(firsts.len() > 90, "{} different waits", firsts.len());
        // And after two good minutes it is as in the beginning.
        tokio::time::advance(Duration::from_secs(121)).await;
        assert!(one() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_and_asks_for_a_list_is_not_waited_for_once_more() {
        let away = watcher::Error::NoResourceVersion;
        let gone = watcher::Error::WatchError(Box::new(kube::core::Status {
            code: 410,
            ..Default::default()
        }));
        let mut waits = Waits::default();
        let mut after = async |error| {
            let wait = waits.after(error);
            tokio::time::advance(wait).await;
            wait
        };
        for _ in 0..10 {
            after(&away).await;
        }
        assert!(after(&away).await >= LONGEST_WAIT);
        assert!(after(&gone).await < Duration::from_secs(2));
        // One that says so each time is asked for fewer and fewer lists.
        for _ in 0..10 {
            after(&gone).await;
        }
        assert!(after(&gone).await >= LONGEST_WAIT);
    }

    #[test]
    fn what_a_new_list_lacks_is_removed_when_the_list_is_complete_and_not_before() {
        let mut names = Names::default();
        let mut hear = |event| names.messages(Source::Services, event);
        hear(Event::Init);
        hear(Event::InitApply(service("a")));
        hear(Event::InitApply(service("b")));
        assert_eq!(hear(Event::InitDone), [Message::Synced(Source::Services)]);
        hear(Event::Apply(service("c")));
        assert_eq!(hear(Event::Init), []);
        assert_eq!(hear(Event::InitApply(service("a"))).len(), 1);
        let end = hear(Event::InitDone);
        assert_eq!(removals(&end), ["default/b", "default/c"]);
        assert_eq!(end.last(), Some(&Message::Synced(Source::Services)));
    }
}
