//! API Priority and Fairness: a request waits until its priority level has seats for it, or is told to come back.
//!
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>

mod metrics;
mod queues;
mod rules;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, Registry};
use http::{HeaderName, Response};
use tokio::sync::oneshot;

use crate::access::User;
use crate::attributes::Attributes;
use crate::follow::Followed;
use crate::query::Query;
use crate::settings::Limits;

pub use metrics::FlowMetrics;
use queues::{Entry, Levels, Place, Ticket};
pub use rules::Origin;
use rules::{Rules, Schema};

/// A list takes one seat for each so many objects, and no more seats than this.
const OBJECTS_PER_SEAT: usize = 100;
const WIDEST: usize = 10;
/// A refused client may come back after so many seconds at least, and twice so many at most.
const RETRY_AFTER: u32 = 1;

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// What all requests share.
#[derive(Clone, Debug)]
pub struct FlowControl(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    rules: Followed<Rules>,
    levels: Mutex<Levels<oneshot::Sender<Seat>>>,
    metrics: FlowMetrics,
}

/// A request's class: what its answer says.
#[derive(Clone, Debug)]
pub struct Class(Arc<Schema>);

/// The seats of a running request; free again when dropped.
#[derive(Debug)]
pub struct Seat {
    control: FlowControl,
    place: Place,
    began: Instant,
    _running: metrics::Running,
}

/// A request in a queue; out of it when dropped.
struct Waiting<'a> {
    control: &'a FlowControl,
    ticket: Option<Ticket>,
}

impl FlowControl {
    /// Shares the seats of `limits` out among the levels. Nobody waits longer than a quarter of what a request may take.
    pub fn new(limits: &Limits, metrics: FlowMetrics) -> Self {
        Self(Arc::new(Inner {
            limits: limits.clone(),
            rules: Followed::new(rules::kinds_followed()),
            levels: Mutex::default(),
            metrics,
        }))
    }

    /// The class of a request, and a seat for it when its level has one, perhaps after a while.
    ///
    /// # Errors
    /// 429 when the level is full.
    pub async fn admit(
        &self,
        registry: &Registry,
        user: &User,
        attributes: &Attributes,
        origin: Origin<'_>,
        query: Option<&str>,
    ) -> (Option<Class>, Result<Option<Seat>>) {
        let rules = self.rules(registry);
        let Some(schema) = rules.classify(user, attributes) else {
            return (None, Ok(None));
        };
        let class = Some(Class(schema.clone()));
        let lasting = attributes.long_running() && attributes.verb != "watch";
        if schema.exempt || lasting {
            self.0.metrics.dispatched(schema);
            return (class, Ok(None));
        }
        let flow = schema.flow(user, attributes, origin);
        let width = width(registry, attributes, query);
        (class, self.sit_down(schema, flow, width).await.map(Some))
    }

    async fn sit_down(&self, schema: &Schema, flow: u64, width: u32) -> Result<Seat> {
        let metrics = &self.0.metrics;
        let (sender, receiver) = oneshot::channel();
        let entry = self.levels().enter(&schema.level, flow, width, sender);
        let ticket = match entry {
            Entry::Seated(place, _) => {
                metrics.dispatched(schema);
                return Ok(self.seat(place));
            }
            Entry::Refused(why) => return Err(self.refuse(schema, why)),
            Entry::Queued(ticket) => ticket,
        };
        let began = Instant::now();
        let _counted = metrics.waiting(schema);
        let mut waiting = Waiting {
            control: self,
            ticket: Some(ticket),
        };
        let longest = self.0.limits.request_timeout / 4;
        match tokio::time::timeout(longest, receiver).await {
            Ok(Ok(seat)) => {
                waiting.ticket = None;
                metrics.waited(schema, began.elapsed());
                metrics.dispatched(schema);
                Ok(seat)
            }
            _ => Err(self.refuse(schema, "time-out")),
        }
    }

    fn refuse(&self, schema: &Schema, why: &'static str) -> ApiError {
        self.0.metrics.rejected(schema, why);
        // Spread out: those who were refused together must not come back together.
        ApiError::too_many_requests(RETRY_AFTER + rand::random_range(0..=RETRY_AFTER))
    }

    /// The rules of now; a change of them changes the levels first.
    fn rules(&self, registry: &Registry) -> Arc<Rules> {
        self.0.rules.get(registry, |registry| {
            let Limits {
                reading, writing, ..
            } = self.0.limits;
            let rules = match self.0.limits.fairness {
                true => Rules::compile(registry, reading.saturating_add(writing)),
                false => Rules::plain(reading, writing),
            };
            self.levels().configure(&rules.limits);
            self.0.metrics.limits(&rules.limits);
            self.start_next();
            rules
        })
    }

    /// Lets those in whose turn it is.
    fn start_next(&self) {
        loop {
            let starting = self.levels().start();
            if starting.is_empty() {
                return;
            }
            for (place, sender) in starting {
                // Who has just gone leaves the seat by dropping it.
                drop(sender.send(self.seat(place)));
            }
        }
    }

    fn seat(&self, place: Place) -> Seat {
        Seat {
            control: self.clone(),
            _running: self.0.metrics.running(place.level(), place.width()),
            place,
            began: Instant::now(),
        }
    }

    fn levels(&self) -> MutexGuard<'_, Levels<oneshot::Sender<Seat>>> {
        let levels = &self.0.levels;
        levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Class {
    /// Says the class in the headers of an answer.
    pub fn mark<B>(&self, response: &mut Response<B>) {
        if self.0.uid.is_empty() {
            return;
        }
        let headers = response.headers_mut();
        headers.insert(SCHEMA_UID, self.0.uid.clone());
        headers.insert(LEVEL_UID, self.0.level_uid.clone());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let took = self.began.elapsed().as_secs_f64();
        self.control.levels().leave(&self.place, took);
        self.control.start_next();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.control.levels().give_up(&ticket);
        }
    }
}

/// How many seats a request takes: one, or more for a list (or a watch that begins with one) of many objects.
fn width(registry: &Registry, attributes: &Attributes, query: Option<&str>) -> u32 {
    let Some(kind) = attributes.kind() else {
        return 1;
    };
    let query = match attributes.verb {
        "list" => Query::parse(query),
        "watch" => {
            let query = Query::parse(query);
            let from_present = matches!(query.get("resourceVersion"), "" | "0");
            if !from_present && !query.flag("sendInitialEvents") {
                return 1;
            }
            query
        }
        _ => return 1,
    };
    let there = registry.count(kind, attributes.namespace());
    let objects = match query.get("limit").parse() {
        Ok(limit @ 1..) => there.min(limit),
        _ => there,
    };
    let seats = objects.div_ceil(OBJECTS_PER_SEAT).clamp(1, WIDEST);
    u32::try_from(seats).unwrap_or(1)
}
