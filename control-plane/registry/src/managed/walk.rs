//! Objects by their fields: which an object has, which differ between two, and how one is laid over another. All of it
//! is driven by the schema, and none of it knows who owns what.

use serde_json::{Map, Value};

use super::set::Set;
use crate::schema::{Field, ListType, Shape, Type};

/// What the schema says of a place in an object.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// A scalar, or a list or map that has one owner.
    Leaf,
    Struct(&'a Type),
    Map(&'a Field),
    /// A list whose items are told apart by these keys, or by themselves when there are none.
    List(&'a Field, &'a [String]),
    /// Something without schema: maps are divided, lists are not.
    Deduced,
}

/// The differences between two objects.
#[derive(Debug, Default)]
pub struct Difference {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

/// A field or item of a value.
struct Part<'a> {
    step: String,
    node: Node<'a>,
    value: &'a Value,
    /// Whether being there is worth owning by itself: items of lists, and keys of maps.
    item: bool,
}

impl<'a> Node<'a> {
    pub fn of(field: &'a Field) -> Self {
        match &field.shape {
            Shape::Object(_) | Shape::Inline(_) | Shape::Map(_) if field.atomic => Self::Leaf,
            Shape::Free => Self::Deduced,
            Shape::Object(_) | Shape::Inline(_) => match field.object_type() {
                Some(of) if !of.atomic => Self::Struct(of),
                _ => Self::Leaf,
            },
            Shape::Map(inner) => Self::Map(inner),
            Shape::Array(inner) => match &field.list {
                ListType::Atomic => Self::Leaf,
                ListType::Set => Self::List(inner, &[]),
                ListType::Map(keys) => Self::List(inner, keys),
            },
            _ => Self::Leaf,
        }
    }

    /// What stands below a field of this name.
    fn field(self, name: &str) -> Node<'a> {
        match self {
            Self::Struct(of) => of.fields.get(name).map_or(Node::Deduced, Node::of),
            Self::Map(inner) => Node::of(inner),
            _ => Self::Deduced,
        }
    }

    /// The parts of a value; `None` when it has but one owner.
    fn parts(self, value: &'a Value) -> Option<Vec<Part<'a>>> {
        match (self, value) {
            (Self::Struct(_) | Self::Map(_) | Self::Deduced, Value::Object(map)) => Some(
                map.iter()
                    .map(|(name, value)| Part {
                        step: format!("f:{name}"),
                        node: self.field(name),
                        value,
                        item: match self {
                            Self::Struct(of) => !of.fields.contains_key(name),
                            _ => true,
                        },
                    })
                    .collect(),
            ),
            (Self::List(inner, keys), Value::Array(items)) => Some(
                items
                    .iter()
                    .map(|value| Part {
                        step: step(keys, value),
                        node: Node::of(inner),
                        value,
                        item: true,
                    })
                    .collect(),
            ),
            _ => None,
        }
    }
}

impl Part<'_> {
    fn fields(&self) -> Set {
        let mut set = fields(self.node, self.value);
        set.member |= self.item;
        set
    }
}

/// How a list names one of its items.
fn step(keys: &[String], item: &Value) -> String {
    if keys.is_empty() {
        return format!("v:{item}");
    }
    let mut sorted: Vec<&String> = keys.iter().collect();
    sorted.sort();
    let pairs: Vec<String> = sorted
        .iter()
        .map(|key| {
            let value = match item.get(key) {
                // The only key for which the schema has a default.
                None if *key == "protocol" => Value::from("TCP"),
                None => Value::Null,
                Some(value) => value.clone(),
            };
            format!("{}:{value}", Value::from(key.as_str()))
        })
        .collect();
    format!("k:{{{}}}", pairs.join(","))
}

/// The fields that an object has.
pub fn fields(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    let Some(parts) = node.parts(value) else {
        set.member = true;
        return set;
    };
    set.member = parts.is_empty() && value.is_object();
    for part in parts {
        set.graft(&part.step, part.fields());
    }
    set
}

