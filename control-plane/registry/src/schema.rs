//! The fields of every served type: two tables that `cargo xtask codegen` writes from what Kubernetes publishes, read by
//! decoding, by both kinds of merge and by OpenAPI discovery.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// All types, by their OpenAPI name.
#[derive(Debug)]
pub struct Schema {
    /// The OpenAPI v3 `components.schemas` entries, as a client downloads them.
    pub definitions: Map<String, Value>,
    types: HashMap<String, Type>,
    /// The OpenAPI names by apiVersion and kind.
    kinds: HashMap<(String, String), String>,
}

/// The fields of one object type.
#[derive(Debug, Default)]
pub struct Type {
    /// The Go name: the last part of the OpenAPI name.
    pub name: String,
    pub fields: HashMap<String, Field>,
    /// Fields that JSON always carries, in the order of the schema.
    pub required: Vec<String>,
    /// `x-kubernetes-map-type: atomic`: who applies a part owns the whole.
    pub atomic: bool,
    /// Whether fields that it does not name are kept.
    pub open: bool,
    /// What stands under which number in protobuf.
    pub numbers: Numbers,
}

/// Protobuf's field numbers of a message.
pub type Numbers = HashMap<u32, Number>;

/// What stands under a number.
#[derive(Debug)]
pub enum Number {
    Property(String),
    /// A message that JSON writes as if its fields were those of the outer one.
    Inline(Numbers),
}

/// One field, or the items of a list, or the values of a map.
#[derive(Debug)]
pub struct Field {
    pub shape: Shape,
    /// `x-kubernetes-patch-strategy: merge`: a strategic patch merges this list instead of replacing it.
    pub merge: bool,
    /// `x-kubernetes-patch-merge-key`: which field tells the items of the list apart.
    pub merge_key: Option<String>,
    /// How server-side apply divides a list among its owners.
    pub list: ListType,
    /// `x-kubernetes-map-type: atomic` of this field.
    pub atomic: bool,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    /// With `x-kubernetes-list-map-keys`.
    Map(Vec<String>),
}

/// What JSON a field takes.
#[derive(Debug)]
pub enum Shape {
    Boolean,
    /// The Go type, for the message: `int32` or `int64`.
    Integer(&'static str),
    Number,
    String,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// base64.
    Bytes,
    IntOrString,
    Quantity,
    /// Anything: `RawExtension`, `FieldsV1`.
    Any,
    /// `JSONSchemaPropsOr` with the rest of its name: a schema, or an `Array` of them, a `Bool`, a `StringArray`.
    SchemaOr(&'static str),
    /// An object type, by its OpenAPI name.
    Object(String),
    /// An object type of its own.
    Inline(Box<Type>),
    /// Any JSON, which server-side apply divides by its maps.
    Free,
    Array(Box<Field>),
    Map(Box<Field>),
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::parse(
        include_str!("schema/definitions.json"),
        include_str!("schema/protobuf.json"),
    )
    .expect("the committed tables are the output of `cargo xtask codegen`, which is JSON")
});

/// The table that is compiled in.
#[must_use]
pub fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    fn parse(definitions: &str, numbers: &str) -> Result<Self, serde_json::Error> {
        let definitions: Map<String, Value> = serde_json::from_str(definitions)?;
        let numbers: Map<String, Value> = serde_json::from_str(numbers)?;
        let types = definitions
            .iter()
            .filter_map(|(name, definition)| {
                let mut of = Type::parse(name, definition, &definitions)?;
                of.numbers = numbers.get(name).map(parse_numbers).unwrap_or_default();
                Some((name.clone(), of))
            })
            .collect();
        let kinds = definitions
            .iter()
            .flat_map(|(name, definition)| kinds_of(definition).map(|kind| (kind, name.clone())))
            .collect();
        Ok(Self {
            definitions,
            types,
            kinds,
        })
    }

    /// The type of objects that call themselves so.
    #[must_use]
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Type> {
        let named = (api_version.to_owned(), kind.to_owned());
        self.types.get(self.kinds.get(&named)?)
    }

    /// The object type with this OpenAPI name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Type> {
        self.types.get(name)
    }

    /// The names of `root` and of every definition that it reaches, sorted.
    #[must_use]
    pub fn reachable(&self, roots: &[&str]) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        let mut next: Vec<String> = roots.iter().map(|&r| r.to_owned()).collect();
        while let Some(name) = next.pop() {
            if let (false, Some(definition)) = (seen.contains(&name), self.definitions.get(&name)) {
                references(definition, &mut next);
                seen.push(name);
            }
        }
        seen.sort();
        seen
    }
}

/// `x-kubernetes-group-version-kind`, as apiVersion and kind.
fn kinds_of(definition: &Value) -> impl Iterator<Item = (String, String)> {
    let list = definition
        .get("x-kubernetes-group-version-kind")
        .and_then(Value::as_array);
    list.into_iter().flatten().map(|gvk| {
        let text = |key: &str| gvk[key].as_str().unwrap_or_default();
        let api_version = match text("group") {
            "" => text("version").to_owned(),
            group => format!("{group}/{}", text("version")),
        };
        (api_version, text("kind").to_owned())
    })
}

fn parse_numbers(table: &Value) -> Numbers {
    let entries = table.as_object().into_iter().flatten();
    entries
        .filter_map(|(number, what)| {
            let what = match what.as_str() {
                Some(property) => Number::Property(property.to_owned()),
                None => Number::Inline(parse_numbers(what)),
            };
            Some((number.parse().ok()?, what))
        })
        .collect()
}

