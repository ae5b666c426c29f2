//! Working expressions out, step by step, within a budget.

use std::fmt;
use std::sync::Arc;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators,
};

use crate::check::TYPES;
use crate::functions;
use crate::program::Program;
use crate::value::Value;

/// Steps that are left. What compares, copies or searches costs more than one, by its size.
#[derive(Debug)]
pub struct Budget {
    left: u64,
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The budget is used up.
    Budget,
    /// As Kubernetes says it: a key that is not there, a division by zero, types that do not fit.
    Failed(String),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// An expression at work.
pub(crate) struct Machine<'a> {
    budget: &'a mut Budget,
    /// What is gathered may be a failure, which a later element can outweigh.
    scope: Vec<(&'a str, Result<Value>)>,
}

impl Budget {
    #[must_use]
    pub const fn new(steps: u64) -> Self {
        Self { left: steps }
    }

    /// Takes so many steps.
    ///
    /// # Errors
    /// [`Failure::Budget`] when there are not as many.
    pub fn take(&mut self, steps: u64) -> Result<()> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Failure::Budget)
            }
        }
    }

    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

pub(crate) fn failed<T>(why: impl Into<String>) -> Result<T> {
    Err(Failure::Failed(why.into()))
}

impl Program {
    /// The value of the expression where its variables have these values.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, variables: &[(&str, Value)], budget: &mut Budget) -> Result<Value> {
        let scope = variables
            .iter()
            .map(|(name, value)| (*name, Ok(value.clone())));
        let mut machine = Machine {
            budget,
            scope: scope.collect(),
        };
        machine.value(&self.expression)
    }

    /// As [`Program::run`], for an expression that is true or false.
    ///
    /// # Errors
    /// [`Failure`], also when the value is neither.
    pub fn holds(&self, variables: &[(&str, Value)], budget: &mut Budget) -> Result<bool> {
        match self.run(variables, budget)? {
            Value::Bool(holds) => Ok(holds),
            other => failed(format!(
                "the value is of type {} and no bool",
                other.type_name()
            )),
        }
    }
}

