//! What a path below `/api` and `/apis` names.

use control_plane_registry::{Kind, Kinds, Subresource};

/// A resource that a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: KindRef,
    /// Empty: all namespaces, or a cluster-scoped kind.
    pub namespace: String,
    /// Empty: the collection.
    pub name: String,
    pub subresource: Option<Subresource>,
    /// The old form `/api/v1/watch/...`.
    pub watch: bool,
}

/// A row of the kind table, compared by identity.
#[derive(Clone, Copy, Debug)]
pub struct KindRef(pub &'static Kind);

impl PartialEq for KindRef {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for KindRef {}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    Root,
    /// `/apis/GROUP`.
    Group(&'static str),
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Versions {
        group: &'static str,
        version: &'static str,
    },
    Resource(Target),
    /// Below a known group and version, but nothing that is served.
    UnknownResource,
    /// Nothing of the API.
    Nothing,
}

/// Reads a path, percent-decoded part by part, by the kinds that are served.
pub fn parse(kinds: &Kinds, path: &str) -> Parsed {
    let parts: Vec<String> = path
        .split('/')
        .filter(|p| !p.is_empty())
        .map(crate::query::decode)
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        [] => return Parsed::Root,
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group] => {
            return known_group(kinds, group).map_or(Parsed::Nothing, Parsed::Group);
        }
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Parsed::Nothing,
    };
    let known = kinds
        .all()
        .find(|k| k.group == group && k.version == version)
        .map(|k| (k.group, k.version));
    let Some((group, version)) = known else {
        return Parsed::Nothing;
    };
    match rest {
        [] => Parsed::Versions { group, version },
        ["watch", rest @ ..] => resource(kinds, group, version, rest, true),
        rest => resource(kinds, group, version, rest, false),
    }
}

fn resource(kinds: &Kinds, group: &str, version: &str, rest: &[&str], watch: bool) -> Parsed {
    let find = |plural: &str| kinds.find(group, version, plural);
    // Namespaces are themselves objects: their subresources look like a namespaced collection.
    let own = |part: &str| ["status", "finalize"].contains(&part);
    let (namespace, plural, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if !own(plural) => (*namespace, *plural, rest),
        [plural, rest @ ..] => ("", *plural, rest),
        [] => return Parsed::UnknownResource,
    };
    let Some(kind) = find(plural) else {
        return Parsed::UnknownResource;
    };
    if kind.namespaced == namespace.is_empty() && !(kind.namespaced && rest.is_empty()) {
        return Parsed::UnknownResource;
    }
    let mut target = Target {
        kind: KindRef(kind),
        namespace: namespace.to_owned(),
        name: String::new(),
        subresource: None,
        watch,
    };
    match rest {
        [] => {}
        [name] => (*name).clone_into(&mut target.name),
        [name, subresource, below @ ..] => {
            (*name).clone_into(&mut target.name);
            let found = kind.subresources.iter().find(|s| s.name() == *subresource);
            match found {
                // What lies below is the path at the other end.
                Some(found) if below.is_empty() || *found == Subresource::Proxy => {
                    target.subresource = Some(*found);
                }
                _ => return Parsed::UnknownResource,
            }
        }
    }
    Parsed::Resource(target)
}

fn known_group(kinds: &Kinds, name: &str) -> Option<&'static str> {
    kinds
        .all()
        .map(|kind| kind.group)
        .find(|group| *group == name && !group.is_empty())
}

#[cfg(test)]
mod tests {
    use control_plane_registry::kinds;

    use super::*;

    fn parse(path: &str) -> Parsed {
        super::parse(&Kinds::new(kinds::all().collect()), path)
    }

    fn target(path: &str) -> Option<(String, String, String, Option<Subresource>)> {
        match parse(path) {
            Parsed::Resource(t) => {
                Some((t.kind.0.plural.into(), t.namespace, t.name, t.subresource))
            }
            _ => None,
        }
    }

    #[test]
    fn resources() {
        let t = |a: &str, b: &str, c: &str, s| Some((a.to_owned(), b.to_owned(), c.to_owned(), s));
        assert_eq!(target("/api/v1/pods"), t("pods", "", "", None));
        assert_eq!(
            target("/api/v1/namespaces/a/pods"),
            t("pods", "a", "", None)
        );
        assert_eq!(
            target("/api/v1/namespaces/a/pods/p/status"),
            t("pods", "a", "p", Some(Subresource::Status))
        );
        assert_eq!(
            target("/api/v1/namespaces/a"),
            t("namespaces", "", "a", None)
        );
        assert_eq!(
            target("/api/v1/namespaces/a/finalize"),
            t("namespaces", "", "a", Some(Subresource::Finalize))
        );
        let proxied = t("nodes", "", "n", Some(Subresource::Proxy));
        assert_eq!(target("/api/v1/nodes/n/proxy"), proxied);
        assert_eq!(target("/api/v1/nodes/n/proxy/pods/x"), proxied);
        assert_eq!(target("/api/v1/namespaces/a/pods/p/log/x"), None);
        assert_eq!(target("/api/v1/nodes/n%2Fx"), t("nodes", "", "n/x", None));
        assert_eq!(
            target("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n"),
            t("leases", "kube-node-lease", "n", None)
        );
        assert_eq!(target("/api/v1/pods/p"), None);
        assert_eq!(target("/api/v1/namespaces/a/nodes"), None);
    }

    #[test]
    fn the_rest() {
        assert_eq!(parse("/"), Parsed::Root);
        assert_eq!(
            parse("/api/v1"),
            Parsed::Versions {
                group: "",
                version: "v1"
            }
        );
        assert_eq!(
            parse("/apis/discovery.k8s.io"),
            Parsed::Group("discovery.k8s.io")
        );
        assert_eq!(parse("/apis/example.com/v1/things"), Parsed::Nothing);
        assert_eq!(parse("/api/v1/podz"), Parsed::UnknownResource);
        assert_eq!(parse("/favicon.ico"), Parsed::Nothing);
    }
}
