//! Reading and writing untyped objects by JSON pointer, with Go's idea that absent, null and empty are the same.

use serde_json::{Map, Value};

/// Lenient access by [RFC 6901](https://www.rfc-editor.org/rfc/rfc6901) pointer.
pub trait Json {
    /// The string at `pointer`; empty when it is absent or no string.
    fn text(&self, pointer: &str) -> &str;
    /// The array at `pointer`; empty when it is absent or no array.
    fn items(&self, pointer: &str) -> &[Value];
    /// The object at `pointer`, if there is one.
    fn object(&self, pointer: &str) -> Option<&Map<String, Value>>;
    /// The integer at `pointer`, if there is one.
    fn integer(&self, pointer: &str) -> Option<i64>;
    /// Whether there is `true` at `pointer`.
    fn flag(&self, pointer: &str) -> bool;
    /// Whether something other than null stands at `pointer`.
    fn has(&self, pointer: &str) -> bool;
    /// Puts `value` at `pointer`, making the objects on the way. Does nothing below a scalar or an array.
    fn put(&mut self, pointer: &str, value: impl Into<Value>);
    /// Puts `value` at `pointer` unless something other than null stands there.
    fn put_default(&mut self, pointer: &str, value: impl Into<Value>);
    /// Removes and returns what stands at `pointer` (a member of an object).
    fn take_at(&mut self, pointer: &str) -> Option<Value>;
    /// The array at `pointer`, to change; `None` when it is absent or no array.
    fn items_mut(&mut self, pointer: &str) -> Option<&mut Vec<Value>>;
}

impl Json for Value {
    fn text(&self, pointer: &str) -> &str {
        self.pointer(pointer)
            .and_then(Self::as_str)
            .unwrap_or_default()
    }

    fn items(&self, pointer: &str) -> &[Value] {
        self.pointer(pointer)
            .and_then(Self::as_array)
            .map_or(&[], Vec::as_slice)
    }

    fn object(&self, pointer: &str) -> Option<&Map<String, Value>> {
        self.pointer(pointer).and_then(Self::as_object)
    }

    fn integer(&self, pointer: &str) -> Option<i64> {
        self.pointer(pointer).and_then(Self::as_i64)
    }

    fn flag(&self, pointer: &str) -> bool {
        self.pointer(pointer).and_then(Self::as_bool) == Some(true)
    }

    fn has(&self, pointer: &str) -> bool {
        self.pointer(pointer).is_some_and(|v| !v.is_null())
    }

    fn put(&mut self, pointer: &str, value: impl Into<Value>) {
        let Some((parent, last)) = pointer.rsplit_once('/') else {
            *self = value.into();
            return;
        };
        let mut at = self;
        for step in parent.split('/').skip(1) {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            let Some(map) = at.as_object_mut() else {
                return;
            };
            at = map.entry(unescape(step)).or_insert(Value::Null);
        }
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        if let Some(map) = at.as_object_mut() {
            map.insert(unescape(last), value.into());
        }
    }

    fn put_default(&mut self, pointer: &str, value: impl Into<Value>) {
        if !self.has(pointer) {
            self.put(pointer, value);
        }
    }

    fn take_at(&mut self, pointer: &str) -> Option<Value> {
        let (parent, last) = pointer.rsplit_once('/')?;
        self.pointer_mut(parent)?
            .as_object_mut()?
            .remove(&unescape(last))
    }

    fn items_mut(&mut self, pointer: &str) -> Option<&mut Vec<Value>> {
        self.pointer_mut(pointer)?.as_array_mut()
    }
}

/// Whether two values are the same to Go's decoder, for which an absent, null, zero or empty field is one thing.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a
            .keys()
            .chain(b.keys().filter(|k| !a.contains_key(*k)))
            .all(|key| {
                same(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                )
            }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Whether Go's `omitempty` would leave this value out.
#[must_use]
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
    }
}

fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn put_makes_the_way_and_keeps_what_is_there() {
        let mut v = json!({"a": {"b": 1}});
        v.put("/a/c/d", "x");
        v.put_default("/a/b", 2);
        v.put("/metadata/labels/kubernetes.io~1name", "n");
        assert_eq!(
            v,
            json!({"a": {"b": 1, "c": {"d": "x"}}, "metadata": {"labels": {"kubernetes.io/name": "n"}}})
        );
        assert_eq!(v.take_at("/a/b"), Some(json!(1)));
    }

    #[test]
    fn absent_and_empty_are_the_same() {
        assert!(same(
            &json!({"a": 1, "b": "", "c": {}}),
            &json!({"a": 1, "d": []})
        ));
        assert!(!same(&json!({"a": 1}), &json!({"a": 2})));
        assert!(!same(&json!([1]), &json!([1, 2])));
    }
}
