//! Where a node's kubelet is, and one request to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, kinds};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::Api;

/// How long a connection to a node may take.
const DIAL: Duration = Duration::from_secs(10);

/// Why a node cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error(
        "node {0} serves no kubelet API: its status.daemonEndpoints.kubeletEndpoint or its InternalIP is missing"
    )]
    NotServed(String),
    #[error("dial tcp {0}: no answer within 10 s")]
    Timeout(SocketAddr),
    #[error("dial tcp {address}")]
    Dial {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("ask {host}")]
    Exchange {
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{0}")]
    Answer(String),
}

/// A node's kubelet, by what its Node says.
#[derive(Clone, Copy, Debug)]
pub struct Kubelet {
    pub address: SocketAddr,
}

impl Kubelet {
    /// # Errors
    /// 404 when there is no such node, 500 when it serves no kubelet API.
    pub async fn of_node(api: &Api, node: &str) -> Result<Self> {
        let kind = kinds::find("", "v1", "nodes").expect("Node is a kind of the table");
        let object = api.registry.get(kind, "", node, Some(0)).await?;
        let status = object
            .value()
            .pointer("/status")
            .cloned()
            .unwrap_or_default();
        let addresses = status.items("/addresses").iter();
        let mut internal = addresses.filter(|address| address.text("/type") == "InternalIP");
        let ip = internal.find_map(|address| address.text("/address").parse::<IpAddr>().ok());
        let port = status
            .integer("/daemonEndpoints/kubeletEndpoint/Port")
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0);
        match (ip, port) {
            (Some(ip), Some(port)) => Ok(Self {
                address: (ip, port).into(),
            }),
            _ => Err(ApiError::internal(&KubeletError::NotServed(
                node.to_owned(),
            ))),
        }
    }

    /// Sends one request, on a connection of its own.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, KubeletError> {
        let stream = dial(self.address).await?;
        exchange(stream, &self.address.to_string(), request).await
    }
}

pub async fn dial(address: SocketAddr) -> Result<TcpStream, KubeletError> {
    let failed = |source| KubeletError::Dial { address, source };
    let connected = tokio::time::timeout(DIAL, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| KubeletError::Timeout(address))?
        .map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// One request of HTTP/1.1 on `stream`, which may become a connection of another protocol.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, KubeletError> {
    let failed = |source| KubeletError::Exchange {
        host: host.to_owned(),
        source,
    };
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a kubelet broke off");
        }
    });
    sender.send_request(request).await.map_err(failed)
}
