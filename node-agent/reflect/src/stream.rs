//! One list-and-watch a kind, all into one channel.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
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
    let mut stream = watcher::watcher(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut mirror = Names::default();
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                warn!(
                    source = source.label(),
                    error = &error as &dyn std::error::Error,
                    "watch failed, listing again"
                );
                continue;
            }
        };
        for message in mirror.messages(source, event) {
            if out.send(message).await.is_err() {
                return;
            }
        }
    }
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
                let gone: Vec<_> = self.known.difference(&self.listed).cloned().collect();
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
