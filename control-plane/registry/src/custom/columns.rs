//! `additionalPrinterColumns`: cells that a JSONPath finds.

use jiff::Timestamp;
use serde_json::Value;

use crate::json::Json;
use crate::table::{AGE, Column, NAME, Printer, column, since};

/// A path as definitions write it: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
    All,
    Where(Path, String),
}

impl Path {
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after).ok_or_else(|| format!("no ] after {rest:?}"))?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
                continue;
            }
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (mut name, mut end, mut escaped) = (String::new(), after.len(), false);
            for (at, c) in after.char_indices() {
                if !escaped && matches!(c, '.' | '[') {
                    end = at;
                    break;
                }
                escaped = c == '\\' && !escaped;
                if !escaped {
                    name.push(c);
                }
            }
            if name.is_empty() {
                return Err(format!("a name is missing at {rest:?}"));
            }
            steps.push(Step::Field(name));
            rest = &after[end..];
        }
        Ok(Self(steps))
    }

    /// A path of fields as a JSON pointer.
    #[must_use]
    pub fn pointer(&self) -> Option<String> {
        let mut out = String::new();
        for step in &self.0 {
            let Step::Field(name) = step else {
                return None;
            };
            out.push('/');
            out.push_str(&name.replace('~', "~0").replace('/', "~1"));
        }
        Some(out)
    }

    fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found
                .into_iter()
                .flat_map(|value| -> Vec<&Value> {
                    let items = value.as_array().map_or(&[][..], Vec::as_slice);
                    match step {
                        Step::Field(name) => value.get(name).into_iter().collect(),
                        Step::Item(at) => items.get(*at).into_iter().collect(),
                        Step::All => items.iter().collect(),
                        Step::Where(path, want) => items
                            .iter()
                            .filter(|item| path.find(item).iter().any(|v| text(v) == *want))
                            .collect(),
                    }
                })
                .collect();
        }
        found
    }

    /// The cell of an object.
    #[must_use]
    pub fn cell(&self, kind: &str, object: &Value, now: Timestamp) -> Value {
        let found = self.find(object);
        let Some(first) = found.first().filter(|v| !v.is_null()) else {
            return Value::Null;
        };
        match kind {
            "date" => since(first.as_str().unwrap_or_default(), now).into(),
            "integer" | "number" | "boolean" => (*first).clone(),
            _ => text(first).into(),
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// Where the bracket that is open closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quoted = None;
    for (at, c) in text.char_indices() {
        match (c, quoted) {
            ('"' | '\'', None) => quoted = Some(c),
            (c, Some(q)) if c == q => quoted = None,
            (_, Some(_)) => {}
            ('[', None) => depth += 1,
            (']', None) if depth == 0 => return Some(at),
            (']', None) => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    let unquoted = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Ok(at) = text.parse() {
        return Ok(Step::Item(at));
    }
    if let Some(test) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, right) = test
            .split_once("==")
            .ok_or_else(|| format!("only == is understood in [{text}]"))?;
        let path = Path::parse(left.trim().trim_start_matches('@'))?;
        return Ok(Step::Where(path, unquoted(right)));
    }
    if text.starts_with(['"', '\'']) {
        return Ok(Step::Field(unquoted(text)));
    }
    Err(format!("[{text}] is not understood"))
}

/// How the objects of a version are shown.
#[must_use]
pub fn printer(version: &Value) -> Printer {
    let mut columns = vec![NAME];
    let mut paths = Vec::new();
    for own in version.items("/additionalPrinterColumns") {
        let Ok(path) = Path::parse(own.text("/jsonPath")) else {
            continue;
        };
        let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
        columns.push(Column {
            kind: leak(own.text("/type")),
            format: leak(own.text("/format")),
            priority: u8::try_from(own.integer("/priority").unwrap_or(0)).unwrap_or(1),
            ..column(leak(own.text("/name")), leak(own.text("/description")))
        });
        paths.push(path);
    }
    if paths.is_empty() {
        columns.push(AGE);
        paths.push(Path(vec![
            Step::Field("metadata".into()),
            Step::Field("creationTimestamp".into()),
        ]));
        if let Some(age) = columns.last_mut() {
            age.kind = "date";
        }
    }
    Printer {
        columns: columns.leak(),
        paths: paths.leak(),
        ..crate::table::PLAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_their_cells() {
        let object = json!({"spec": {"n": 3, "a.b": "dot"}, "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        let now = Timestamp::now();
        for (path, want) in [
            (".spec.n", json!("3")),
            (".spec['a.b']", json!("dot")),
            (".spec.a\\.b", json!("dot")),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!("True"),
            ),
            (".status.conditions[1].type", json!("X")),
            (".status.conditions[*].type", json!("Ready")),
            (".spec.none", Value::Null),
        ] {
            assert_eq!(
                Path::parse(path).unwrap().cell("string", &object, now),
                want,
                "{path}"
            );
        }
        assert_eq!(
            Path::parse(".spec.n")
                .unwrap()
                .cell("integer", &object, now),
            json!(3)
        );
        assert_eq!(
            Path::parse(".spec.n").unwrap().pointer().as_deref(),
            Some("/spec/n")
        );
        assert!(Path::parse(".spec[").is_err() && Path::parse("..").is_err());
    }
}
