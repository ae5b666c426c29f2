//! ValidatingAdmissionPolicies and their bindings: rules in CEL that writes are held against.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>

use std::collections::BTreeMap;
use std::sync::Arc;

use control_plane_cel::{Budget, Program, Value as Cel, from_json};
use control_plane_registry::admission::Proposed;
use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, Kind, Reason, Registry, kinds, labels};
use serde_json::Value;

use super::matching::{self, Conditions, Matching, STEPS};

const GROUP: &str = "admissionregistration.k8s.io";
const NAMES: [&str; 6] = [
    "object",
    "oldObject",
    "request",
    "params",
    "namespaceObject",
    "variables",
];

/// All bindings, each with its policy.
#[derive(Debug, Default)]
pub struct Policies(Vec<(Binding, Arc<Policy>)>);

#[derive(Debug)]
struct Policy {
    name: String,
    matching: Matching,
    conditions: Conditions,
    /// `apiVersion` and `kind` of parameters; empty: it has none.
    parameters: (String, String),
    variables: Vec<(String, Program)>,
    validations: Vec<Validation>,
    may_fail: bool,
}

#[derive(Debug)]
struct Validation {
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: Reason,
}

#[derive(Debug)]
struct Binding {
    name: String,
    /// `None`: whatever the policy is about.
    matching: Option<Matching>,
    /// `paramRef`.
    parameters: Value,
    denies: bool,
    warns: bool,
}

/// The kinds that policies are made of: policies, bindings.
pub fn kinds_followed() -> [&'static Kind; 2] {
    [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ]
    .map(|plural| {
        kinds::find(GROUP, "v1", plural)
            .expect("the table of kinds has the rows of admissionregistration.k8s.io")
    })
}

