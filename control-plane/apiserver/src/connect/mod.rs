//! What leads out of the API server: logs, commands, ports and HTTP of pods and nodes, all through the node's kubelet.
//!
//! The API server looks up where to go and hands bytes on; what they mean is between the client and the kubelet. So a
//! client's WebSocket reaches the kubelet as it is, whatever is spoken in it.

pub(crate) mod kubelet;
pub(crate) mod pod;
mod proxy;
mod relay;
pub(crate) mod tunnel;

use axum::extract::Request;
use axum::response::Response;
use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, Subresource};
use http::Method;

use crate::Api;
use crate::path::Target;
use crate::query::Query;

/// A subresource that is a connection to somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

impl Connection {
    pub fn of(subresource: Subresource) -> Option<Self> {
        match subresource {
            Subresource::Log => Some(Self::Log),
            Subresource::Exec => Some(Self::Exec),
            Subresource::Attach => Some(Self::Attach),
            Subresource::PortForward => Some(Self::PortForward),
            Subresource::Proxy => Some(Self::Proxy),
            Subresource::Status
            | Subresource::Scale
            | Subresource::Eviction
            | Subresource::Binding
            | Subresource::Finalize
            | Subresource::EphemeralContainers
            | Subresource::Resize
            | Subresource::Token => None,
        }
    }

    /// Opens it for `request`.
    ///
    /// # Errors
    /// What is missing on the way, or the kubelet's refusal.
    pub async fn open(self, api: &Api, target: &Target, request: Request) -> Result<Response> {
        if self == Self::Proxy {
            return proxy::open(api, target, request).await;
        }
        let method = request.method();
        let asked =
            matches!(*method, Method::GET) || (*method == Method::POST && self != Self::Log);
        if !asked {
            return Err(ApiError::method_not_allowed());
        }
        let query = Query::parse(request.uri().query());
        let pod = pod::Pod::find(api, &target.namespace, &target.name).await?;
        let path = match self {
            Self::Log if pod.node().is_empty() => {
                // A pod that no node has yet has written nothing.
                return Ok(crate::respond::text(http::StatusCode::OK, ""));
            }
            Self::Log => pod.log(&query)?,
            Self::Exec => pod.exec(&query)?,
            Self::Attach => pod.attach(&query)?,
            Self::PortForward | Self::Proxy => pod.port_forward(&query),
        };
        let kubelet = kubelet::Kubelet::of_node(api, pod.node()).await?;
        relay::to_kubelet(api, &kubelet, &path, request).await
    }
}
