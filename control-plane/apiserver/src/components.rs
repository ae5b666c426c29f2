//! ComponentStatus: how the parts of the control plane are. Deprecated in Kubernetes, and still asked for by `kubectl get
//! componentstatuses`.

use control_plane_registry::{Object, kinds};
use serde_json::json;

use crate::Api;

/// The store, as `etcd-0`. The scheduler and the controllers are clients, of which this server knows nothing.
pub async fn all(api: &Api) -> Vec<Object> {
    let kind = kinds::find("", "v1", "componentstatuses")
        .expect("the table of kinds has a row for componentstatuses");
    let condition = match api.registry.check().await {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => {
            json!({"type": "Healthy", "status": "False", "message": error.to_string(), "error": error.to_string()})
        }
    };
    let value = json!({
        "apiVersion": "v1",
        "kind": "ComponentStatus",
        "metadata": {"name": "etcd-0"},
        "conditions": [condition],
    });
    vec![Object::new(kind, value, 0)]
}
