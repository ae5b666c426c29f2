//! Strategic merge patch: a merge that knows from the schema which lists are maps by a key.
//!
//! The rules: <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>;
//! the order of merged lists follows `k8s.io/apimachinery/pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use crate::schema::{Field, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Why a patch makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("Unknown {DIRECTIVE} directive {0:?}: use \"replace\", \"merge\" or \"delete\"")]
    Directive(String),
    #[error("{0} must be a list")]
    NoList(String),
    #[error("items of the list {list:?} are merged by {key:?}: give every item of the patch one")]
    NoMergeKey { list: String, key: String },
}

type Result<T> = std::result::Result<T, PatchError>;

/// Merges `patch` into `original`, an object of type `of` (`None`: a type without schema, merged as plain JSON).
///
/// # Errors
/// A malformed patch, see [`PatchError`].
pub fn merge(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    of: Option<&Type>,
) -> Result<Map<String, Value>> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) if word == "merge" => {}
        Some(Value::String(word)) if word == "replace" => return Ok(plain(patch)),
        Some(Value::String(word)) if word == "delete" => return Ok(Map::new()),
        Some(other) => return Err(PatchError::Directive(text_of(&other))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let keys = list(RETAIN_KEYS, keys)?;
        original.retain(|name, _| keys.iter().any(|k| k == name));
    }
    let (directives, fields): (Vec<_>, Vec<_>) = patch
        .into_iter()
        .partition(|(name, _)| name.starts_with('$'));
    let mut orders = Vec::new();
    for (name, value) in directives {
        if let Some(field) = name.strip_prefix(DELETE_PRIMITIVES) {
            let gone = list(&name, value)?;
            if let Some(items) = original.get_mut(field).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
        } else if let Some(field) = name.strip_prefix(ORDER) {
            orders.push((field.to_owned(), list(&name, value)?));
        }
    }
    let before = original.clone();
    for (name, value) in fields {
        let field = of.and_then(|of| of.fields.get(&name));
        if value.is_null() {
            original.remove(&name);
            continue;
        }
        let merged = match (original.remove(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(merge(old, new, inner_type(field))?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if is_merged(field) => {
                Value::Array(merge_list(&name, old, new, field)?)
            }
            (_, Value::Object(new)) => Value::Object(merge(Map::new(), new, inner_type(field))?),
            (_, Value::Array(new)) if is_merged(field) => {
                Value::Array(merge_list(&name, Vec::new(), new, field)?)
            }
            (_, value) => without_directives(value),
        };
        original.insert(name, merged);
    }
    for (name, order) in orders {
        let key = of
            .and_then(|of| of.fields.get(&name))
            .and_then(|f| f.merge_key.as_deref());
        let server = before.get(&name).and_then(Value::as_array).cloned();
        if let Some(items) = original.get_mut(&name).and_then(Value::as_array_mut) {
            let merged = std::mem::take(items);
            *items = arrange(merged, &order, &server.unwrap_or_default(), key);
        }
    }
    Ok(original)
}

fn is_merged(field: Option<&Field>) -> bool {
    field.is_some_and(|f| f.merge && matches!(f.shape, Shape::Array(_)))
}

/// The type of an object field; maps from names to values have none.
fn inner_type(field: Option<&Field>) -> Option<&Type> {
    field
        .filter(|f| matches!(f.shape, Shape::Object(_)))
        .and_then(Field::object_type)
}

fn merge_list(
    name: &str,
    original: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&Field>,
) -> Result<Vec<Value>> {
    let Some(key) = field.and_then(|f| f.merge_key.as_deref()) else {
        // A set of scalars.
        let mut both: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !both.contains(item) {
                both.push(item.clone());
            }
        }
        return Ok(arrange(both, &patch, &original, None));
    };
    let directive = |item: &Value| {
        item.get(DIRECTIVE)
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    };
    if patch
        .iter()
        .any(|item| directive(item).as_deref() == Some("replace"))
    {
        return Ok(patch
            .into_iter()
            .filter(|item| directive(item).is_none())
            .map(without_directives)
            .collect());
    }
    let mut merged = original.clone();
    let mut order = Vec::new();
    for item in patch {
        let Some(id) = item.get(key).cloned() else {
            return Err(PatchError::NoMergeKey {
                list: name.to_owned(),
                key: key.to_owned(),
            });
        };
        let found = merged.iter().position(|old| old.get(key) == Some(&id));
        match (directive(&item).as_deref(), found) {
            (Some("delete"), _) => {
                merged.retain(|old| old.get(key) != Some(&id));
                continue;
            }
            (Some("merge") | None, _) => {}
            (Some(other), _) => return Err(PatchError::Directive(other.to_owned())),
        }
        order.push(item.clone());
        let Value::Object(item) = item else {
            continue;
        };
        let of = field.and_then(Field::object_type);
        match found {
            Some(at) => {
                if let Value::Object(old) = std::mem::take(&mut merged[at]) {
                    merged[at] = Value::Object(merge(old, item, of)?);
                }
            }
            None => merged.push(Value::Object(merge(Map::new(), item, of)?)),
        }
    }
    Ok(arrange(merged, &order, &original, Some(key)))
}

