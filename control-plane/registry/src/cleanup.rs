//! The end of a CustomResourceDefinition: its objects go first.

use serde_json::{Value, json};

use crate::errors::Result;
use crate::json::Json;
use crate::kinds;
use crate::object::Object;
use crate::options::{DeleteOptions, WriteOptions};
use crate::registry::Registry;
use crate::strategies::CLEANUP;

impl Registry {
    /// Removes the objects of a definition whose deletion began, and lets it go once there are none. Objects with
    /// finalizers stay for a while; then this is called again.
    pub(crate) async fn clean_up(&self, definition: &Object) -> Result<()> {
        let value = definition.value();
        let finalizers = value.items("/metadata/finalizers");
        if !value.has("/metadata/deletionTimestamp") || !finalizers.contains(&json!(CLEANUP)) {
            return Ok(());
        }
        let (group, plural) = (value.text("/spec/group"), value.text("/spec/names/plural"));
        let served = self.kinds();
        let kind = served
            .all()
            .find(|k| k.group == group && k.plural == plural);
        if let Some(kind) = kind {
            let (objects, _) = self.cache().list(kind, "", "");
            for object in &objects {
                let options = DeleteOptions::default();
                match self
                    .delete(kind, &object.namespace, &object.name, &options)
                    .await
                {
                    Err(error) if error.code != 404 => return Err(error),
                    _ => {}
                }
            }
            self.settle(None).await?;
            if !self.cache().list(kind, "", "").0.is_empty() {
                return Ok(());
            }
        }
        let definitions = kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            .expect("the table of kinds has a row for customresourcedefinitions");
        let let_go = |old: &Value| {
            let mut new = old.clone();
            if let Some(list) = new.items_mut("/metadata/finalizers") {
                list.retain(|f| f != CLEANUP);
            }
            Ok((new, Vec::new()))
        };
        let options = WriteOptions::default();
        self.modify(definitions, None, "", &definition.name, &options, let_go)
            .await
            .map(|_| ())
    }

    /// Goes on with the definitions whose objects had finalizers.
    pub(crate) async fn clean_up_all(&self) {
        let definitions = kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            .expect("the table of kinds has a row for customresourcedefinitions");
        let (all, _) = self.cache().list(definitions, "", "");
        for definition in &all {
            if let Err(error) = self.clean_up(definition).await {
                tracing::debug!(%error, name = definition.name, "a definition stays for now");
            }
        }
    }
}
