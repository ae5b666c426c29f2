//! What somebody wants to do, in the words of roles.

use crate::attributes::Attributes;

/// One action, whose author is decided about.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    pub verb: &'a str,
    pub on: On<'a>,
}

/// What it is done to.
#[derive(Clone, Copy, Debug)]
pub enum On<'a> {
    Resource(Resource<'a>),
    Path(&'a str),
}

/// A resource, or an object of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resource<'a> {
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty: the whole cluster.
    pub namespace: &'a str,
    /// Empty: all, or one that is not known yet.
    pub name: &'a str,
}

impl<'a> Action<'a> {
    /// The action that a request is.
    pub fn of(attributes: &'a Attributes) -> Self {
        let on = match attributes.kind() {
            None => On::Path(&attributes.path),
            Some(kind) => On::Resource(Resource {
                group: kind.group,
                resource: kind.plural,
                subresource: attributes.subresource(),
                namespace: attributes.namespace(),
                name: attributes.name(),
            }),
        };
        Self {
            verb: attributes.verb,
            on,
        }
    }

    /// Where it is done; empty: in the whole cluster.
    pub fn namespace(&self) -> &'a str {
        match self.on {
            On::Resource(resource) => resource.namespace,
            On::Path(_) => "",
        }
    }

    /// As a refusal says it, after `cannot `.
    pub fn describe(&self) -> String {
        let verb = self.verb;
        let resource = match self.on {
            On::Path(path) => return format!("{verb} path {path:?}"),
            On::Resource(resource) => resource,
        };
        let name = match resource.subresource {
            "" => resource.resource.to_owned(),
            subresource => format!("{}/{subresource}", resource.resource),
        };
        let place = match resource.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let group = resource.group;
        format!("{verb} resource {name:?} in API group {group:?} {place}")
    }
}
