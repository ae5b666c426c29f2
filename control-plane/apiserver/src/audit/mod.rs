//! The audit log: who did what, when, and with which result, as lines of `audit.k8s.io/v1` `Event`.
//!
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>

mod file;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::response::Response;
use control_plane_registry::decode::{self, Format};
use control_plane_registry::errors::Result;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::User;
use crate::attributes::Attributes;
use crate::{body, negotiate};

pub use file::{FileOptions, Log};
pub use policy::{Decision, Level, Policy, PolicyError};

/// A policy and the log that it fills.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    log: Log,
}

/// Moments of a request at which an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// Before anything was done.
    RequestReceived,
    /// The head of a long-running answer was sent.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// The server failed while it answered.
    Panic,
}

/// One request that is recorded; its last event is written when it is dropped.
#[derive(Debug)]
pub struct Record {
    audit: Arc<Audit>,
    decision: Decision,
    event: Value,
}

impl Audit {
    #[must_use]
    pub fn new(policy: Policy, log: Log) -> Self {
        Self { policy, log }
    }

    /// Begins to record a request, if the policy wants it.
    pub fn begin(
        self: &Arc<Self>,
        id: &str,
        user: &User,
        attributes: &Attributes,
        head: &Parts,
    ) -> Option<Record> {
        let decision = self.policy.decide(user, attributes);
        if decision.level == Level::None {
            return None;
        }
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": format!("{:?}", decision.level),
            "auditID": id,
            "requestURI": head.uri.to_string(),
            "verb": attributes.verb,
            "user": user.info(),
            "sourceIPs": sources(head),
            "requestReceivedTimestamp": now(),
        });
        if let Some(agent) = head.headers.get(header::USER_AGENT) {
            event["userAgent"] = String::from_utf8_lossy(agent.as_bytes()).into();
        }
        if let Some(reference) = object_reference(attributes) {
            event["objectRef"] = reference;
        }
        let record = Record {
            audit: self.clone(),
            decision,
            event,
        };
        record.write(Stage::RequestReceived);
        Some(record)
    }
}

impl Record {
    /// Notes the body of the request, if that is recorded, and hands it on.
    ///
    /// # Errors
    /// The body cannot be read.
    pub async fn request_body(&mut self, headers: &HeaderMap, body: Body) -> Result<Body> {
        if self.decision.level < Level::Request || body.is_end_stream() {
            return Ok(body);
        }
        let bytes = body::read(body).await?;
        let format = negotiate::format(headers).unwrap_or(Format::Json);
        if let Ok(parsed) = decode::parse(&bytes, format) {
            self.event["requestObject"] = self.shown(parsed.value);
        }
        Ok(Body::from(bytes))
    }

    /// Notes the decision of the authorizer.
    pub fn decided(&mut self, allowed: bool, reason: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.event["annotations"]["authorization.k8s.io/decision"] = decision.into();
        self.event["annotations"]["authorization.k8s.io/reason"] = reason.into();
    }

    /// Notes who the user acts as.
    pub fn impersonates(&mut self, user: &User) {
        self.event["impersonatedUser"] = user.info();
    }

    /// Notes the answer, which for a long-running request only begins here.
    pub async fn answer(&mut self, response: Response, long_running: bool) -> Response {
        let status = response.status();
        self.event["responseStatus"] = json!({"metadata": {}, "code": status.as_u16()});
        if long_running && status.is_success() {
            self.write(Stage::ResponseStarted);
            return response;
        }
        let failed = status.is_client_error() || status.is_server_error();
        let wanted = self.decision.level == Level::RequestResponse || failed;
        // Only what is in memory already: an answer that is still being made is not held up.
        if !wanted || response.body().size_hint().exact().is_none() {
            return response;
        }
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX)
            .await
            .unwrap_or_default();
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
            self.note_answer(parts.status, value);
        }
        Response::from_parts(parts, Body::from(bytes))
    }

    fn note_answer(&mut self, status: StatusCode, value: Value) {
        if value["kind"] == "Status" {
            for field in ["status", "message", "reason", "details"] {
                if let Some(said) = value.get(field) {
                    self.event["responseStatus"][field] = said.clone();
                }
            }
            self.event["responseStatus"]["code"] = status.as_u16().into();
        }
        if self.decision.level == Level::RequestResponse {
            self.event["responseObject"] = self.shown(value);
        }
    }

    fn shown(&self, mut object: Value) -> Value {
        if self.decision.omit_managed_fields {
            let without = |object: &mut Value| {
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
            };
            if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
                items.iter_mut().for_each(without);
            }
            if object.get("metadata").is_some() {
                without(&mut object);
            }
        }
        object
    }

    fn write(&self, stage: Stage) {
        if self.decision.omit.contains(&stage) {
            return;
        }
        let mut event = self.event.clone();
        event["stage"] = format!("{stage:?}").into();
        event["stageTimestamp"] = now().into();
        self.audit.log.write(event.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write(Stage::ResponseComplete);
    }
}

/// The client's addresses: those that proxies name, and the one that the connection comes from.
fn sources(head: &Parts) -> Vec<String> {
    let forwarded = head.headers.get_all("x-forwarded-for").into_iter();
    let named = forwarded
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|part| part.trim().parse::<IpAddr>().ok());
    let mut addresses: Vec<String> = named.map(|address| address.to_string()).collect();
    if let Some(ConnectInfo(peer)) = head.extensions.get::<ConnectInfo<SocketAddr>>() {
        let peer = peer.ip().to_string();
        if addresses.last() != Some(&peer) {
            addresses.push(peer);
        }
    }
    addresses
}

fn object_reference(attributes: &Attributes) -> Option<Value> {
    let kind = attributes.kind()?;
    let mut reference = json!({"resource": kind.plural, "apiVersion": kind.version});
    for (field, value) in [
        ("apiGroup", kind.group),
        ("namespace", attributes.namespace()),
        ("name", attributes.name()),
        ("subresource", attributes.subresource()),
    ] {
        if !value.is_empty() {
            reference[field] = value.into();
        }
    }
    Some(reference)
}

/// With microseconds, as Kubernetes' `MicroTime`.
fn now() -> String {
    Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}