impl Type {
    /// `None` for what is no object with named fields.
    fn parse(name: &str, definition: &Value, all: &Map<String, Value>) -> Option<Self> {
        let properties = definition.get("properties")?.as_object()?;
        Some(Self {
            name: name.rsplit('.').next().unwrap_or(name).to_owned(),
            fields: properties
                .iter()
                .map(|(field, schema)| (field.clone(), Field::parse(schema, all)))
                .collect(),
            required: strings(definition, "required"),
            atomic: is_atomic_map(definition),
            open: false,
            numbers: Numbers::new(),
        })
    }
}

impl Field {
    fn parse(schema: &Value, all: &Map<String, Value>) -> Self {
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        Self {
            shape: Shape::parse(schema, all),
            merge: text("x-kubernetes-patch-strategy")
                .is_some_and(|s| s.split(',').any(|s| s == "merge")),
            merge_key: text("x-kubernetes-patch-merge-key").map(ToOwned::to_owned),
            list: ListType::parse(schema),
            atomic: is_atomic_map(schema),
        }
    }

    /// The object type of this field, or of its items or values.
    #[must_use]
    pub fn object_type(&self) -> Option<&Type> {
        match &self.shape {
            Shape::Object(name) => schema().get(name),
            Shape::Inline(of) => Some(of),
            Shape::Array(inner) | Shape::Map(inner) => inner.object_type(),
            _ => None,
        }
    }
}

impl ListType {
    /// What the schema of a list says.
    #[must_use]
    pub fn parse(schema: &Value) -> Self {
        match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => Self::Set,
            Some("map") => Self::Map(strings(schema, "x-kubernetes-list-map-keys")),
            _ => Self::Atomic,
        }
    }
}

fn is_atomic_map(schema: &Value) -> bool {
    schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic")
}

fn strings(schema: &Value, key: &str) -> Vec<String> {
    let list = schema.get(key).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(ToOwned::to_owned).collect()
}

impl Shape {
    fn parse(schema: &Value, all: &Map<String, Value>) -> Self {
        // A reference with something beside it, such as a description, stands in a list of its own.
        let apart = schema.pointer("/allOf/0/$ref");
        if let Some(reference) = schema.get("$ref").or(apart).and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            return Self::named(name, all);
        }
        let format = schema.get("format").and_then(Value::as_str);
        let inner = |key: &str| {
            let schema = schema.get(key).unwrap_or(&Value::Null);
            Box::new(Field::parse(schema, all))
        };
        match schema.get("type").and_then(Value::as_str) {
            Some("boolean") => Self::Boolean,
            Some("integer") if format == Some("int32") => Self::Integer("int32"),
            Some("integer") => Self::Integer("int64"),
            Some("number") => Self::Number,
            Some("string") if format == Some("date-time") => Self::Time,
            Some("string") if format == Some("byte") => Self::Bytes,
            Some("string") => Self::String,
            Some("array") => Self::Array(inner("items")),
            Some("object") if schema.get("additionalProperties").is_some() => {
                Self::Map(inner("additionalProperties"))
            }
            _ => Self::Any,
        }
    }

    /// The types that Go encodes by hand, and those that are only another name of a shape.
    fn named(name: &str, all: &Map<String, Value>) -> Self {
        match name.rsplit('.').next().unwrap_or(name) {
            "Quantity" => Self::Quantity,
            "IntOrString" => Self::IntOrString,
            "MicroTime" => Self::MicroTime,
            "RawExtension" | "FieldsV1" | "JSON" => Self::Any,
            "JSONSchemaPropsOrArray" => Self::SchemaOr("Array"),
            "JSONSchemaPropsOrBool" => Self::SchemaOr("Bool"),
            "JSONSchemaPropsOrStringArray" => Self::SchemaOr("StringArray"),
            _ => match all.get(name) {
                Some(d) if d.get("properties").is_some() => Self::Object(name.to_owned()),
                Some(d) => Self::parse(d, all),
                None => Self::Any,
            },
        }
    }
}

fn references(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some(target) if key == "$ref" => {
                        out.push(target.rsplit('/').next().unwrap_or(target).to_owned());
                    }
                    _ => references(value, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_keys_come_from_the_table() {
        let spec = schema().get("io.k8s.api.core.v1.PodSpec").expect("PodSpec");
        assert_eq!(spec.fields["containers"].merge_key.as_deref(), Some("name"));
        assert!(!spec.fields["tolerations"].merge);
        let service = schema()
            .get("io.k8s.api.core.v1.ServiceSpec")
            .expect("ServiceSpec");
        assert_eq!(service.fields["ports"].merge_key.as_deref(), Some("port"));
        assert!(matches!(
            schema()
                .get("io.k8s.api.core.v1.ServicePort")
                .expect("ServicePort")
                .fields["targetPort"]
                .shape,
            Shape::IntOrString
        ));
    }

    #[test]
    fn every_reference_resolves() {
        for (name, definition) in &schema().definitions {
            let mut targets = Vec::new();
            references(definition, &mut targets);
            for target in targets {
                assert!(
                    schema().definitions.contains_key(&target),
                    "{name} -> {target}"
                );
            }
        }
    }
}
