//! What a request is, read off its method, path and query once for everybody who decides by it: authorization, fair
//! queues, audit, metrics, and the verbs themselves.

use axum::extract::Request;
use control_plane_registry::{Kind, Kinds, Subresource};
use http::Method;

use crate::path::{self, Parsed, Target};
use crate::query::Query;

/// The words of one request, as Kubernetes' authorizers know them.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path that is no
    /// resource the method in lower case.
    pub verb: &'static str,
    pub parsed: Parsed,
    /// As the client wrote it, without the query.
    pub path: String,
}

impl Attributes {
    pub fn of(kinds: &Kinds, request: &Request) -> Self {
        let uri = request.uri();
        let parsed = path::parse(kinds, uri.path());
        let verb = match &parsed {
            Parsed::Resource(target) => resource_verb(target, request.method(), uri.query()),
            _ => plain_verb(request.method()),
        };
        Self {
            verb,
            parsed,
            path: uri.path().to_owned(),
        }
    }

    /// The resource that is asked about, if it is one.
    pub fn target(&self) -> Option<&Target> {
        match &self.parsed {
            Parsed::Resource(target) => Some(target),
            _ => None,
        }
    }

    pub fn kind(&self) -> Option<&'static Kind> {
        self.target().map(|target| target.kind.0)
    }

    /// Empty when there is none.
    pub fn subresource(&self) -> &'static str {
        let subresource = self.target().and_then(|target| target.subresource);
        subresource.map_or("", Subresource::name)
    }

    pub fn namespace(&self) -> &str {
        self.target().map_or("", |target| &target.namespace)
    }

    pub fn name(&self) -> &str {
        self.target().map_or("", |target| &target.name)
    }

    /// Requests that last as long as the client likes: no timeout ends them and they hold no seat.
    pub fn long_running(&self) -> bool {
        let streams = self.target().and_then(|target| target.subresource);
        self.verb == "watch"
            || streams.is_some_and(|subresource| {
                matches!(
                    subresource,
                    Subresource::Attach
                        | Subresource::Exec
                        | Subresource::Log
                        | Subresource::PortForward
                        | Subresource::Proxy
                )
            })
    }

    pub fn mutates(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }

    /// Kubernetes' word for how much a request is about.
    pub fn scope(&self) -> &'static str {
        match self.target() {
            None => "",
            Some(target) if !target.name.is_empty() || self.verb == "create" => "resource",
            Some(target) if !target.namespace.is_empty() => "namespace",
            Some(_) => "cluster",
        }
    }
}

fn resource_verb(target: &Target, method: &Method, query: Option<&str>) -> &'static str {
    let collection = target.name.is_empty();
    match *method {
        Method::GET | Method::HEAD => {
            let asks = query.is_some_and(|q| q.contains("watch"));
            if target.watch || (asks && Query::parse(query).flag("watch")) {
                "watch"
            } else if collection {
                "list"
            } else {
                "get"
            }
        }
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => plain_verb(method),
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use control_plane_registry::kinds;

    use super::*;

    fn of(method: &str, uri: &str) -> Attributes {
        let request = http::Request::builder().method(method).uri(uri);
        let kinds = Kinds::new(kinds::all().collect());
        Attributes::of(&kinds, &request.body(Body::empty()).unwrap())
    }

    #[test]
    fn verbs_are_those_that_roles_name() {
        for (method, uri, verb) in [
            ("GET", "/api/v1/pods", "list"),
            ("GET", "/api/v1/pods?watch=1", "watch"),
            ("GET", "/api/v1/pods?watch=0&labelSelector=watch", "list"),
            ("GET", "/api/v1/watch/pods", "watch"),
            ("GET", "/api/v1/namespaces/a/pods/p", "get"),
            ("POST", "/api/v1/namespaces/a/pods/p/eviction", "create"),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection"),
            ("DELETE", "/api/v1/namespaces/a/pods/p", "delete"),
            ("GET", "/healthz", "get"),
            ("POST", "/healthz", "post"),
        ] {
            assert_eq!(of(method, uri).verb, verb, "{method} {uri}");
        }
    }

    #[test]
    fn what_lasts_as_long_as_the_client_likes() {
        assert!(of("GET", "/api/v1/pods?watch=true").long_running());
        assert!(of("GET", "/api/v1/namespaces/a/pods/p/log").long_running());
        assert!(of("POST", "/api/v1/nodes/n/proxy/x").long_running());
        assert!(!of("GET", "/api/v1/namespaces/a/pods/p/status").long_running());
        assert!(!of("PUT", "/api/v1/namespaces/a/pods/p/status").long_running());
    }
}
