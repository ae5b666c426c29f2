//! A connection to a port of a pod, through its node's kubelet: pods' addresses lead nowhere from here.
//!
//! It is a port-forward as any client would make it, by the plain channels of `v4.channel.k8s.io`: 0 carries the data, 1
//! what went wrong, and each begins with the port's number.

use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::kubelet::{Kubelet, KubeletError};

const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes that may wait on the way, for each direction.
const ROOM: usize = 64 * 1024;

/// A way to a port.
pub struct Tunnel {
    pub stream: DuplexStream,
    /// Why the port cannot be had, when the stream ends by that.
    pub failure: oneshot::Receiver<String>,
}

/// Opens a way by the kubelet's `path` of one port.
///
/// # Errors
/// The kubelet's refusal, or that it does not answer.
pub async fn open(kubelet: &Kubelet, path: &str) -> Result<Tunnel, KubeletError> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path
        .parse()
        .map_err(|error| KubeletError::Answer(format!("invalid path {path:?}: {error}")))?;
    // The key only shows that the other end knows WebSocket (RFC 6455, section 4.1).
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_KEY, "ZmFpcmxlYWQtYXBpc2VydmVy"),
        (header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io"),
    ] {
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let mut answer = kubelet.send(request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let body = axum::body::to_bytes(Body::new(answer.into_body()), ROOM).await;
        let text = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
        return Err(KubeletError::Answer(text));
    }
    let upgraded =
        hyper::upgrade::on(&mut answer)
            .await
            .map_err(|source| KubeletError::Exchange {
                host: kubelet.address.to_string(),
                source,
            })?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (stream, ours) = tokio::io::duplex(ROOM);
    let (failed, failure) = oneshot::channel();
    tokio::spawn(carry(socket, ours, failed));
    Ok(Tunnel { stream, failure })
}

async fn carry<S>(socket: WebSocketStream<S>, ours: DuplexStream, failed: oneshot::Sender<String>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut outgoing, incoming) = socket.split();
    let (read, write) = tokio::io::split(ours);
    tokio::select! {
        () = receive(incoming, write, failed) => {}
        () = send(read, &mut outgoing) => {}
    }
    // The kubelet may have ended first.
    let _ = outgoing.close().await;
}

/// From the pod, until it ends.
async fn receive(
    mut incoming: impl Stream<Item = Result<Message, Error>> + Unpin,
    mut write: WriteHalf<DuplexStream>,
    failed: oneshot::Sender<String>,
) {
    let mut begun = [false; 2];
    while let Some(Ok(message)) = incoming.next().await {
        let Message::Binary(message) = message else {
            continue;
        };
        let Some((channel @ (DATA | ERROR), bytes)) = message.split_first().map(|(c, b)| (*c, b))
        else {
            continue;
        };
        if !std::mem::replace(&mut begun[usize::from(channel)], true) {
            // The port's number.
            continue;
        }
        if channel == ERROR {
            // Nobody may have waited for it.
            let _ = failed.send(String::from_utf8_lossy(bytes).into_owned());
            return;
        }
        if write.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// To the pod. `v4` cannot say that no more comes, so the way stays open until the pod ends it or both ends are gone.
async fn send(
    mut read: ReadHalf<DuplexStream>,
    outgoing: &mut (impl futures::Sink<Message, Error = Error> + Unpin),
) {
    let mut buffer = vec![DATA; 32 * 1024];
    while let Ok(length @ 1..) = read.read(&mut buffer[1..]).await {
        let message = Message::Binary(Bytes::copy_from_slice(&buffer[..=length]));
        if outgoing.send(message).await.is_err() {
            return;
        }
    }
}
