//! Custom resources: the rows that CustomResourceDefinitions add while the server runs.

mod columns;
mod expressions;
mod rules;
mod structural;

use serde_json::Value;

use crate::errors::FieldError;
use crate::json::Json;
use crate::kinds::{Kind, ROW, ScalePaths, SelectableField, Subresource, VERBS};
use crate::schema::Type;
use crate::strategies::Strategy;

pub use columns::Path;
pub use expressions::Rules;

/// What a row of a custom resource has beside that of a built-in kind.
#[derive(Debug)]
pub struct Custom {
    pub of: Type,
    /// The `openAPIV3Schema` of the version.
    pub schema: Value,
    /// What the schema says in CEL; `None`: nothing.
    pub rules: Option<Rules>,
    /// The `apiVersion` in which objects are stored; versions differ in nothing else (conversion strategy None).
    pub stored: String,
    /// What definition, and which state of it, the row is of.
    pub source: String,
}

const STRATEGY: Strategy = Strategy {
    generation: true,
    ..Strategy::PLAIN
};

/// Says when the rows of a definition must be made anew.
#[must_use]
pub fn source(definition: &Value) -> String {
    format!(
        "{}/{}/{}",
        definition.text("/metadata/uid"),
        definition.integer("/metadata/generation").unwrap_or(0),
        definition.has("/metadata/deletionTimestamp")
    )
}

/// The rows of a definition, one for each served version, the preferred one first.
///
/// A row lives as long as the process, as the built-in ones do: requests and watches hold on to it. Definitions change
/// seldom, and each change costs a few kilobytes.
#[must_use]
pub fn rows(definition: &Value) -> Vec<&'static Kind> {
    let versions = definition.items("/spec/versions");
    let group = definition.text("/spec/group");
    let stored = versions.iter().find(|v| v.flag("/storage"));
    let stored = stored.map_or("", |v| v.text("/name"));
    let mut served: Vec<&Value> = versions.iter().filter(|v| v.flag("/served")).collect();
    served.sort_by_key(|v| std::cmp::Reverse(priority(v.text("/name"))));
    let made = served.into_iter().map(|version| {
        let kind: &'static Kind = Box::leak(Box::new(row(
            definition,
            version,
            &format!("{group}/{stored}"),
        )));
        kind
    });
    made.collect()
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn leak_all(texts: &[Value]) -> &'static [&'static str] {
    let texts: Vec<&'static str> = texts.iter().filter_map(Value::as_str).map(leak).collect();
    texts.leak()
}

fn row(definition: &Value, version: &Value, stored: &str) -> Kind {
    let names = &definition["spec"]["names"];
    let group = leak(definition.text("/spec/group"));
    let plural = leak(names.text("/plural"));
    let schema = version["schema"]["openAPIV3Schema"].clone();
    let custom = Custom {
        of: structural::object_type(names.text("/kind"), &schema),
        rules: Rules::compile(&schema),
        schema,
        stored: stored.to_owned(),
        source: source(definition),
    };
    let mut subresources = Vec::new();
    let scale = version.has("/subresources/scale").then(|| {
        subresources.push(Subresource::Scale);
        let pointer = |field: &str| {
            let path = Path::parse(version.text(&format!("/subresources/scale/{field}"))).ok();
            leak(&path.and_then(|p| p.pointer()).unwrap_or_default())
        };
        ScalePaths {
            spec_replicas: pointer("specReplicasPath"),
            status_replicas: pointer("statusReplicasPath"),
            selector: pointer("labelSelectorPath"),
        }
    });
    if version.has("/subresources/status") {
        subresources.push(Subresource::Status);
    }
    let fields: Vec<SelectableField> = version
        .items("/selectableFields")
        .iter()
        .filter_map(|field| {
            let path = field.text("/jsonPath");
            Some(SelectableField {
                name: leak(path.trim_start_matches('.')),
                pointer: leak(&Path::parse(path).ok()?.pointer()?),
                absent: "",
            })
        })
        .collect();
    // Nothing new comes while what there is is removed.
    let ending = definition.has("/metadata/deletionTimestamp");
    Kind {
        group,
        version: leak(version.text("/name")),
        kind: leak(names.text("/kind")),
        plural,
        singular: leak(names.text("/singular")),
        short_names: leak_all(names.items("/shortNames")),
        categories: leak_all(names.items("/categories")),
        namespaced: definition.text("/spec/scope") == "Namespaced",
        prefix: leak(&format!("/registry/{group}/{plural}/")),
        verbs: if ending { &VERBS[1..] } else { &VERBS },
        subresources: subresources.leak(),
        scale,
        fields: fields.leak(),
        printer: columns::printer(version),
        strategy: STRATEGY,
        custom: Some(Box::leak(Box::new(custom))),
        ..ROW
    }
}

/// v2 before v1 before v1beta1 before v1alpha1 before anything else.
fn priority(version: &str) -> (u8, u32, u32) {
    let parts = || {
        let rest = version.strip_prefix('v')?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        Some(match &rest[end..] {
            "" => (3, major, 0),
            word => match (word.strip_prefix("beta"), word.strip_prefix("alpha")) {
                (Some(minor), _) => (2, major, minor.parse().ok()?),
                (_, Some(minor)) => (1, major, minor.parse().ok()?),
                _ => return None,
            },
        })
    };
    parts().unwrap_or_default()
}

impl Custom {
    pub fn default(&self, object: &mut Value) {
        structural::default(&self.schema, object);
    }

    pub fn check(&self, object: &Value, errors: &mut Vec<FieldError>) {
        rules::check(&self.schema, object, "", errors);
    }

    /// Holds an object without other faults against the schema's rules in CEL; `old` is the object before the change.
    pub fn hold(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        if let Some(rules) = &self.rules {
            rules.hold(object, old, errors);
        }
    }
}
