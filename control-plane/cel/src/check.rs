//! What is wrong with an expression before it is ever worked out: names, functions and fields that are not there.

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr, operators};
use serde_json::Value as Json;

use crate::convert::escape;
use crate::functions;
use crate::program::{CompileError, Variable};

/// Types that are values too.
pub(crate) const TYPES: [&str; 11] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "dyn",
];

/// What stands deeper is refused: it is worked out on the stack of whoever asks.
const DEPTH: usize = 128;

struct Checker<'a> {
    depth: usize,
    scope: Vec<(String, Known<'a>)>,
    at: &'a dyn Fn(u64, &str) -> CompileError,
}

/// The schema of a value; `None` when it may be anything.
type Known<'a> = Option<&'a Json>;

/// Checks an expression.
pub fn check(
    expression: &IdedExpr,
    variables: &[Variable<'_>],
    at: &dyn Fn(u64, &str) -> CompileError,
) -> Result<(), CompileError> {
    let scope = variables.iter().map(|variable| {
        let known = Some(variable.schema).filter(|schema| schema.is_object());
        (variable.name.to_owned(), known)
    });
    let mut checker = Checker {
        depth: 0,
        scope: scope.collect(),
        at,
    };
    checker.look(expression).map(drop)
}

impl<'a> Checker<'a> {
    /// Checks an expression, and says what is known of its value.
    fn look(&mut self, of: &IdedExpr) -> Result<Known<'a>, CompileError> {
        if self.depth >= DEPTH {
            let why = format!("more than {DEPTH} operations in each other");
            return Err((self.at)(of.id, &why));
        }
        self.depth += 1;
        let known = self.look_into(of);
        self.depth -= 1;
        known
    }

    fn look_into(&mut self, of: &IdedExpr) -> Result<Known<'a>, CompileError> {
        match &of.expr {
            Expr::Unspecified => Err((self.at)(of.id, "an expression is missing")),
            Expr::Literal(_) => Ok(None),
            Expr::Ident(name) => self.name(of.id, name),
            Expr::Select(select) => {
                let operand = self.look(&select.operand)?;
                match operand {
                    Some(schema) => self.field(of.id, schema, &select.field),
                    None => Ok(None),
                }
            }
            Expr::Call(call) => self.call(of.id, call),
            Expr::Comprehension(all) => self.comprehension(all),
            Expr::List(list) => {
                for element in &list.elements {
                    self.look(element)?;
                }
                Ok(None)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(pair) = &entry.expr {
                        self.look(&pair.key)?;
                        self.look(&pair.value)?;
                    }
                }
                Ok(None)
            }
            // Policies that change objects write these; nothing else has types to make.
            Expr::Struct(made) => {
                let why = format!(
                    "undeclared reference to '{}' (in container '')",
                    made.type_name
                );
                Err((self.at)(of.id, &why))
            }
        }
    }

    fn name(&self, id: u64, name: &str) -> Result<Known<'a>, CompileError> {
        let found = self.scope.iter().rev().find(|(known, _)| known == name);
        match found {
            Some((_, known)) => Ok(*known),
            None if TYPES.contains(&name) => Ok(None),
            None => {
                let why = format!("undeclared reference to '{name}' (in container '')");
                Err((self.at)(id, &why))
            }
        }
    }

    fn call(
        &mut self,
        id: u64,
        call: &cel::common::ast::CallExpr,
    ) -> Result<Known<'a>, CompileError> {
        let name = call.func_name.as_str();
        let mut arguments = call.args.iter();
        if matches!(
            name,
            operators::OPT_SELECT | operators::INDEX | operators::OPT_INDEX
        ) {
            let of = match arguments.next() {
                Some(operand) => self.look(operand)?,
                None => None,
            };
            if name == operators::OPT_SELECT {
                return Ok(None);
            }
            for argument in arguments {
                self.look(argument)?;
            }
            return Ok(of.and_then(element));
        }
        let qualified = call
            .target
            .as_deref()
            .and_then(|target| match &target.expr {
                Expr::Ident(space) if self.scope.iter().all(|(known, _)| known != space) => {
                    Some(format!("{space}.{name}"))
                }
                _ => None,
            });
        let (shown, member) = match (&qualified, &call.target) {
            (Some(qualified), _) => (qualified.as_str(), false),
            (None, target) => (name, target.is_some()),
        };
        if let (None, Some(target)) = (&qualified, &call.target) {
            self.look(target)?;
        }
        let count = call.args.len();
        if let Some(lambda) = functions::binds(shown, member, count) {
            return self.lambda(call, lambda);
        }
        if !functions::exists(shown, member, count) {
            let known = functions::exists_otherwise(shown);
            let why = match known {
                true => {
                    format!("found no matching overload for '{shown}' with {count} argument(s)")
                }
                false => format!("undeclared reference to '{shown}' (in container '')"),
            };
            return Err((self.at)(id, &why));
        }
        for argument in arguments {
            self.look(argument)?;
        }
        Ok(None)
    }

    /// A call whose first argument names what the second is worked out with (`optMap`).
    fn lambda(
        &mut self,
        call: &cel::common::ast::CallExpr,
        name: &str,
    ) -> Result<Known<'a>, CompileError> {
        let [Expr::Ident(variable), _] = [&call.args[0].expr, &call.args[1].expr] else {
            let why = format!("the first argument of {name} must be a simple name");
            return Err((self.at)(call.args[0].id, &why));
        };
        self.scope.push((variable.clone(), None));
        let body = self.look(&call.args[1]);
        self.scope.pop();
        body.map(|_| None)
    }

    fn comprehension(&mut self, all: &ComprehensionExpr) -> Result<Known<'a>, CompileError> {
        let range = self.look(&all.iter_range)?;
        self.look(&all.accu_init)?;
        // The names of a map's fields are texts.
        let each = range
            .filter(|schema| schema["type"] == "array")
            .and_then(element);
        let depth = self.scope.len();
        self.scope.push((all.iter_var.clone(), each));
        if let Some(other) = &all.iter_var2 {
            self.scope.push((other.clone(), None));
        }
        self.scope.push((all.accu_var.clone(), None));
        let parts = [&all.loop_cond, &all.loop_step, &all.result];
        let looked = parts
            .into_iter()
            .try_for_each(|part| self.look(part).map(drop));
        self.scope.truncate(depth);
        looked.map(|()| None)
    }

    /// What is known of a field.
    fn field(&self, id: u64, schema: &'a Json, field: &str) -> Result<Known<'a>, CompileError> {
        let open = schema["x-kubernetes-preserve-unknown-fields"] == true
            || schema["x-kubernetes-int-or-string"] == true
            || schema["x-kubernetes-embedded-resource"] == true
            || schema.get("type").is_none();
        let properties = schema["properties"].as_object();
        let found = properties
            .into_iter()
            .flatten()
            .find(|(name, _)| escape(name) == field);
        if let Some((_, schema)) = found {
            return Ok(Some(schema));
        }
        match schema.get("additionalProperties") {
            Some(schema) if schema.is_object() => return Ok(Some(schema)),
            Some(Json::Bool(true)) => return Ok(None),
            _ => {}
        }
        if open {
            return Ok(None);
        }
        if schema["type"] != "object" {
            let of = schema["type"].as_str().unwrap_or_default();
            let why = format!("type '{of}' does not support field selection");
            return Err((self.at)(id, &why));
        }
        Err((self.at)(id, &format!("undefined field '{field}'")))
    }
}

/// What is known of the elements of a list or of a map.
fn element(schema: &Json) -> Known<'_> {
    let of = match schema["type"].as_str() {
        Some("array") => &schema["items"],
        _ => &schema["additionalProperties"],
    };
    Some(of).filter(|of| of.is_object())
}
