//! The functions that expressions may call: CEL's own and Kubernetes'
//! (<https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-libraries>).

mod basic;
mod kubernetes;
mod lists;
mod operators;
mod text;
mod time;

use crate::eval::{Result, failed};
use crate::value::Value;

/// How a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `f(a)`.
    Plain,
    /// `a.f()`; the target is the first argument.
    Member,
}

type Body = fn(&[Value]) -> Result<Value>;

/// One function: its name, its form, how many arguments it takes beside the target, and what it does.
struct Function {
    name: &'static str,
    form: Form,
    arguments: &'static [usize],
    body: Body,
}

const fn plain(name: &'static str, arguments: &'static [usize], body: Body) -> Function {
    Function {
        name,
        form: Form::Plain,
        arguments,
        body,
    }
}

const fn member(name: &'static str, arguments: &'static [usize], body: Body) -> Function {
    Function {
        name,
        form: Form::Member,
        arguments,
        body,
    }
}

fn all() -> impl Iterator<Item = &'static Function> {
    [
        operators::ALL,
        basic::ALL,
        text::ALL,
        time::ALL,
        lists::ALL,
        kubernetes::ALL,
    ]
    .into_iter()
    .flatten()
}

fn find(name: &str, is_member: bool, arguments: usize) -> Option<&'static Function> {
    let form = if is_member { Form::Member } else { Form::Plain };
    all().find(|f| f.name == name && f.form == form && f.arguments.contains(&arguments))
}

/// Operators that are worked out without their operands' values.
const LAZY: [&str; 5] = ["_&&_", "_||_", "_?_:_", "@not_strictly_false", "_[_]"];

/// Whether there is such a function.
pub fn exists(name: &str, is_member: bool, arguments: usize) -> bool {
    LAZY.contains(&name) || find(name, is_member, arguments).is_some()
}

/// Whether there is a function of this name that is called in another way.
pub fn exists_otherwise(name: &str) -> bool {
    all().any(|f| f.name == name)
}

/// Whether the call's first argument names a variable of the second.
pub fn binds(name: &str, is_member: bool, arguments: usize) -> Option<&'static str> {
    let known = ["optMap", "optFlatMap"]
        .into_iter()
        .find(|known| *known == name);
    known.filter(|_| is_member && arguments == 2)
}

/// What a call costs whose arguments have this size together.
pub fn cost(name: &str, size: u64) -> u64 {
    match name {
        // A pattern is compiled for each call.
        "matches" | "find" | "findAll" => size.saturating_mul(20).saturating_add(50),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => size.saturating_mul(size),
        _ => size,
    }
}

/// Calls a function; of a member the target is the first of `values`.
pub fn call(name: &str, is_member: bool, values: Vec<Value>) -> Result<Value> {
    let arguments = values.len() - usize::from(is_member);
    if name == "_+_" {
        return operators::add(values);
    }
    match find(name, is_member, arguments) {
        Some(function) => (function.body)(&values),
        None => no_overload(),
    }
}

fn no_overload<T>() -> Result<T> {
    failed("no such overload")
}

/// A value as messages show it.
pub fn shown(value: &Value) -> String {
    match basic::text(value) {
        Some(text) => text,
        None => value.type_name().to_owned(),
    }
}
