//! The way of every request through the server: bounded, authenticated, recorded, seated and authorized before its
//! handler sees it, and measured from end to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use control_plane_registry::errors::Result;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::access::User;
use crate::attributes::Attributes;
use crate::audit::Record;
use crate::flow::{Class, Origin, Seat};
use crate::{Api, compress, held, limits, respond};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What the stages before the handler found out, for the handler.
#[derive(Clone, Debug)]
pub struct Context {
    pub attributes: Arc<Attributes>,
    pub user: Arc<User>,
    /// Held by a watch until it has told what was there at its beginning.
    pub seat: Option<Arc<Seat>>,
}

/// One request on its way, with what its stages leave for the end.
struct Passage<'a> {
    api: &'a Api,
    attributes: Arc<Attributes>,
    id: HeaderValue,
    class: Option<Class>,
    record: Option<Record>,
    seat: Option<Arc<Seat>>,
    user: Option<Arc<User>>,
}

/// Takes a request through all stages.
pub async fn run(State(api): State<Api>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let attributes = Arc::new(Attributes::of(&api.registry.kinds(), &request));
    let running = api.metrics.begin(&attributes);
    let (head, body) = request.into_parts();
    let (method, uri) = (head.method.clone(), head.uri.clone());
    let gzip = compress::is_accepted(&head.headers);
    let mut passage = Passage {
        api: &api,
        id: audit_id(&head.headers),
        attributes: attributes.clone(),
        class: None,
        record: None,
        seat: None,
        user: None,
    };
    let tracing = api.settings.tracing.as_ref();
    let span = tracing.map(|tracing| tracing.begin(&attributes, &head, &passage.id));
    let answer = passage.answer(head, body, next);
    let answer = match &span {
        Some(span) => span.within(answer).await,
        None => answer.await,
    };
    let response = answer.unwrap_or_else(|error| respond::error(&error));
    let user = passage.user.take();
    let mut response = passage.finish(response).await;
    if gzip && !attributes.long_running() {
        response = compress::gzip(response);
    }
    let (took, status) = (began.elapsed(), response.status());
    running.end(status, took);
    if let Some(span) = span {
        span.end(user.as_deref(), status);
    }
    tracing::debug!(%method, %uri, status = status.as_u16(), ?took, "request");
    response
}

impl Passage<'_> {
    async fn answer(&mut self, mut head: Parts, body: Body, next: Next) -> Result<Response> {
        let Api {
            registry, access, ..
        } = self.api;
        let limits = &self.api.settings.limits;
        limits::check_head(&head, limits.header_bytes)?;
        let time = limits::time_for(head.uri.query(), limits.request_timeout)?;
        let (user, acting_as) = access.who(registry, &head)?;
        if let Some(audit) = &self.api.settings.audit {
            let id = self.id.to_str().unwrap_or_default();
            self.record = audit.begin(id, &user, &self.attributes, &head);
        }
        if let (Some(record), Some(other)) = (&mut self.record, &acting_as) {
            record.impersonates(other);
        }
        let user = acting_as.unwrap_or(user);
        self.user = Some(user.clone());
        self.sit_down(&user, &head).await?;
        access.check(registry, &user, &self.attributes, self.record.as_mut())?;
        let body = match &mut self.record {
            Some(record) => record.request_body(&head.headers, body).await?,
            None => body,
        };
        head.extensions.insert(Context {
            attributes: self.attributes.clone(),
            user,
            seat: self.seat.clone(),
        });
        let answer = next.run(Request::from_parts(head, body));
        if self.attributes.long_running() {
            return Ok(answer.await);
        }
        limits::within(time, answer).await
    }

    async fn sit_down(&mut self, user: &User, head: &Parts) -> Result<()> {
        let agent = head.headers.get(header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok());
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
        let origin = Origin {
            address: peer.map(|ConnectInfo(address)| address.ip()),
            agent: agent.unwrap_or_default(),
        };
        let (flow, registry) = (&self.api.flow, &self.api.registry);
        let query = head.uri.query();
        let admitted = flow.admit(registry, user, &self.attributes, origin, query);
        let (class, seat) = admitted.await;
        self.class = class;
        self.seat = seat?.map(Arc::new);
        Ok(())
    }

    /// Says in the answer what was found out on the way, and lets go what was held when the answer is sent.
    async fn finish(self, mut response: Response) -> Response {
        let lasting = self.attributes.long_running();
        let mut record = self.record;
        if let Some(record) = &mut record {
            response = record.answer(response, lasting).await;
        }
        if let Some(class) = self.class {
            class.mark(&mut response);
        }
        response.headers_mut().insert(AUDIT_ID, self.id);
        if lasting {
            // A watch has a clone of its seat, and gives it back when it has told what is there.
            held::until_sent(response, record)
        } else {
            held::until_sent(response, self.seat)
        }
    }
}

/// The client's own id for its request, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(AUDIT_ID).filter(|id| id.len() <= 64);
    given.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().hyphenated().to_string();
        HeaderValue::from_str(&id).expect("a UUID is ASCII")
    })
}
