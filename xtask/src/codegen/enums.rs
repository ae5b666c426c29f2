//! The values of enumerations, which the published schemas do not have.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

const ENUMS: &str = include_str!("enums.txt");

/// Puts them into the schemas.
///
/// # Errors
/// When a line of the list is none, or names a field that no schema has: it is to be mended or to go.
pub fn add(schemas: &mut Map<String, Value>) -> Result<()> {
    for line in ENUMS.lines().filter(|line| !line.starts_with('#')) {
        add_line(schemas, line).with_context(|| format!("enums.txt: {line}"))?;
    }
    Ok(())
}

fn add_line(schemas: &mut Map<String, Value>, line: &str) -> Result<()> {
    let (field, values) = line.split_once(": ").context("there is no colon")?;
    let (name, field) = field.split_once(' ').context("there is no field")?;
    let schema = schemas.get_mut(name).context("there is no such type")?;
    let mut field = schema.pointer_mut(&format!("/properties/{field}"));
    // Those of a list or a map are its elements'.
    for inner in ["items", "additionalProperties"] {
        if field
            .as_ref()
            .is_some_and(|field| field.get(inner).is_some())
        {
            field = field.and_then(|field| field.get_mut(inner));
        }
    }
    let field = field.context("there is no such field")?;
    if field["type"] != "string" {
        bail!("it is no string");
    }
    let values = values.split(' ').map(|value| value.trim_matches('"'));
    field["enum"] = json!(values.collect::<Vec<_>>());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_to_fields_to_elements_and_to_nothing_else() {
        let text = || json!({"type": "string"});
        let mut schemas = Map::new();
        schemas.insert(
            "a.T".into(),
            json!({"properties": {"one": text(), "many": {"type": "array", "items": text()},
                "of": {"type": "object", "additionalProperties": text()}, "other": {"type": "integer"}}}),
        );
        for line in ["a.T one: A B", "a.T many: \"\" C", "a.T of: D"] {
            add_line(&mut schemas, line).unwrap();
        }
        let at = |pointer: &str| schemas["a.T"].pointer(pointer).cloned();
        assert_eq!(at("/properties/one/enum"), Some(json!(["A", "B"])));
        assert_eq!(at("/properties/many/items/enum"), Some(json!(["", "C"])));
        assert_eq!(
            at("/properties/of/additionalProperties/enum"),
            Some(json!(["D"]))
        );
        for line in [
            "a.U one: A",
            "a.T none: A",
            "a.T other: A",
            "a.T one",
            "one: A",
        ] {
            assert!(add_line(&mut schemas, line).is_err(), "{line}");
        }
    }
}