/// Puts the items that `order` names into its order, and the others where the server's list had them.
fn arrange(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let same = |a: &Value, b: &Value| match key {
        Some(key) => a.get(key) == b.get(key),
        None => a == b,
    };
    let place = |list: &[Value], item: &Value| list.iter().position(|x| same(x, item));
    let (mut ours, mut others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .partition(|item| place(order, item).is_some());
    ours.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(server, item).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in ours {
        let here = place(server, &item);
        while let (Some(other), Some(here)) = (others.peek(), here)
            && place(server, other).is_some_and(|there| there < here)
        {
            out.extend(others.next());
        }
        out.push(item);
    }
    out.extend(others);
    out
}

fn plain(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
        .map(|(name, value)| (name, without_directives(value)))
        .collect()
}

/// What a new part of an object is: the patch without its instructions.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(plain(map)),
        Value::Array(items) => items
            .into_iter()
            .filter(|item| item.get(DIRECTIVE).and_then(Value::as_str) != Some("delete"))
            .map(without_directives)
            .collect(),
        other => other,
    }
}

fn list(name: &str, value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(PatchError::NoList(name.to_owned())),
    }
}

fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;
    use serde_json::json;

    fn patch(of: &str, original: &Value, patch: &Value) -> Result<Value> {
        let (group, of) = of.split_once('.').unwrap_or(("core", of));
        let of = schema().get(&format!("io.k8s.api.{group}.v1.{of}"));
        assert!(of.is_some());
        let (original, patch) = (original.as_object().unwrap(), patch.as_object().unwrap());
        merge(original.clone(), patch.clone(), of).map(Value::Object)
    }

    /// Name, type, original, patch, and what comes of it.
    type Case = (&'static str, &'static str, Value, Value, Value);

    fn hold(cases: impl IntoIterator<Item = Case>) {
        for (name, of, original, change, want) in cases {
            assert_eq!(patch(of, &original, &change).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn each_rule() {
        let cases = [
            (
                "maps merge, null removes",
                "Pod",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
                json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
            ),
            (
                // It comes first, as in Kubernetes, since the patch sets no order.
                "a port is added beside the others",
                "Service",
                json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
                json!({"spec": {"ports": [{"port": 82}]}}),
                json!({"spec": {"ports": [{"port": 82}, {"port": 80}, {"port": 81}]}}),
            ),
            (
                "a port is changed and one is deleted",
                "Service",
                json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81}]}}),
                json!({"spec": {"ports": [{"port": 80, "name": "b"}, {"port": 81, "$patch": "delete"}]}}),
                json!({"spec": {"ports": [{"port": 80, "name": "b"}]}}),
            ),
            (
                "the order that the patch sets",
                "Pod",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "x"}]}}),
                json!({"spec": {"containers": [{"name": "b"}, {"name": "c"}, {"name": "a", "image": "x"}]}}),
            ),
            (
                "order alone",
                "Pod",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
            ),
            (
                "atomic lists are replaced",
                "Pod",
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
            (
                "a list replaced on demand",
                "Pod",
                json!({"spec": {"containers": [{"name": "a"}]}}),
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"name": "b"}]}}),
            ),
            (
                "a map replaced on demand",
                "Pod",
                json!({"spec": {"nodeSelector": {"a": "1"}}}),
                json!({"spec": {"nodeSelector": {"$patch": "replace", "b": "2"}}}),
                json!({"spec": {"nodeSelector": {"b": "2"}}}),
            ),
            (
                "scalars are a set",
                "Pod",
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            (
                "retainKeys drops the old volume source",
                "Pod",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
            ),
            (
                "conditions merge by type",
                "Node",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
            ),
        ];
        hold(cases);
    }

    #[test]
    fn rules_in_combination() {
        hold([
            (
                "the strategy's other half goes with retainKeys",
                "apps.Deployment",
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
            ),
            (
                "items of a list in an item of a list",
                "apps.Deployment",
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}]}]}}}}),
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}], "ports": [{"containerPort": 80, "$patch": "delete"}]}]}}}}),
                json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}], "ports": []}]}}}}),
            ),
            (
                "an item that comes and one that goes in the order that is set",
                "Pod",
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
                json!({"spec": {"$setElementOrder/containers": [{"name": "d"}, {"name": "c"}, {"name": "a"}],
                    "containers": [{"name": "d", "image": "x"}, {"name": "b", "$patch": "delete"}]}}),
                json!({"spec": {"containers": [{"name": "d", "image": "x"}, {"name": "c"}, {"name": "a"}]}}),
            ),
            (
                "deleting what is not there",
                "Service",
                json!({"spec": {"ports": [{"port": 80}]}}),
                json!({"spec": {"ports": [{"port": 81, "$patch": "delete"}]}}),
                json!({"spec": {"ports": [{"port": 80}]}}),
            ),
            (
                "a map emptied on demand",
                "Pod",
                json!({"spec": {"nodeSelector": {"a": "1"}}}),
                json!({"spec": {"nodeSelector": {"$patch": "delete"}}}),
                json!({"spec": {"nodeSelector": {}}}),
            ),
            (
                "nulls in what is new mean nothing",
                "Pod",
                json!({"metadata": {"name": "p"}}),
                json!({"metadata": {"labels": {"a": null, "b": "1"}}, "spec": {"containers": [{"name": "c", "image": null}]}}),
                json!({"metadata": {"name": "p", "labels": {"b": "1"}}, "spec": {"containers": [{"name": "c"}]}}),
            ),
            (
                "a list without merge key is replaced whole",
                "Pod",
                json!({"spec": {"containers": [{"name": "c", "args": ["a", "b"]}]}}),
                json!({"spec": {"containers": [{"name": "c", "args": ["c"]}]}}),
                json!({"spec": {"containers": [{"name": "c", "args": ["c"]}]}}),
            ),
            (
                "a scalar takes the place of a map",
                "Service",
                json!({"spec": {"ports": [{"port": 80, "targetPort": 1}]}}),
                json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
                json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
            ),
            (
                "primitives leave by name and come in the order that is set",
                "Pod",
                json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["d", "c", "a"], "finalizers": ["d"]}}),
                json!({"metadata": {"finalizers": ["d", "c", "a"]}}),
            ),
        ]);
    }

    #[test]
    fn nonsense_is_named() {
        let service = json!({"spec": {"ports": [{"port": 80}]}});
        assert_eq!(
            patch(
                "Service",
                &service,
                &json!({"spec": {"ports": [{"name": "x"}]}})
            ),
            Err(PatchError::NoMergeKey {
                list: "ports".into(),
                key: "port".into()
            })
        );
        assert_eq!(
            patch("Service", &service, &json!({"spec": {"$patch": "wipe"}})),
            Err(PatchError::Directive("wipe".into()))
        );
    }
}
