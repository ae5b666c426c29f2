//! Which writes webhooks and policies are about: rules, selectors, and conditions in CEL.

use control_plane_cel::{Budget, Program, Value as Cel, Variable, from_json};
use control_plane_registry::admission::{Operation, Proposed};
use control_plane_registry::json::Json;
use control_plane_registry::{Registry, Subresource, kinds, labels};
use serde::Deserialize;
use serde_json::{Value, json};

/// Steps that the conditions of one hook or the expressions of one policy may take together, as in Kubernetes.
pub const STEPS: u64 = 10_000_000;

/// Rules and selectors.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Matching {
    #[serde(alias = "resourceRules")]
    rules: Vec<Rule>,
    exclude_resource_rules: Vec<Rule>,
    namespace_selector: Value,
    object_selector: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: String,
}

/// Conditions that all must hold.
#[derive(Debug, Default)]
pub struct Conditions(Vec<(String, Program)>);

impl Matching {
    /// Whether a write is one of those; `object` is the new object, none for a deletion.
    pub fn is_about(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> bool {
        self.rules.iter().any(|rule| rule.matches(proposed))
            && self.selects(registry, proposed, object)
    }

    /// As [`Matching::is_about`], where no rules are all rules.
    pub fn narrows(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> bool {
        (self.rules.is_empty() || self.rules.iter().any(|rule| rule.matches(proposed)))
            && self.selects(registry, proposed, object)
    }

    fn selects(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> bool {
        let mut excluded = self.exclude_resource_rules.iter();
        !excluded.any(|rule| rule.matches(proposed))
            && self.selects_namespace(registry, proposed, object)
            && self.selects_object(proposed, object)
    }

    fn selects_namespace(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> bool {
        if is_everything(&self.namespace_selector) {
            return true;
        }
        let selects = |value: &Value| {
            labels::selects(&self.namespace_selector, value.object("/metadata/labels"))
        };
        if proposed.kind.kind == "Namespace" && proposed.kind.group.is_empty() {
            return object.or(proposed.old).is_some_and(selects);
        }
        if !proposed.kind.namespaced {
            return true;
        }
        namespace(registry, proposed).is_some_and(|namespace| selects(&namespace))
    }

    fn selects_object(&self, proposed: &Proposed<'_>, object: Option<&Value>) -> bool {
        let selects = |value: &Value| {
            labels::selects(&self.object_selector, value.object("/metadata/labels"))
        };
        is_everything(&self.object_selector)
            || object.is_some_and(selects)
            || proposed.old.is_some_and(selects)
    }
}

/// The namespace of what is written.
pub fn namespace(registry: &Registry, proposed: &Proposed<'_>) -> Option<Value> {
    let namespaces =
        kinds::find("", "v1", "namespaces").expect("the table of kinds has a row for namespaces");
    let found = registry.peek(namespaces, "", proposed.namespace);
    found.map(|namespace| namespace.value())
}

impl Rule {
    fn matches(&self, proposed: &Proposed<'_>) -> bool {
        let kind = proposed.kind;
        let has = |list: &[String], word: &str| list.iter().any(|w| w == "*" || w == word);
        let operation = match proposed.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        };
        let scope = match self.scope.as_str() {
            "Cluster" => !kind.namespaced,
            "Namespaced" => kind.namespaced,
            _ => true,
        };
        let subresource = proposed.subresource.map_or("", Subresource::name);
        let named = |resource: &String| match resource.split_once('/') {
            None => subresource.is_empty() && (resource == "*" || resource == kind.plural),
            Some((plural, wanted)) => {
                (plural == "*" || plural == kind.plural)
                    && (wanted == "*" || (wanted == subresource && !subresource.is_empty()))
            }
        };
        scope
            && has(&self.operations, operation)
            && has(&self.api_groups, kind.group)
            && has(&self.api_versions, kind.version)
            && self.resources.iter().any(named)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == proposed.name))
    }
}

impl Conditions {
    /// The `matchConditions` of an object that was accepted.
    pub fn compile(list: &[Value], names: &[&str]) -> Self {
        let all = list.iter().filter_map(|condition| {
            let program = program(condition.text("/expression"), names)?;
            Some((condition.text("/name").to_owned(), program))
        });
        Self(all.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not is enough, even where another fails.
    ///
    /// # Errors
    /// Which one failed, and why.
    pub fn hold(&self, variables: &[(&str, Cel)], budget: &mut Budget) -> Result<bool, String> {
        let mut failed = Ok(true);
        for (name, program) in &self.0 {
            match program.holds(variables, budget) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(failure) => failed = Err(format!("match condition {name:?}: {failure}")),
            }
            if failed.is_err() && budget.left() == 0 {
                return failed;
            }
        }
        failed
    }
}

/// An expression that was accepted, over variables of these names.
pub fn program(source: &str, names: &[&str]) -> Option<Program> {
    let nothing = Value::Null;
    let variables: Vec<Variable<'_>> = names
        .iter()
        .map(|name| Variable {
            name,
            schema: &nothing,
        })
        .collect();
    // What was stored by an older server may be none.
    Program::compile(source, &variables)
        .inspect_err(|error| tracing::warn!(%error, source, "an expression is left out"))
        .ok()
}

/// The names that all expressions of admission know.
pub const NAMES: [&str; 3] = ["object", "oldObject", "request"];

/// Their values. `request` is the `AdmissionRequest`, whose objects have names of their own.
pub fn variables(
    request: &Value,
    object: Option<&Value>,
    proposed: &Proposed<'_>,
) -> Vec<(&'static str, Cel)> {
    let value = |json: Option<&Value>| from_json(json.unwrap_or(&Value::Null), &Value::Null);
    let mut about = request.clone();
    about.take_at("/object");
    about.take_at("/oldObject");
    vec![
        ("object", value(object)),
        ("oldObject", value(proposed.old)),
        ("request", value(Some(&about))),
    ]
}

fn is_everything(selector: &Value) -> bool {
    selector.is_null() || *selector == json!({})
}
