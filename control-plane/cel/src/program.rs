//! From text to what can be worked out.

use std::fmt;

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::parser::Parser;
use serde_json::Value as Json;

use crate::check;

/// A compiled expression.
pub struct Program {
    pub(crate) expression: IdedExpr,
    pub(crate) source: String,
}

/// A name that an expression may use, with the schema of its value; null for one that may be anything.
#[derive(Clone, Copy, Debug)]
pub struct Variable<'a> {
    pub name: &'a str,
    pub schema: &'a Json,
}

/// Why a text is no expression, with the place: several lines, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError(pub(crate) String);

/// Longer texts are refused, in bytes.
const LENGTH: usize = 16 * 1024;
/// So many operators and brackets may stand in a text, and so many brackets in each other: the parser goes as deep as these
/// are many.
const OPERATORS: usize = 2_000;
const BRACKETS: usize = 64;
/// For the parser, whose depth an expression decides, in bytes. Only what it uses is memory.
const STACK: usize = 256 << 20;

impl Program {
    /// Reads an expression that may use `variables`.
    ///
    /// # Errors
    /// What is no CEL, names that nobody knows, functions that are not there, fields that the schema of a variable does not
    /// have, and what is too long or too deep.
    pub fn compile(source: &str, variables: &[Variable<'_>]) -> Result<Self, CompileError> {
        bound(source)?;
        // Whatever a text does to the parser, it ends with this thread and not with the server.
        let read = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || Self::read(source, variables));
            thread.map(|thread| thread.join())
        });
        match read {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(CompileError("it cannot be read".to_owned())),
            Err(error) => Err(CompileError(format!(
                "there is no thread to read it: {error}"
            ))),
        }
    }

    fn read(source: &str, variables: &[Variable<'_>]) -> Result<Self, CompileError> {
        let parser = Parser::new().enable_optional_syntax(true);
        let (expression, places) = parser
            .parse_with_source_info(source)
            .map_err(|errors| CompileError(errors.to_string()))?;
        check::check(&expression, variables, &|id, why| at(&places, id, why))?;
        Ok(Self {
            expression,
            source: source.to_owned(),
        })
    }

    /// Whether the expression uses the variable.
    #[must_use]
    pub fn mentions(&self, variable: &str) -> bool {
        self.expression.references().has_variable(variable)
    }

    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Refuses what is more than a rule needs, before anybody reads it.
fn bound(source: &str) -> Result<(), CompileError> {
    if source.trim().is_empty() {
        return Err(CompileError("it is empty".to_owned()));
    }
    if source.len() > LENGTH {
        return Err(CompileError(format!("it has more than {LENGTH} bytes")));
    }
    let (mut open, mut deepest, mut operators) = (0usize, 0, 0);
    // Within literals too: where they end is for the parser to know.
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                open += 1;
                operators += 1;
            }
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'?' | b'!' | b'<' | b'>' | b'=' | b'&'
            | b'|' => operators += 1,
            _ => {}
        }
        deepest = deepest.max(open);
    }
    match (deepest > BRACKETS, operators > OPERATORS) {
        (true, _) => Err(CompileError(format!(
            "it has more than {BRACKETS} brackets in each other"
        ))),
        (_, true) => Err(CompileError(format!(
            "it has more than {OPERATORS} operators and brackets"
        ))),
        _ => Ok(()),
    }
}

/// An error at the place of an expression.
fn at(places: &SourceInfo, id: u64, why: &str) -> CompileError {
    let start = places.offset_for(id).map_or(0, |(start, _)| start as usize);
    let before = places.source.get(..start).unwrap_or_default();
    let line = before.matches('\n').count();
    let column = start - before.rfind('\n').map_or(0, |at| at + 1);
    let shown = places.source.lines().nth(line).unwrap_or_default();
    CompileError(format!(
        "ERROR: <input>:{}:{}: {why}\n | {shown}\n | {}^",
        line + 1,
        column + 1,
        ".".repeat(column)
    ))
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({:?})", self.source)
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CompileError {}
