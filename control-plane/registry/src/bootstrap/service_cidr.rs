//! ServiceCIDR `kubernetes`: what Services' addresses are taken from.

use serde_json::{Value, json};

use crate::decode::Body;
use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::{self, Subresource};
use crate::meta;
use crate::options::WriteOptions;
use crate::registry::Registry;

const NAME: &str = "kubernetes";

impl Registry {
    /// Makes it if it is not there, and says that it is ready where it names the ranges of this server. One with others
    /// is left as it is: somebody must see that they have changed.
    pub(super) async fn make_service_cidr(&self) -> Result<()> {
        let kind = kinds::find("networking.k8s.io", "v1", "servicecidrs")
            .ok_or_else(ApiError::unknown_resource)?;
        let ranges: Value = self.claims().service_cidrs().into();
        let own = json!({"metadata": {"name": NAME}, "spec": {"cidrs": ranges}});
        self.ensure(kind.group, kind.plural, "", own).await?;
        let found = self.get(kind, "", NAME, None).await?.value();
        if found["spec"]["cidrs"] != ranges || !found.items("/status/conditions").is_empty() {
            return Ok(());
        }
        let mut ready = found;
        ready.put(
            "/status/conditions",
            json!([{
                "type": "Ready",
                "status": "True",
                "reason": "",
                "message": "Kubernetes default Service CIDR is ready",
                "lastTransitionTime": meta::now(),
            }]),
        );
        let body = Body {
            value: ready,
            found: Vec::new(),
        };
        let options = WriteOptions::default();
        let status = Some(Subresource::Status);
        match self.update(kind, status, "", NAME, body, &options).await {
            // Another server has just said so.
            Err(error) if error.code != 409 => Err(error),
            _ => Ok(()),
        }
    }
}
