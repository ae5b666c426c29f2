//! The priority levels and flow schemas that every cluster has.

use futures::future::try_join_all;
use serde_json::{Map, Value, json};

use crate::errors::{ApiError, Result};
use crate::registry::Registry;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const DEFAULTS: &str = include_str!("flow.yaml");

/// Says to whoever looks that the specification is the server's own.
const OWN: &str = "apf.kubernetes.io/autoupdate-spec";

impl Registry {
    /// Makes those that are not there; what is there is left as it is.
    pub(super) async fn make_flow_objects(&self) -> Result<()> {
        let all: Value =
            serde_yaml_ng::from_str(DEFAULTS).map_err(|error| ApiError::internal(&error))?;
        // Levels first: a schema whose level is not there catches nothing.
        for (part, plural) in [
            ("levels", "prioritylevelconfigurations"),
            ("schemas", "flowschemas"),
        ] {
            let specs = all[part].as_object().into_iter().flat_map(Map::iter);
            let objects = specs.map(|(name, spec)| {
                let metadata = json!({"name": name, "annotations": {OWN: "true"}});
                json!({"metadata": metadata, "spec": spec})
            });
            // Together, so that they are one commit to the disk.
            try_join_all(objects.map(|object| self.ensure(GROUP, plural, "", object))).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_names_a_level() {
        let all: Value = serde_yaml_ng::from_str(DEFAULTS).unwrap();
        let schemas = all["schemas"].as_object().unwrap();
        assert_eq!(schemas.len(), 12);
        for (name, schema) in schemas {
            let level = schema["priorityLevelConfiguration"]["name"].as_str();
            assert!(all["levels"].get(level.unwrap()).is_some(), "{name}");
        }
    }
}
