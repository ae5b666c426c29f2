//! Structural schemas: what a CustomResourceDefinition says of its objects, as fields, defaults and rules.
//!
//! See <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.

use std::collections::HashMap;

use serde_json::Value;

use crate::json::Json;
use crate::schema::{Field, ListType, Numbers, Shape, Type};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of the objects of a kind.
#[must_use]
pub fn object_type(kind: &str, schema: &Value) -> Type {
    let mut of = type_of(schema);
    kind.clone_into(&mut of.name);
    embed(&mut of);
    of
}

/// Every object has these, whatever its schema says.
fn embed(of: &mut Type) {
    for name in ["apiVersion", "kind"] {
        of.fields.insert(name.into(), plain(Shape::Any));
    }
    let metadata = plain(Shape::Object(OBJECT_META.into()));
    of.fields.insert("metadata".into(), metadata);
}

fn plain(shape: Shape) -> Field {
    Field {
        shape,
        merge: false,
        merge_key: None,
        list: ListType::Atomic,
        atomic: false,
    }
}

fn type_of(schema: &Value) -> Type {
    let properties = schema.object("/properties").into_iter().flatten();
    let fields: HashMap<String, Field> = properties
        .map(|(name, schema)| (name.clone(), field(schema)))
        .collect();
    Type {
        name: String::new(),
        fields,
        required: Vec::new(),
        atomic: schema.text("/x-kubernetes-map-type") == "atomic",
        open: schema.flag("/x-kubernetes-preserve-unknown-fields"),
        numbers: Numbers::new(),
    }
}

fn field(schema: &Value) -> Field {
    Field {
        list: ListType::parse(schema),
        atomic: schema.text("/x-kubernetes-map-type") == "atomic",
        ..plain(shape(schema))
    }
}

/// Scalars are checked by the rules, not by their shape.
fn shape(schema: &Value) -> Shape {
    let extra = &schema["additionalProperties"];
    match schema.text("/type") {
        "array" => Shape::Array(Box::new(field(&schema["items"]))),
        "object" if schema.flag("/x-kubernetes-embedded-resource") => {
            let mut of = type_of(schema);
            embed(&mut of);
            Shape::Inline(Box::new(of))
        }
        "object" if extra.is_object() => Shape::Map(Box::new(field(extra))),
        "object" if extra == &Value::Bool(true) => Shape::Map(Box::new(plain(Shape::Free))),
        "object"
            if !schema.has("/properties")
                && schema.flag("/x-kubernetes-preserve-unknown-fields") =>
        {
            Shape::Free
        }
        "object" => Shape::Inline(Box::new(type_of(schema))),
        "" if schema.flag("/x-kubernetes-preserve-unknown-fields") => Shape::Free,
        _ => Shape::Any,
    }
}

/// Fills in the schema's defaults.
pub fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, schema) in schema.object("/properties").into_iter().flatten() {
                if let (None, Some(default)) = (map.get(name), schema.get("default")) {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(name) {
                    default_below(schema, value);
                }
            }
            let extra = &schema["additionalProperties"];
            if extra.is_object() {
                map.values_mut().for_each(|value| default(extra, value));
            }
        }
        Value::Array(items) => {
            let each = &schema["items"];
            items.iter_mut().for_each(|item| default(each, item));
        }
        _ => {}
    }
}

fn default_below(schema: &Value, value: &mut Value) {
    if let (true, Some(given)) = (value.is_null(), schema.get("default")) {
        *value = given.clone();
    }
    default(schema, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_filled_in_at_every_depth() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
            "size": {"type": "integer", "default": 3},
            "parts": {"type": "array", "items": {"type": "object", "properties": {"kind": {"type": "string", "default": "a"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}}},
        }}}});
        let mut value = json!({});
        default(&schema, &mut value);
        assert_eq!(value, json!({"spec": {"size": 3}}));
        let mut value =
            json!({"spec": {"size": 1, "parts": [{}, {"kind": "b"}], "map": {"k": {}}}});
        default(&schema, &mut value);
        assert_eq!(
            value,
            json!({"spec": {"size": 1, "parts": [{"kind": "a"}, {"kind": "b"}], "map": {"k": {"x": 1}}}})
        );
    }
}
