//! Label and field selectors: which objects a list or a watch is about.
//!
//! Grammar: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors> and
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/>.

use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::object::Object;

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// A parsed field selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    /// Where the value stands in [`Object::fields`]; `None` for the name and namespace.
    field: Where,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Name,
    Namespace,
    Listed(usize),
}

impl LabelSelector {
    /// # Errors
    /// 400 that shows the place where the selector stops making sense.
    pub fn parse(text: &str) -> Result<Self> {
        Parser { text, at: 0 }
            .all()
            .map(Self)
            .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))
    }

    /// Whether the object's labels satisfy every requirement.
    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        self.0.iter().all(|r| r.test.holds(object.label(&r.key)))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Greater(than) => number().is_some_and(|n| n > *than),
            Self::Less(than) => number().is_some_and(|n| n < *than),
        }
    }
}

impl FieldSelector {
    /// Parses `name=value,other!=value`; backslash escapes `,`, `=` and itself.
    ///
    /// # Errors
    /// 400 for a field that the kind does not select by.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self> {
        let mut terms = Vec::new();
        for term in split_escaped(text, ',') {
            if term.is_empty() {
                continue;
            }
            let (field, equal, value) = split_term(&term).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                ))
            })?;
            terms.push(FieldTerm {
                field: find(kind, field)?,
                equal,
                value: unescape(value),
            });
        }
        Ok(Self(terms))
    }

    /// Whether the object's fields satisfy every term.
    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        self.0.iter().all(|term| {
            let value = match term.field {
                Where::Name => &*object.name,
                Where::Namespace => &*object.namespace,
                Where::Listed(at) => object.field(at),
            };
            (value == term.value) == term.equal
        })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one name that the selector asks for, if it does.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|t| t.field == Where::Name && t.equal)
            .map(|t| t.value.as_str())
    }
}

fn find(kind: &Kind, field: &str) -> Result<Where> {
    match field {
        "metadata.name" => return Ok(Where::Name),
        "metadata.namespace" if kind.namespaced => return Ok(Where::Namespace),
        _ => {}
    }
    kind.fields
        .iter()
        .position(|f| f.name == field)
        .map(Where::Listed)
        .ok_or_else(|| ApiError::bad_request(format!("field label not supported: {field}")))
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, false, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, true, value))
}

fn split_escaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

/// A hand-written parser of label selectors.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn all(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        self.space();
        while self.at < self.text.len() {
            out.push(self.requirement()?);
            self.space();
            if self.at < self.text.len() && !self.eat(",") {
                return Err(self.expected("',' or the end"));
            }
            self.space();
        }
        Ok(out)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.eat("!") {
            let key = self.key()?;
            return Ok(Requirement {
                key,
                test: Test::Absent,
            });
        }
        let key = self.key()?;
        self.space();
        let test = if self.eat("==") || self.eat("=") {
            Test::In(vec![self.value()])
        } else if self.eat("!=") {
            Test::NotIn(vec![self.value()])
        } else if self.eat(">") {
            Test::Greater(self.number()?)
        } else if self.eat("<") {
            Test::Less(self.number()?)
        } else if self.eat_word("notin") {
            Test::NotIn(self.values()?)
        } else if self.eat_word("in") {
            Test::In(self.values()?)
        } else {
            Test::Exists
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, String> {
        self.space();
        let key = self.word();
        if key.is_empty() {
            return Err(self.expected("a label key"));
        }
        if let Some(why) = crate::validate::qualified_name(key) {
            return Err(format!("invalid label key \"{key}\": {why}"));
        }
        Ok(key.to_owned())
    }

    fn value(&mut self) -> String {
        self.space();
        self.word().to_owned()
    }

    fn number(&mut self) -> Result<i64, String> {
        let value = self.value();
        value.parse().map_err(|_| {
            format!("for 'Gt', 'Lt' operators, the value must be an integer, not \"{value}\"")
        })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        self.space();
        if !self.eat("(") {
            return Err(self.expected("'('"));
        }
        let mut values = vec![self.value()];
        self.space();
        while self.eat(",") {
            values.push(self.value());
            self.space();
        }
        if !self.eat(")") {
            return Err(self.expected("',' or ')'"));
        }
        Ok(values)
    }

    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| c.is_whitespace() || "=!<>(),".contains(c))
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let before = self.at;
        if self.word() == word {
            return true;
        }
        self.at = before;
        false
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn expected(&self, what: &str) -> String {
        format!(
            "found '{}', expected: {what} at position {} of \"{}\"",
            &self.text[self.at..],
            self.at,
            self.text
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn pod() -> Object {
        let kind = kinds::find("", "v1", "pods").unwrap();
        let value = json!({"metadata": {"name": "p", "namespace": "ns", "labels": {"app": "web", "n": "5"}},
            "spec": {"nodeName": "a"}, "status": {"phase": "Running"}});
        Object::new(kind, value, 7)
    }

    #[test]
    fn label_selectors() {
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web, n", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("!other,n>4,n<6", true),
            ("!app", false),
            ("kubernetes.io/x", false),
        ] {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches(&pod()), want, "{text}");
        }
        for bad in ["app=web b", "in (a", "app in a", "=x", "n>x", "a/b/c=1"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let kind = kinds::find("", "v1", "pods").unwrap();
        for (text, want) in [
            ("metadata.name=p", true),
            ("spec.nodeName=a,status.phase!=Failed", true),
            ("spec.nodeName==b", false),
            ("metadata.namespace!=ns", false),
        ] {
            let selector = FieldSelector::parse(kind, text).unwrap();
            assert_eq!(selector.matches(&pod()), want, "{text}");
        }
        let error = FieldSelector::parse(kind, "spec.foo=1").unwrap_err();
        assert_eq!(error.message, "field label not supported: spec.foo");
    }
}
