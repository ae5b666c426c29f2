//! What of a kind can be asked for: the cells of the page. Which there are, the table of kinds says; which of them a
//! request is, its method, path and query say.

use std::collections::BTreeSet;

use control_plane_registry::{Kind, Subresource, kinds};

use crate::record::Asked;

/// Patches are four verbs to a server.
pub const PATCHES: &[(&str, &str)] = &[
    ("json", "application/json-patch+json"),
    ("merge", "application/merge-patch+json"),
    ("strategic", "application/strategic-merge-patch+json"),
    ("apply", "application/apply-patch+yaml"),
];

/// One thing that can be asked of one kind. Sorted as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// A verb on the kind itself: `create`, `patch json`.
    Verb(String),
    /// A list or watch by labels.
    Labels,
    /// A list or watch by one field.
    Field(String),
    /// A subresource's name and verb.
    Subresource(String, String),
}

/// Everything that is served of a kind.
#[must_use]
pub fn served(kind: &Kind) -> Vec<Cell> {
    let mut cells: Vec<Cell> = verbs(kind.verbs).map(Cell::Verb).collect();
    if kind.verbs.contains(&"list") {
        cells.push(Cell::Labels);
        cells.push(Cell::Field("metadata.name".into()));
        if kind.namespaced {
            cells.push(Cell::Field("metadata.namespace".into()));
        }
        let own = kind.fields.iter();
        cells.extend(own.map(|field| Cell::Field(field.name.to_owned())));
    }
    for subresource in kind.subresources {
        let all = verbs(subresource.verbs());
        // A Scale is no stored object that could have owners of fields.
        let served = all.filter(|verb| *subresource != Subresource::Scale || verb != "patch apply");
        cells.extend(served.map(|verb| Cell::Subresource(subresource.name().to_owned(), verb)));
    }
    cells
}

/// The verbs, with one for each kind of patch.
fn verbs(verbs: &'static [&'static str]) -> impl Iterator<Item = String> {
    verbs.iter().flat_map(|verb| match *verb {
        "patch" => PATCHES
            .iter()
            .map(|(name, _)| format!("patch {name}"))
            .collect(),
        verb => vec![verb.to_owned()],
    })
}

/// The kind that a request is about, and what it asks of it; nothing for discovery, custom resources and the like.
#[must_use]
pub fn asked(asked: &Asked) -> Option<(&'static Kind, BTreeSet<Cell>)> {
    let parts: Vec<&str> = asked
        .path
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let find = |plural: &str| kinds::find(group, version, plural);
    let rest = match rest {
        ["namespaces", _, plural, below @ ..] if find(plural).is_some_and(|k| k.namespaced) => {
            return Some(of(find(plural)?, below, asked));
        }
        rest => rest,
    };
    let (plural, below) = rest.split_first()?;
    Some(of(find(plural)?, below, asked))
}

fn of(kind: &'static Kind, below: &[&str], asked: &Asked) -> (&'static Kind, BTreeSet<Cell>) {
    let query = |name: &str| -> Option<String> {
        let mut pairs = asked
            .query
            .split('&')
            .filter_map(|part| part.split_once('='));
        let found = pairs.rfind(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_owned())
    };
    let watches = query("watch").is_some_and(|value| ["true", "1"].contains(&value.as_str()));
    let collection = below.is_empty();
    let verb = match asked.method.as_str() {
        "GET" if collection && watches => "watch".to_owned(),
        "GET" if collection => "list".to_owned(),
        "GET" => "get".to_owned(),
        "POST" => "create".to_owned(),
        "PUT" => "update".to_owned(),
        "DELETE" if collection => "deletecollection".to_owned(),
        "DELETE" => "delete".to_owned(),
        "PATCH" => {
            let media = asked.content_type.split(';').next().unwrap_or_default();
            let found = PATCHES.iter().find(|(_, patch)| *patch == media);
            format!("patch {}", found.map_or("unknown", |(name, _)| name))
        }
        other => other.to_lowercase(),
    };
    let mut cells = BTreeSet::new();
    if let [_, subresource, ..] = below {
        cells.insert(Cell::Subresource((*subresource).to_owned(), verb));
        return (kind, cells);
    }
    cells.insert(Cell::Verb(verb));
    if query("labelSelector").is_some_and(|selector| !selector.is_empty()) {
        cells.insert(Cell::Labels);
    }
    let selector = query("fieldSelector").unwrap_or_default();
    let selector = selector
        .replace("%2C", ",")
        .replace("%21", "!")
        .replace("%3D", "=");
    for term in selector.split(',') {
        if let Some((field, _)) = term.split_once('=') {
            cells.insert(Cell::Field(field.trim_end_matches('!').to_owned()));
        }
    }
    (kind, cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, query: &str, content_type: &str) -> Asked {
        Asked {
            test: "t".into(),
            method: method.into(),
            path: path.into(),
            query: query.into(),
            content_type: content_type.into(),
        }
    }

    fn cells(request: &Asked) -> Option<(String, Vec<Cell>)> {
        let (kind, cells) = asked(request)?;
        Some((kind.resource(), cells.into_iter().collect()))
    }

    #[test]
    fn requests_are_what_they_ask_for() {
        let verb = |text: &str| Cell::Verb(text.to_owned());
        let found = cells(&request(
            "GET",
            "/api/v1/namespaces/a/pods",
            "labelSelector=a&fieldSelector=status.phase%21%3DRunning%2Cspec.nodeName%3Dn",
            "",
        ));
        let fields = ["spec.nodeName", "status.phase"].map(|f| Cell::Field(f.into()));
        let mut want = vec![verb("list"), Cell::Labels];
        want.extend(fields);
        assert_eq!(found, Some(("pods".into(), want)));
        assert_eq!(
            cells(&request(
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "",
                "application/merge-patch+json"
            )),
            Some((
                "deployments.apps".into(),
                vec![Cell::Subresource("scale".into(), "patch merge".into())]
            ))
        );
        assert_eq!(
            cells(&request("GET", "/api/v1/namespaces/a", "", "")),
            Some(("namespaces".into(), vec![verb("get")]))
        );
        assert_eq!(
            cells(&request("PUT", "/api/v1/namespaces/a/finalize", "", "")),
            Some((
                "namespaces".into(),
                vec![Cell::Subresource("finalize".into(), "update".into())]
            ))
        );
        assert_eq!(
            cells(&request("GET", "/api/v1/pods", "watch=1", "")),
            Some(("pods".into(), vec![verb("watch")]))
        );
        assert_eq!(
            cells(&request("GET", "/apis/example.com/v1/things", "", "")),
            None
        );
        assert_eq!(cells(&request("GET", "/version", "", "")), None);
    }

    #[test]
    fn everything_that_is_served_is_a_cell_once() {
        for kind in kinds::all() {
            let cells = served(kind);
            let distinct: BTreeSet<_> = cells.iter().collect();
            assert_eq!(cells.len(), distinct.len(), "{}", kind.plural);
        }
    }
}
