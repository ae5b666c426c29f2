//! Server-side apply: the fields that a client says are its own, laid over the object, which is made if there is none.

use serde_json::Value;

use crate::decode::{self, Body};
use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::{Kind, Subresource};
use crate::managed::{self, Refusal, Writer};
use crate::options::WriteOptions;
use crate::parts::{identify, place};
use crate::registry::Registry;
use crate::write::Written;

impl Registry {
    /// Applies `body`; answers also whether that made the object. `options.apply` says whether conflicts are forced.
    ///
    /// # Errors
    /// As create and update; 409 naming the fields that others own.
    pub async fn apply(
        &self,
        kind: &'static Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        body: Body,
        options: &WriteOptions,
    ) -> Result<(Written, bool)> {
        let mut config = body.value;
        identify(kind, &mut config)?;
        let warnings = decode::conform(kind, &mut config, body.found, options.field_validation)?;
        place(kind, namespace, &mut config)?;
        check(&mut config, name)?;
        let writer = Writer {
            manager: &options.manager,
            subresource,
        };
        let force = options.apply == Some(true);
        let merged = |live: Option<&Value>| {
            managed::apply(kind, live, &config, writer, force).map_err(|refusal| match refusal {
                Refusal::Conflicts(fields) => ApiError::apply_conflict(&fields),
                Refusal::Malformed(why) => ApiError::bad_request(format!(
                    "failed to create typed patch object ({namespace}/{name}; {}, Kind={}): {why}",
                    kind.api_version(),
                    kind.kind
                )),
            })
        };
        if self
            .get(kind, namespace, name, None)
            .await
            .is_err_and(|e| e.code == 404)
        {
            if subresource.is_some() {
                return Err(ApiError::not_found(kind, name));
            }
            let body = Body {
                value: merged(None)?,
                found: Vec::new(),
            };
            match self.create(kind, namespace, body, options).await {
                Err(error) if error.code == 409 => {}
                created => return Ok((with(warnings, created?), true)),
            }
        }
        let change = |old: &Value| Ok((merged(Some(old))?, warnings.clone()));
        let written = self.modify(kind, subresource, namespace, name, options, change);
        Ok((written.await?, false))
    }
}

fn with(warnings: Vec<String>, mut written: Written) -> Written {
    let more = std::mem::replace(&mut written.warnings, warnings);
    written.warnings.extend(more);
    written
}

fn check(config: &mut Value, name: &str) -> Result<()> {
    if !config.items("/metadata/managedFields").is_empty() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let given = config.text("/metadata/name");
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    config.put("/metadata/name", name);
    Ok(())
}