impl<'a> Machine<'a> {
    fn value(&mut self, of: &'a IdedExpr) -> Result<Value> {
        self.budget.take(1)?;
        match &of.expr {
            Expr::Unspecified | Expr::Struct(_) => failed("an expression is missing"),
            Expr::Literal(literal) => Ok(constant(literal)),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                let operand = self.value(&select.operand)?;
                let key = Value::text(&select.field);
                if !select.test {
                    return self.select(operand, &key);
                }
                Ok(Value::Bool(match operand {
                    Value::Optional(inner) => inner.is_some_and(|inner| inner.get(&key).is_some()),
                    other => other
                        .get(&key)
                        .is_some_and(|value| !matches!(value, Value::Null)),
                }))
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(all) => self.comprehension(all),
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    match self.value(element)? {
                        Value::Optional(inner) if list.optional_indices.contains(&at) => {
                            items.extend(inner.map(|inner| inner.as_ref().clone()));
                        }
                        value => items.push(value),
                    }
                }
                Ok(Value::list(items))
            }
            Expr::Map(map) => {
                let mut pairs = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(pair) = &entry.expr else {
                        continue;
                    };
                    let key = self.value(&pair.key)?;
                    match self.value(&pair.value)? {
                        Value::Optional(inner) if pair.optional => {
                            pairs.extend(inner.map(|inner| (key, inner.as_ref().clone())));
                        }
                        value => pairs.push((key, value)),
                    }
                }
                // As maps of JSON are, so that keys are found alike.
                pairs.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(std::cmp::Ordering::Equal));
                Ok(Value::Map(Arc::new(pairs)))
            }
        }
    }

    fn name(&mut self, name: &str) -> Result<Value> {
        let found = self.scope.iter().rev().find(|(known, _)| *known == name);
        match found {
            Some((_, value)) => value.clone(),
            None => match TYPES.iter().find(|known| **known == name) {
                Some(name) => Ok(Value::Type(name)),
                None => failed(format!("undeclared reference to '{name}'")),
            },
        }
    }

    fn select(&mut self, operand: Value, key: &Value) -> Result<Value> {
        match operand {
            // What is optional stays so.
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => {
                let found = inner.get(key).or_else(|| at(&inner, key));
                Ok(Value::Optional(found.map(|value| Arc::new(value.clone()))))
            }
            Value::Map(_) => {
                self.budget.take(1)?;
                let found = operand.get(key).cloned();
                found.map_or_else(
                    || failed(format!("no such key: {}", functions::shown(key))),
                    Ok,
                )
            }
            Value::List(_) => at(&operand, key).cloned().map_or_else(
                || failed(format!("index out of bounds: {}", functions::shown(key))),
                Ok,
            ),
            other => failed(format!(
                "type '{}' does not support field selection",
                other.type_name()
            )),
        }
    }

    fn call(&mut self, call: &'a CallExpr) -> Result<Value> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_AND, [a, b]) => self.junction(a, b, false),
            (operators::LOGICAL_OR, [a, b]) => self.junction(a, b, true),
            (operators::CONDITIONAL, [condition, yes, no]) => match self.value(condition)? {
                Value::Bool(true) => self.value(yes),
                Value::Bool(false) => self.value(no),
                _ => failed("no such overload"),
            },
            (operators::NOT_STRICTLY_FALSE, [of]) => Ok(Value::Bool(match self.value(of) {
                Ok(Value::Bool(value)) => value,
                Err(Failure::Budget) => return Err(Failure::Budget),
                _ => true,
            })),
            (operators::ADD, [a, b]) if matches!(&a.expr, Expr::Ident(name) if name == "@result") =>
            {
                // What is gathered is added to in place: nobody else has it.
                let gathered = self
                    .scope
                    .iter_mut()
                    .rev()
                    .find(|(known, _)| *known == "@result");
                let gathered = gathered.map_or(Ok(Value::Null), |(_, value)| {
                    std::mem::replace(value, Ok(Value::Null))
                })?;
                let more = self.value(b)?;
                self.add(gathered, more)
            }
            (operators::INDEX, [of, key]) => {
                let (of, key) = (self.value(of)?, self.value(key)?);
                self.select(of, &key)
            }
            (operators::OPT_INDEX | operators::OPT_SELECT, [of, key]) => {
                let (of, key) = (self.value(of)?, self.value(key)?);
                let of = match of {
                    Value::Optional(_) => of,
                    other => Value::Optional(Some(Arc::new(other))),
                };
                self.select(of, &key)
            }
            ("optMap" | "optFlatMap", [variable, body]) => self.within(call, variable, body),
            _ => self.function(call),
        }
    }

    fn function(&mut self, call: &'a CallExpr) -> Result<Value> {
        let mut values = Vec::with_capacity(call.args.len() + 1);
        let mut name = call.func_name.clone();
        let member = match call.target.as_deref() {
            Some(IdedExpr {
                expr: Expr::Ident(space),
                ..
            }) if self.scope.iter().all(|(known, _)| known != space)
                && !TYPES.contains(&space.as_str()) =>
            {
                name = format!("{space}.{name}");
                false
            }
            Some(target) => {
                values.push(self.value(target)?);
                true
            }
            None => false,
        };
        for argument in &call.args {
            values.push(self.value(argument)?);
        }
        let sizes = values.iter().map(|value| value.size(self.budget.left()));
        let cost = functions::cost(&name, sizes.fold(1, u64::saturating_add));
        self.budget.take(cost)?;
        functions::call(&name, member, values)
    }

    fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.budget.take(b.size(self.budget.left()))?;
        functions::call(operators::ADD, false, vec![a, b])
    }

    /// `a && b` (`decides`: false) and `a || b` (true): one side that decides is enough, even where the other fails.
    fn junction(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decides: bool) -> Result<Value> {
        let first = match self.value(a) {
            Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
            Err(Failure::Budget) => return Err(Failure::Budget),
            first => first,
        };
        match self.value(b) {
            Ok(Value::Bool(value)) if value == decides => Ok(Value::Bool(decides)),
            Err(Failure::Budget) => Err(Failure::Budget),
            second => match (first?, second?) {
                (Value::Bool(_), Value::Bool(_)) => Ok(Value::Bool(!decides)),
                _ => failed("no such overload"),
            },
        }
    }

    fn within(
        &mut self,
        call: &'a CallExpr,
        variable: &'a IdedExpr,
        body: &'a IdedExpr,
    ) -> Result<Value> {
        let (Some(target), Expr::Ident(variable)) = (call.target.as_deref(), &variable.expr) else {
            return failed("no such overload");
        };
        let inner = match self.value(target)? {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => inner,
            _ => return failed("no such overload"),
        };
        self.scope.push((variable, Ok(inner.as_ref().clone())));
        let made = self.value(body);
        self.scope.pop();
        match call.func_name.as_str() {
            "optMap" => made.map(|value| Value::Optional(Some(Arc::new(value)))),
            _ => made,
        }
    }

    fn comprehension(&mut self, all: &'a ComprehensionExpr) -> Result<Value> {
        let range = self.value(&all.iter_range)?;
        let gathered = self.value(&all.accu_init)?;
        let depth = self.scope.len();
        self.scope.push((&all.accu_var, Ok(gathered)));
        let done = self.repeat(all, &range, depth);
        let result = done.and_then(|()| self.value(&all.result));
        self.scope.truncate(depth);
        result
    }

    fn repeat(&mut self, all: &'a ComprehensionExpr, range: &Value, depth: usize) -> Result<()> {
        let each: Box<dyn Iterator<Item = &Value>> = match range {
            Value::List(items) => Box::new(items.iter()),
            Value::Map(pairs) => Box::new(pairs.iter().map(|(key, _)| key)),
            _ => return failed("no such overload"),
        };
        for item in each {
            if !matches!(self.value(&all.loop_cond)?, Value::Bool(true)) {
                break;
            }
            self.scope.push((&all.iter_var, Ok(item.clone())));
            let step = self.value(&all.loop_step);
            self.scope.pop();
            if matches!(step, Err(Failure::Budget)) {
                return Err(Failure::Budget);
            }
            self.scope[depth].1 = step;
        }
        Ok(())
    }
}

fn at<'a>(list: &'a Value, key: &Value) -> Option<&'a Value> {
    let Value::List(items) = list else {
        return None;
    };
    match key {
        Value::Int(at) => items.get(usize::try_from(*at).ok()?),
        Value::Uint(at) => items.get(usize::try_from(*at).ok()?),
        _ => None,
    }
}

fn constant(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(flag) => Value::Bool(*flag.inner()),
        LiteralValue::Bytes(bytes) => Value::Bytes(bytes.inner().into()),
        LiteralValue::Double(number) => Value::Double(*number.inner()),
        LiteralValue::Int(number) => Value::Int(*number.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => Value::text(text.inner()),
        LiteralValue::UInt(number) => Value::Uint(*number.inner()),
    }
}
