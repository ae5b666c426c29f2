//! `pods/eviction`: a delete that PodDisruptionBudgets may forbid.

use std::sync::Arc;

use serde_json::Value;

use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::{self, Kind, Subresource};
use crate::meta;
use crate::object::Object;
use crate::options::{DeleteOptions, WriteOptions};
use crate::registry::Registry;
use crate::strategies;

impl Registry {
    /// Evicts a pod.
    ///
    /// # Errors
    /// 404, 429 when a budget has no disruption to give, 500 when more than one is about the pod.
    pub async fn evict(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        eviction: &Value,
        options: &DeleteOptions,
    ) -> Result<()> {
        let given = eviction.text("/metadata/name");
        if !given.is_empty() && given != name {
            return Err(ApiError::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let pod = self.get(kind, namespace, name, None).await?.value();
        if !strategies::needs_no_budget(&pod)
            && let Some(budget) = self.budget_of(namespace, &pod)?
            && !strategies::frees_unready(&budget.value(), &pod)
        {
            let change = |old: &Value| {
                let mut new = old.clone();
                strategies::spend(&mut new, name, &meta::now())
                    .map_err(|why| ApiError::too_many_disruptions(&why))?;
                Ok((new, Vec::new()))
            };
            let status = Some(Subresource::Status);
            let budgets = budget.kind;
            let write = WriteOptions {
                dry_run: options.dry_run,
                ..WriteOptions::default()
            };
            self.modify(budgets, status, namespace, &budget.name, &write, change)
                .await?;
        }
        self.delete(kind, namespace, name, options)
            .await
            .map(|_| ())
    }

    fn budget_of(&self, namespace: &str, pod: &Value) -> Result<Option<Arc<Object>>> {
        let budgets = kinds::find("policy", "v1", "poddisruptionbudgets")
            .expect("the table of kinds has a row for poddisruptionbudgets");
        let (all, _) = self.cache().list(budgets, &format!("{namespace}/"), "");
        let mut about = all
            .into_iter()
            .filter(|budget| strategies::covers(&budget.value(), pod));
        match (about.next(), about.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(ApiError::internal_text(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }
}
