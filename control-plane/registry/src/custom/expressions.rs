//! `x-kubernetes-validations`: rules in CEL that a schema has beside its own words.
//!
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>

use std::collections::BTreeMap;

use control_plane_cel::{Budget, Failure, Program, Value as Cel, Variable, from_json};
use serde_json::{Value, json};

use crate::errors::FieldError;
use crate::json::Json;

/// Steps that all rules of one object may take together, and that one rule may take at one place, as in Kubernetes.
const ALL_STEPS: u64 = 10_000_000;
const STEPS: u64 = 1_000_000;
const KEYWORD: &str = "/x-kubernetes-validations";

/// The rules of a schema, where they stand in it; nothing where there are none below.
#[derive(Debug)]
pub struct Rules {
    schema: Value,
    here: Vec<Rule>,
    properties: BTreeMap<String, Rules>,
    /// Of the elements of a list, or of the values of a map.
    each: Option<Box<Rules>>,
}

#[derive(Debug)]
struct Rule {
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: String,
    field_path: String,
    /// Whether it is about what was before, and whether it is asked where nothing was.
    old: bool,
    old_is_optional: bool,
}

impl Rules {
    /// The rules of a schema that was accepted.
    pub fn compile(schema: &Value) -> Option<Self> {
        let mut nobody = Vec::new();
        Self::at(schema, true, true, "", &mut nobody)
    }

    /// Compiles a schema's rules, and says what is wrong with them. `path` is the schema's own.
    pub fn check(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
        Self::at(schema, true, true, path, errors);
    }

    /// `known_before`: whether the old value of this place can be told (not that of an element of a set).
    fn at(
        schema: &Value,
        root: bool,
        known_before: bool,
        path: &str,
        errors: &mut Vec<FieldError>,
    ) -> Option<Self> {
        let properties = schema.object("/properties").into_iter().flatten();
        let properties = properties.filter_map(|(name, below)| {
            let path = format!("{path}.properties[{name}]");
            Some((
                name.clone(),
                Self::at(below, false, known_before, &path, errors)?,
            ))
        });
        let properties: BTreeMap<_, _> = properties.collect();
        let list = schema.text("/type") == "array";
        let field = if list {
            "items"
        } else {
            "additionalProperties"
        };
        let known = known_before && (!list || schema.text("/x-kubernetes-list-type") == "map");
        let each = schema
            .get(field)
            .filter(|below| below.is_object())
            .and_then(|below| Self::at(below, false, known, &format!("{path}.{field}"), errors));
        let embedded = root || schema.flag("/x-kubernetes-embedded-resource");
        let described = if embedded {
            with_metadata(schema)
        } else {
            schema.clone()
        };
        let rules = schema.items(KEYWORD).iter().enumerate();
        let here: Vec<Rule> = rules
            .filter_map(|(at, rule)| {
                let path = format!("{path}.x-kubernetes-validations[{at}]");
                Rule::compile(rule, &described, known_before, &path, errors)
            })
            .collect();
        let nothing = here.is_empty() && properties.is_empty() && each.is_none();
        (!nothing).then(|| Self {
            schema: described,
            here,
            properties,
            each: each.map(Box::new),
        })
    }

    /// Holds an object against the rules; `old` is the object before the change.
    pub fn hold(&self, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let mut left = Budget::new(ALL_STEPS);
        if self.walk(new, old, "", &mut left, errors).is_err() {
            tracing::debug!("the budget of an object's rules is used up");
        }
    }