impl Policies {
    pub fn compile(registry: &Registry) -> Self {
        let [policies, bindings] = kinds_followed();
        let policies = registry.objects(policies).into_iter();
        let policies: BTreeMap<String, Arc<Policy>> = policies
            .map(|policy| {
                (
                    policy.name.to_string(),
                    Arc::new(Policy::read(&policy.value())),
                )
            })
            .collect();
        let bindings = registry.objects(bindings).into_iter();
        let pairs = bindings.filter_map(|binding| {
            let binding = binding.value();
            let policy = policies.get(binding.text("/spec/policyName"))?;
            Some((Binding::read(&binding), policy.clone()))
        });
        Self(pairs.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Holds a write against all; answers what its author is to be warned of.
    ///
    /// # Errors
    /// The first denial.
    pub fn judge(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
        request: &Value,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        // Nobody may lock himself out of the very objects that would let him in again.
        if proposed.kind.group == GROUP && proposed.kind.plural.contains("admissionpolic") {
            return Ok(warnings);
        }
        for (binding, policy) in &self.0 {
            let narrowed = binding.matching.as_ref();
            let about = policy.matching.is_about(registry, proposed, object)
                && narrowed.is_none_or(|matching| matching.narrows(registry, proposed, object));
            if !about {
                continue;
            }
            let mut variables = matching::variables(request, object, proposed);
            let namespace = matching::namespace(registry, proposed).unwrap_or_default();
            variables.push(("namespaceObject", from_json(&namespace, &Value::Null)));
            for (reason, why) in policy.hold(registry, proposed, binding, &variables) {
                let by = format!(
                    "ValidatingAdmissionPolicy '{}' with binding '{}'",
                    policy.name, binding.name
                );
                if binding.denies {
                    let text = format!("{by} denied request: {why}");
                    return Err(denied(proposed, reason, &text));
                }
                if binding.warns {
                    warnings.push(format!("Validation failed for {by}: {why}"));
                }
            }
        }
        Ok(warnings)
    }
}

fn denied(proposed: &Proposed<'_>, reason: Reason, text: &str) -> ApiError {
    let mut error = ApiError::forbidden(proposed.kind, proposed.name, text);
    error.reason = reason;
    error.code = match reason {
        Reason::Unauthorized => 401,
        Reason::RequestEntityTooLarge => 413,
        Reason::Invalid => 422,
        _ => 403,
    };
    error
}

impl Policy {
    fn read(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let matching = serde_json::from_value(spec["matchConstraints"].clone());
        let program = |of: &Value, field: &str| {
            let source = of.text(&format!("/{field}"));
            (!source.is_empty()).then(|| matching::program(source, &NAMES))?
        };
        let variables = spec.items("/variables").iter().filter_map(|variable| {
            Some((
                variable.text("/name").to_owned(),
                program(variable, "expression")?,
            ))
        });
        let validations = spec.items("/validations").iter().filter_map(|validation| {
            Some(Validation {
                program: program(validation, "expression")?,
                message: validation.text("/message").to_owned(),
                message_program: program(validation, "messageExpression"),
                reason: match validation.text("/reason") {
                    "Forbidden" => Reason::Forbidden,
                    "Unauthorized" => Reason::Unauthorized,
                    "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
                    _ => Reason::Invalid,
                },
            })
        });
        let kind = |field: &str| spec.text(&format!("/paramKind/{field}")).to_owned();
        Self {
            name: policy.text("/metadata/name").to_owned(),
            // What was validated when it was stored can be read.
            matching: matching.unwrap_or_default(),
            conditions: Conditions::compile(spec.items("/matchConditions"), &NAMES),
            parameters: (kind("apiVersion"), kind("kind")),
            variables: variables.collect(),
            validations: validations.collect(),
            may_fail: spec.text("/failurePolicy") == "Ignore",
        }
    }

    /// What is wrong with a write by this policy, with each of the binding's parameters.
    fn hold(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        binding: &Binding,
        variables: &[(&'static str, Cel)],
    ) -> Vec<(Reason, String)> {
        let mut faults = Vec::new();
        let mut budget = Budget::new(STEPS);
        let failed = |why: String| (!self.may_fail).then_some((Reason::Invalid, why));
        let parameters = match self.find_parameters(registry, proposed, binding) {
            Ok(parameters) => parameters,
            Err(why) => {
                return failed(format!("failed to configure binding: {why}"))
                    .into_iter()
                    .collect();
            }
        };
        for parameter in parameters {
            let mut variables = variables.to_vec();
            variables.push(("params", from_json(&parameter, &Value::Null)));
            match self.conditions.hold(&variables, &mut budget) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => {
                    faults.extend(failed(why));
                    continue;
                }
            }
            let composed = self.compose(&mut variables, &mut budget);
            variables.push(("variables", composed));
            for validation in &self.validations {
                match validation.program.holds(&variables, &mut budget) {
                    Ok(true) => {}
                    Ok(false) => {
                        faults.push((validation.reason, validation.says(&variables, &mut budget)))
                    }
                    Err(failure) => faults.extend(failed(format!(
                        "expression '{}' resulted in error: {failure}",
                        validation.program.source()
                    ))),
                }
            }
        }
        faults
    }

    /// The policy's own variables, of which a later one may use those before it. One that fails is not there for those
    /// who use it.
    fn compose(&self, variables: &mut Vec<(&'static str, Cel)>, budget: &mut Budget) -> Cel {
        let mut made: BTreeMap<String, Cel> = BTreeMap::new();
        for (name, program) in &self.variables {
            variables.push(("variables", Cel::map(made.clone())));
            if let Ok(value) = program.run(variables, budget) {
                made.insert(name.clone(), value);
            }
            variables.pop();
        }
        Cel::map(made)
    }

    /// The objects that the policy is to be worked out with; one null where it has no parameters.
    fn find_parameters(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        binding: &Binding,
    ) -> std::result::Result<Vec<Value>, String> {
        let (api_version, kind) = &self.parameters;
        if kind.is_empty() || binding.parameters.is_null() {
            return Ok(vec![Value::Null]);
        }
        let served = registry.kinds();
        let of = served
            .all()
            .find(|k| k.kind == kind && k.api_version() == *api_version);
        let of = of.ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'")
        })?;
        let given = binding.parameters.text("/namespace");
        let namespace = match (of.namespaced, given) {
            (false, _) => "",
            (true, "") => proposed.namespace,
            (true, given) => given,
        };
        let name = binding.parameters.text("/name");
        let selector = &binding.parameters["selector"];
        let found: Vec<Value> = match name {
            "" => registry
                .objects(of)
                .into_iter()
                .filter(|object| *object.namespace == *namespace)
                .map(|object| object.value())
                .filter(|object| labels::selects(selector, object.object("/metadata/labels")))
                .collect(),
            name => registry
                .peek(of, namespace, name)
                .map(|object| object.value())
                .into_iter()
                .collect(),
        };
        if found.is_empty() && binding.parameters.text("/parameterNotFoundAction") != "Allow" {
            return Err(
                "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
            );
        }
        Ok(found)
    }
}

impl Validation {
    fn says(&self, variables: &[(&str, Cel)], budget: &mut Budget) -> String {
        let made = self
            .message_program
            .as_ref()
            .map(|program| program.run(variables, budget));
        match made {
            Some(Ok(Cel::String(text))) if !text.trim().is_empty() => text.to_string(),
            _ if self.message.is_empty() => {
                format!("failed expression: {}", self.program.source().trim())
            }
            _ => self.message.clone(),
        }
    }
}

impl Binding {
    fn read(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let matching = spec
            .has("/matchResources")
            .then(|| spec["matchResources"].clone());
        let acts = |action: &str| spec.items("/validationActions").iter().any(|a| a == action);
        Self {
            name: binding.text("/metadata/name").to_owned(),
            matching: matching.map(|matching| serde_json::from_value(matching).unwrap_or_default()),
            parameters: spec["paramRef"].clone(),
            denies: acts("Deny"),
            warns: acts("Warn"),
        }
    }
}
