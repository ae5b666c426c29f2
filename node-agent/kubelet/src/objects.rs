//! The Kubernetes objects that pods refer to and those that the kubelet writes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams, Preconditions},
};
use serde_json::Value;

use crate::runtime::PodRef;

/// A request that the API server refused or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("API server: {operation}")]
pub(crate) struct ObjectsError {
    operation: String,
    #[source]
    source: Box<kube::Error>,
}

/// The API server as the kubelet uses it.
#[derive(Clone)]
pub(crate) struct Objects {
    pub client: Client,
}

impl Objects {
    /// The data of a ConfigMap or Secret; `None` if it does not exist.
    pub async fn data(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, ObjectsError> {
        let failed = failed(format!("get {kind} {namespace}/{name}"));
        if kind == "Secret" {
            let found = Api::<Secret>::namespaced(self.client.clone(), namespace)
                .get_opt(name)
                .await
                .map_err(failed)?;
            let data = found.map(|secret| secret.data.unwrap_or_default());
            return Ok(data.map(|data| {
                data.into_iter()
                    .map(|(key, value)| (key, value.0))
                    .collect()
            }));
        }
        let found = Api::<ConfigMap>::namespaced(self.client.clone(), namespace)
            .get_opt(name)
            .await
            .map_err(failed)?;
        Ok(found.map(|map| {
            let text = map
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.into_bytes()));
            let binary = map
                .binary_data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0));
            text.chain(binary).collect()
        }))
    }

    /// The pod of this name; `None` if there is none.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ObjectsError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let failed = failed(format!("get pod {namespace}/{name}"));
        api.get_opt(name).await.map_err(failed)
    }

    /// The pods that are bound to a node.
    pub async fn pods_of(&self, node: &str) -> Result<ObjectList<Pod>, ObjectsError> {
        let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let api = Api::<Pod>::all(self.client.clone());
        let failed = failed(format!("list the pods of node {node}"));
        api.list(&of_node).await.map_err(failed)
    }

    /// Changes a pod's status by a merge patch; false if there is no such pod any more.
    pub async fn patch_status(&self, pod: &PodRef, status: &Value) -> Result<bool, ObjectsError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let patch = serde_json::json!({ "metadata": { "uid": pod.uid }, "status": status });
        match api
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(false),
            Err(source) => Err(failed(format!(
                "change the status of pod {}/{}",
                pod.namespace, pod.name
            ))(source)),
        }
    }

    /// Lets a pod go that has ended here. A pod that is gone, or another one of that name, is left alone.
    pub async fn delete_pod(&self, pod: &PodRef) -> Result<(), ObjectsError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name, &parameters).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
            Err(source) => {
                Err(failed(format!("delete pod {}/{}", pod.namespace, pod.name))(source))
            }
        }
    }
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

pub(crate) fn failed(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> ObjectsError {
    let operation = operation.into();
    move |source| ObjectsError {
        operation,
        source: Box::new(source),
    }
}