    fn walk(
        &self,
        new: &Value,
        old: Option<&Value>,
        path: &str,
        left: &mut Budget,
        errors: &mut Vec<FieldError>,
    ) -> Result<(), Failure> {
        if new.is_null() {
            return Ok(());
        }
        if !self.here.is_empty() {
            self.hold_here(new, old, path, left, errors)?;
        }
        match new {
            Value::Object(map) => {
                for (name, value) in map {
                    let path = super::rules::join(path, name);
                    let before = old.and_then(|old| old.get(name));
                    let below = self.properties.get(name).or(self.each.as_deref());
                    if let Some(below) = below {
                        below.walk(value, before, &path, left, errors)?;
                    }
                }
            }
            Value::Array(items) => {
                let keys = self.schema.items("/x-kubernetes-list-map-keys");
                for (at, item) in items.iter().enumerate() {
                    let same = |other: &&Value| {
                        keys.iter()
                            .filter_map(Value::as_str)
                            .all(|key| other[key] == item[key])
                    };
                    let olds = old.and_then(Value::as_array).into_iter().flatten();
                    let before = olds.filter(|_| !keys.is_empty()).find(same);
                    if let Some(each) = &self.each {
                        each.walk(item, before, &format!("{path}[{at}]"), left, errors)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn hold_here(
        &self,
        new: &Value,
        old: Option<&Value>,
        path: &str,
        left: &mut Budget,
        errors: &mut Vec<FieldError>,
    ) -> Result<(), Failure> {
        let value = from_json(new, &self.schema);
        let before = old.map(|old| from_json(old, &self.schema));
        for rule in &self.here {
            let mut variables = vec![("self", value.clone())];
            match (&before, rule.old_is_optional) {
                (Some(before), false) => variables.push(("oldSelf", before.clone())),
                (before, true) => variables.push(("oldSelf", Cel::optional(before.clone()))),
                // There is nothing that the change could be told by.
                (None, false) if rule.old => continue,
                (None, false) => {}
            }
            let mut budget = Budget::new(STEPS.min(left.left()));
            let before = budget.left();
            let held = rule.program.holds(&variables, &mut budget);
            let why = match &held {
                Ok(true) => None,
                Ok(false) => Some(rule.says(&variables, &mut budget)),
                Err(Failure::Budget) => Some(format!(
                    "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                    Failure::Budget,
                    rule.name()
                )),
                Err(failure) => Some(format!("{failure} evaluating rule: {}", rule.name())),
            };
            if let Some(why) = why {
                errors.push(rule.error(new, path, why));
            }
            left.take(before - budget.left())?;
            if held == Err(Failure::Budget) {
                return Err(Failure::Budget);
            }
        }
        Ok(())
    }
}

impl Rule {
    fn compile(
        rule: &Value,
        schema: &Value,
        known_before: bool,
        path: &str,
        errors: &mut Vec<FieldError>,
    ) -> Option<Self> {
        let source = rule.text("/rule");
        if source.trim().is_empty() {
            // The definition's own schema says that it is required.
            return None;
        }
        let old_is_optional = rule.flag("/optionalOldSelf");
        let nothing = Value::Null;
        let variables = [
            Variable {
                name: "self",
                schema,
            },
            Variable {
                name: "oldSelf",
                schema: if old_is_optional { &nothing } else { schema },
            },
        ];
        let mut compile = |field: &str, source: &str| {
            Program::compile(source, &variables)
                .map_err(|why| {
                    let why = format!("compilation failed: {why}");
                    errors.push(FieldError::invalid(format!("{path}.{field}"), source, why));
                })
                .ok()
        };
        let program = compile("rule", source)?;
        let expression = rule.text("/messageExpression");
        let message_program = match expression {
            "" => None,
            source => Some(compile("messageExpression", source)?),
        };
        let old = program.mentions("oldSelf");
        if old && !known_before {
            let why = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            errors.push(FieldError::invalid(format!("{path}.rule"), source, why));
        }
        let message = rule.text("/message");
        if source.contains('\n') && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(format!("{path}.message"), why));
        }
        let words = [
            "FieldValueDuplicate",
            "FieldValueForbidden",
            "FieldValueInvalid",
            "FieldValueRequired",
        ];
        crate::validate::one_of(rule, "/reason", format!("{path}.reason"), &words, errors);
        let field_path = rule.text("/fieldPath");
        if !field_path.is_empty() && !leads_somewhere(schema, field_path) {
            let why =
                "fieldPath must refer to a field of the schema, as in .spec.name or .map['key']";
            errors.push(FieldError::invalid(
                format!("{path}.fieldPath"),
                field_path,
                why,
            ));
        }
        Some(Self {
            program,
            message: message.to_owned(),
            message_program,
            reason: rule.text("/reason").to_owned(),
            field_path: field_path.to_owned(),
            old,
            old_is_optional,
        })
    }

    /// The rule as messages name it.
    fn name(&self) -> String {
        match self.message.as_str() {
            "" => format!("failed rule: {}", self.program.source()),
            message => message.to_owned(),
        }
    }

    /// What the author says of a value that breaks the rule.
    fn says(&self, variables: &[(&str, Cel)], budget: &mut Budget) -> String {
        let made = self
            .message_program
            .as_ref()
            .map(|program| program.run(variables, budget));
        match made {
            Some(Ok(Cel::String(text))) if !text.trim().is_empty() && !text.contains('\n') => {
                text.to_string()
            }
            _ => self.name(),
        }
    }

    fn error(&self, value: &Value, path: &str, why: String) -> FieldError {
        let path = match path {
            "" => self.field_path.trim_start_matches('.').to_owned(),
            path => format!("{path}{}", self.field_path),
        };
        let error = match self.reason.as_str() {
            "FieldValueForbidden" => return FieldError::forbidden(path, why),
            "FieldValueRequired" => return FieldError::required(path, &why),
            "FieldValueDuplicate" => FieldError::duplicate(path, ()),
            _ => FieldError::invalid(path, (), ""),
        };
        // The values of larger things are not shown.
        let shown = !(value.is_object() || value.is_array());
        FieldError {
            detail: why,
            value: shown.then(|| value.clone()),
            ..error
        }
    }
}

/// The schema with what every object has: of the metadata the names alone.
fn with_metadata(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let text = json!({"type": "string"});
    for field in ["apiVersion", "kind"] {
        schema.put_default(&format!("/properties/{field}"), text.clone());
    }
    let names = json!({"type": "object", "properties": {"name": text, "generateName": text}});
    schema.put("/properties/metadata", names);
    schema
}

/// Whether a path of fields (`.a.b`, `.a['b']`) is one of the schema.
fn leads_somewhere(schema: &Value, path: &str) -> bool {
    if path.is_empty() {
        return true;
    }
    let (field, rest) = if let Some(rest) = path.strip_prefix("['") {
        match rest.split_once("']") {
            Some(found) => found,
            None => return false,
        }
    } else if let Some(rest) = path.strip_prefix('.') {
        rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()))
    } else {
        return false;
    };
    let below = schema.object("/properties").and_then(|all| all.get(field));
    let below = below.or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()));
    below.is_some_and(|below| leads_somewhere(below, rest))
}
