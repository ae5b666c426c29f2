//! Sets of fields, as `metadata.managedFields` writes them (`FieldsV1`).
//!
//! A step of a path is kept as it is written: `f:name` a field, `k:{"name":"c"}` an item of a list by its keys, `v:"x"`
//! an item of a set by its value. See
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/> (`managedFields`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Some fields of an object: whether this one is among them, and which are below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub member: bool,
    pub children: BTreeMap<String, Self>,
}

impl Set {
    /// Reads `fieldsV1`. What is no object is the empty set.
    #[must_use]
    pub fn parse(fields: &Value) -> Self {
        let mut set = Self::default();
        for (step, below) in fields.as_object().into_iter().flatten() {
            if step == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::parse(below);
            child.member |= child.children.is_empty();
            set.children.insert(step.clone(), child);
        }
        set
    }

    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            out.insert(step.clone(), child.to_json());
        }
        Value::Object(out)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Whether the field itself is owned: named, or a struct of which something is owned.
    #[must_use]
    pub fn holds(&self, step: &str) -> bool {
        self.member || (step.starts_with("f:") && !self.children.is_empty())
    }

    /// Puts `below` at `step`, unless there is nothing in it.
    pub fn graft(&mut self, step: &str, below: Self) {
        if !below.is_empty() {
            self.children.insert(step.to_owned(), below);
        }
    }

    pub fn unite(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, theirs) in &other.children {
            self.children.entry(step.clone()).or_default().unite(theirs);
        }
    }

    /// Takes exactly the members of `other` away.
    pub fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (step, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(step) {
                ours.subtract(theirs);
                if ours.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut out = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (step, ours) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                out.graft(step, ours.intersect(theirs));
            }
        }
        out
    }

    /// Takes a field away, with all below it.
    pub fn drop_path(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.drop_path(rest);
                    if child.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    /// The members as messages show them: `.spec.containers[name="c"].image`.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.add_paths("", &mut out);
        out
    }

    fn add_paths(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (step, child) in &self.children {
            child.add_paths(&format!("{path}{}", shown(step)), out);
        }
    }
}

fn shown(step: &str) -> String {
    let (kind, rest) = step.split_once(':').unwrap_or(("f", step));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_written_as_they_were_read() {
        let fields = json!({"f:spec": {"f:replicas": {}, "f:ports": {".": {},
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}},
            "f:metadata": {"f:finalizers": {"v:\"a\"": {}}}});
        let set = Set::parse(&fields);
        assert_eq!(set.to_json(), fields);
        assert_eq!(
            set.paths(),
            [
                ".metadata.finalizers[=\"a\"]",
                ".spec.ports",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].containerPort",
                ".spec.replicas",
            ]
        );
        let mut less = set.clone();
        less.subtract(&set);
        assert!(less.is_empty() && less.children.is_empty());
        assert_eq!(set.intersect(&set), set);
    }
}
