//! What a new object must agree with others on before it is looked at by itself: a pod with its PriorityClass.
//!
//! Follows the admission plugin Priority of Kubernetes
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>).

use serde_json::Value;

use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::kinds::{self, Kind};
use crate::registry::Registry;

impl Registry {
    /// Completes a new object from what others say.
    pub(crate) fn admit(&self, kind: &Kind, object: &mut Value) -> Result<()> {
        if kind.group.is_empty() && kind.kind == "Pod" {
            self.prioritize(kind, object)?;
        }
        Ok(())
    }

    /// Gives a pod the priority of its class, or of the class that is the default.
    fn prioritize(&self, kind: &Kind, pod: &mut Value) -> Result<()> {
        let classes = kinds::find("scheduling.k8s.io", "v1", "priorityclasses")
            .expect("the table of kinds has a row for priorityclasses");
        let refuse = |pod: &Value, why: String| {
            Err(ApiError::forbidden(kind, pod.text("/metadata/name"), &why))
        };
        let name = pod.text("/spec/priorityClassName").to_owned();
        let class = if name.is_empty() {
            let (all, _) = self.cache().list(classes, "", "");
            let defaults = all
                .iter()
                .map(|c| c.value())
                .filter(|c| c.flag("/globalDefault"));
            // Of several the lowest counts.
            defaults.min_by_key(|c| c.integer("/value").unwrap_or(0))
        } else {
            let Some(class) = self.cached(classes, "", &name) else {
                return refuse(pod, format!("no PriorityClass with name {name} was found"));
            };
            Some(class.value())
        };
        let priority = class
            .as_ref()
            .and_then(|c| c.integer("/value"))
            .unwrap_or(0);
        if let Some(given) = pod
            .integer("/spec/priority")
            .filter(|given| *given != priority)
        {
            return refuse(
                pod,
                format!(
                    "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
                ),
            );
        }
        pod.put("/spec/priority", priority);
        if let Some(class) = class {
            pod.put("/spec/priorityClassName", class.text("/metadata/name"));
            pod.put_default("/spec/preemptionPolicy", class.text("/preemptionPolicy"));
        }
        Ok(())
    }
}
