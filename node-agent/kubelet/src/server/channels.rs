//! Kubernetes' channels over one WebSocket: each binary message begins with the number of its channel.
//!
//! `v4.channel.k8s.io` and `v5.channel.k8s.io`, which differ in that version 5 can end a channel alone: 255, then the
//! channel's number (KEP-4006).

use axum::{
    extract::ws::{
        CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
        rejection::WebSocketUpgradeRejection,
    },
    response::Response,
};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt, stream::SplitSink};
use std::time::Duration;

use super::Refusal;

/// The subprotocols, the preferred first.
pub(crate) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The first byte of a message that ends a channel.
const END: u8 = 255;
/// How long a client may take to answer a close before its connection is cut.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a client says.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    Data(u8, Bytes),
    /// Nothing more comes on this channel.
    End(u8),
}

pub(crate) type Outgoing = SplitSink<WebSocket, Message>;

/// A WebSocket by one of `protocols`; which one was chosen goes to `serve`.
pub(crate) fn accept<F>(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    protocols: &'static [&'static str],
    serve: impl FnOnce(WebSocket, String) -> F + Send + 'static,
) -> Result<Response, Refusal>
where
    F: Future<Output = ()> + Send + 'static,
{
    let wanted = protocols.join(" or ");
    let upgrade = upgrade.map_err(|rejection| {
        Refusal::bad_request(format!(
            "this needs a WebSocket with the subprotocol {wanted}: {rejection}"
        ))
    })?;
    let upgrade = upgrade.protocols(protocols.iter().copied());
    let chosen = upgrade
        .selected_protocol()
        .and_then(|protocol| protocol.to_str().ok())
        .map(str::to_owned);
    let Some(chosen) = chosen else {
        return Err(Refusal::bad_request(format!(
            "unable to upgrade: the client offers no subprotocol of {wanted}"
        )));
    };
    Ok(upgrade.on_upgrade(move |socket| serve(socket, chosen)))
}

/// The next message of a client; `None` when it has gone. What is no message of channels is passed over.
pub(crate) async fn receive(
    incoming: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
) -> Option<Received> {
    loop {
        let mut message = match incoming.next().await? {
            Ok(Message::Binary(message)) => message,
            Ok(Message::Text(text)) => Bytes::from(text),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
        };
        if message.is_empty() {
            continue;
        }
        return Some(match message.get_u8() {
            END if message.len() == 1 => Received::End(message[0]),
            channel => Received::Data(channel, message),
        });
    }
}

/// A message on a channel.
pub(crate) fn data(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

/// Says goodbye and waits until the client has read it: a connection that is closed while something of the client is
/// unread is reset, and what was sent last may be lost with it.
pub(crate) async fn close(
    outgoing: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    incoming: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
) {
    let goodbye = Message::Close(Some(CloseFrame {
        code: close_code::NORMAL,
        reason: "".into(),
    }));
    if outgoing.send(goodbye).await.is_ok() {
        let gone = async { while receive(incoming).await.is_some() {} };
        // A client that does not answer is cut off.
        let _ = tokio::time::timeout(GOODBYE, gone).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(message: Message) -> Option<Received> {
        let mut incoming = futures::stream::iter([Ok(Message::Ping(Bytes::new())), Ok(message)]);
        receive(&mut incoming).await
    }

    #[tokio::test]
    async fn messages_are_data_of_a_channel_or_its_end() {
        let binary = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
        assert_eq!(
            received(binary(b"\x00ls\n")).await,
            Some(Received::Data(0, Bytes::from_static(b"ls\n")))
        );
        assert_eq!(received(binary(b"\xff\x00")).await, Some(Received::End(0)));
        assert_eq!(
            received(binary(b"\x04")).await,
            Some(Received::Data(4, Bytes::new()))
        );
        assert_eq!(received(binary(b"")).await, None);
        assert_eq!(received(Message::Close(None)).await, None);
        assert_eq!(data(3, b"x"), binary(b"\x03x"));
    }
}