/// What must be done to `old` to make it `new`.
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> Difference {
    let mut out = Difference::default();
    let (Some(before), Some(after)) = (node.parts(old), node.parts(new)) else {
        out.modified.member = old != new;
        return out;
    };
    for part in &after {
        match before.iter().find(|b| b.step == part.step) {
            None => out.added.graft(&part.step, part.fields()),
            Some(was) if was.value == part.value => {}
            Some(was) => {
                let below = compare(part.node, was.value, part.value);
                out.added.graft(&part.step, below.added);
                out.modified.graft(&part.step, below.modified);
                out.removed.graft(&part.step, below.removed);
            }
        }
    }
    for part in &before {
        if !after.iter().any(|a| a.step == part.step) {
            out.removed.graft(&part.step, part.fields());
        }
    }
    out
}

/// Lays `config` over `live`.
///
/// # Errors
/// The path of an item that lacks the keys of its list.
pub fn merge(node: Node<'_>, live: Option<&Value>, config: &Value) -> Result<Value, String> {
    match (node, live, config) {
        (Node::Struct(_) | Node::Map(_) | Node::Deduced, live, Value::Object(config)) => {
            let mut out = live.and_then(Value::as_object).cloned().unwrap_or_default();
            for (name, value) in config {
                let merged = merge(node.field(name), out.get(name), value)
                    .map_err(|path| format!(".{name}{path}"))?;
                out.insert(name.clone(), merged);
            }
            Ok(Value::Object(out))
        }
        (Node::List(inner, keys), live, Value::Array(config)) => {
            let live = live
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice);
            merge_list(inner, keys, live, config).map(Value::Array)
        }
        (_, _, config) => Ok(config.clone()),
    }
}

fn merge_list(
    inner: &Field,
    keys: &[String],
    live: &[Value],
    config: &[Value],
) -> Result<Vec<Value>, String> {
    let mut theirs = Vec::new();
    for (at, item) in config.iter().enumerate() {
        let missing = keys
            .iter()
            .find(|k| item.get(*k).is_none() && *k != "protocol");
        if let Some(key) = missing {
            return Err(format!(
                "[{at}]: element of an associative list omits its key field {key:?}"
            ));
        }
        let name = step(keys, item);
        if theirs.iter().any(|(other, _)| *other == name) {
            return Err(format!(
                "[{at}]: element of an associative list is there twice"
            ));
        }
        let was = live.iter().find(|i| step(keys, i) == name);
        let merged = merge(Node::of(inner), was, item).map_err(|path| format!("[{at}]{path}"))?;
        theirs.push((name, merged));
    }
    // The order is that of the config; what only lives stays where it was among the others.
    let mut out = Vec::new();
    let mut rest = theirs.into_iter();
    let mut done: Vec<String> = Vec::new();
    for item in live {
        let name = step(keys, item);
        if done.contains(&name) {
            continue;
        }
        let in_config = rest.clone().any(|(other, _)| other == name);
        if !in_config {
            out.push(item.clone());
            continue;
        }
        for (other, merged) in rest.by_ref() {
            let found = other == name;
            out.push(merged);
            done.push(other);
            if found {
                break;
            }
        }
    }
    out.extend(rest.map(|(_, merged)| merged));
    Ok(out)
}

/// Takes away from `value` what was in `last` and is not in `managed`.
pub fn prune(node: Node<'_>, value: &mut Value, last: &Set, managed: Option<&Set>) {
    for (step, last) in &last.children {
        let managed = managed.and_then(|m| m.children.get(step));
        if last.holds(step) && !managed.is_some_and(|m| m.holds(step)) {
            remove(node, value, step);
        } else if let Some((below, value)) = find(node, value, step) {
            prune(below, value, last, managed);
        }
    }
}

fn remove(node: Node<'_>, value: &mut Value, at: &str) {
    match (node, value) {
        (Node::List(_, keys), Value::Array(items)) => items.retain(|item| step(keys, item) != at),
        (_, Value::Object(map)) => {
            map.remove(at.trim_start_matches("f:"));
        }
        _ => {}
    }
}

fn find<'a, 'v>(
    node: Node<'a>,
    value: &'v mut Value,
    at: &str,
) -> Option<(Node<'a>, &'v mut Value)> {
    match (node, value) {
        (Node::List(inner, keys), Value::Array(items)) => {
            let item = items.iter_mut().find(|item| step(keys, item) == at)?;
            Some((Node::of(inner), item))
        }
        (_, Value::Object(map)) => {
            let name = at.strip_prefix("f:")?;
            Some((node.field(name), map.get_mut(name)?))
        }
        _ => None,
    }
}

/// The object without anything, to compare a new one with.
#[must_use]
pub fn nothing() -> Value {
    Value::Object(Map::new())
}
