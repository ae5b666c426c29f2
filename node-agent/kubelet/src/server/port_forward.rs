//! `/portForward`: connections to a pod's ports, over one WebSocket.
//!
//! Two forms are in use. kubectl tunnels SPDY, by which it opens a connection whenever it likes ([`super::spdy`]). Other
//! clients name the ports beforehand and get two channels for each: 2i for its data, 2i+1 for what went wrong.

use std::collections::HashMap;

use axum::{
    extract::{
        Path, Query, State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Refusal, Server,
    channels::{self, PROTOCOLS, Received},
    port, spdy,
};

const WITH_SPDY: [&str; 3] = [spdy::PROTOCOL, PROTOCOLS[0], PROTOCOLS[1]];
/// Two channels each, and a channel's number is a byte below 255.
const PORTS_MAX: usize = 127;
/// How much is read from a port at once, in bytes.
const CHUNK: usize = 32 * 1024;
/// How many messages may wait for a slow reader, on either side.
pub(crate) const QUEUE: usize = 16;

/// The pod whose ports are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub name: String,
    pub uid: String,
    /// A process in the pod's network namespace.
    pub pid: i64,
}

impl Pod {
    /// What a client is told when a port cannot be had.
    pub fn failure(&self, port: u16, why: &str) -> String {
        let Self { name, uid, .. } = self;
        format!("error forwarding port {port} to pod {name}, uid {uid}: {why}")
    }
}

pub(crate) async fn port_forward(
    State(server): State<Server>,
    Path((namespace, name)): Path<(String, String)>,
    Query(parameters): Query<Vec<(String, String)>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let ports = ports(&parameters)?;
    let found = server.find(&namespace, &name).await?;
    let pod = Pod {
        uid: found.uid().to_owned(),
        pid: found.sandbox_pid()?,
        name,
    };
    channels::accept(upgrade, &WITH_SPDY, move |socket, protocol| async move {
        if protocol == spdy::PROTOCOL {
            spdy::serve(socket, pod).await;
        } else {
            serve(socket, pod, ports).await;
        }
    })
}

/// `port=80&port=81` or `port=80,81`.
fn ports(parameters: &[(String, String)]) -> Result<Vec<u16>, Refusal> {
    let texts = parameters.iter().filter(|(name, _)| name == "port");
    let texts = texts.flat_map(|(_, value)| value.split(','));
    let ports: Vec<u16> = texts
        .map(|text| {
            let port = text.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| {
                Refusal::bad_request(format!("port {text:?}: give a number from 1 to 65535"))
            })
        })
        .collect::<Result<_, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(Refusal::bad_request(format!(
            "{} ports: at most {PORTS_MAX} can be forwarded at once",
            ports.len()
        )));
    }
    Ok(ports)
}

/// Forwards `ports` until all of them have ended or the client goes.
async fn serve(socket: WebSocket, pod: Pod, ports: Vec<u16>) {
    let (mut outgoing, mut incoming) = socket.split();
    let (sender, mut messages) = mpsc::channel::<Message>(QUEUE);
    let mut inputs = HashMap::new();
    let mut connections = JoinSet::new();
    for (channel, port) in (0u8..).step_by(2).zip(ports) {
        let (input, given) = mpsc::channel::<Bytes>(QUEUE);
        inputs.insert(channel, input);
        connections.spawn(forward(channel, port, pod.clone(), given, sender.clone()));
    }
    // The queue ends with the last connection.
    drop(sender);
    let speak = async {
        while let Some(message) = messages.recv().await {
            if outgoing.send(message).await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        while let Some(received) = channels::receive(&mut incoming).await {
            match received {
                Received::Data(channel, bytes) => {
                    if let Some(input) = inputs.get(&channel) {
                        // Who has ended reads no more.
                        let _ = input.send(bytes).await;
                    }
                }
                Received::End(channel) => drop(inputs.remove(&channel)),
            }
        }
    };
    tokio::select! {
        () = speak => {}
        () = hear => return,
    }
    channels::close(&mut outgoing, &mut incoming).await;
}

/// One port: its number on both channels first, then its data.
async fn forward(
    channel: u8,
    port: u16,
    pod: Pod,
    given: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Message>,
) {
    for channel in [channel, channel + 1] {
        let number = channels::data(channel, &port.to_le_bytes());
        if out.send(number).await.is_err() {
            return;
        }
    }
    match port::connect(pod.pid, port).await {
        Ok(stream) => {
            let (read, write) = stream.into_split();
            carry(read, write, given, &out, |bytes| {
                channels::data(channel, bytes)
            })
            .await;
        }
        Err(why) => {
            let failure = pod.failure(port, &why);
            // The client may have gone.
            let _ = out
                .send(channels::data(channel + 1, failure.as_bytes()))
                .await;
        }
    }
}

/// Carries a connection both ways, until the pod has said all or the client has gone; `message` wraps what the pod says.
pub(crate) async fn carry<T>(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    mut given: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<T>,
    message: impl Fn(&[u8]) -> T,
) {
    let from_pod = async {
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
        while let Ok(1..) = read.read_buf(&mut buffer).await {
            if out.send(message(&buffer)).await.is_err() {
                return;
            }
            buffer.clear();
        }
    };
    let to_pod = async {
        while let Some(bytes) = given.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The client's end; the pod may still answer.
        let _ = write.shutdown().await;
    };
    tokio::pin!(from_pod);
    tokio::select! {
        () = &mut from_pod => {}
        () = to_pod => from_pod.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<Vec<u16>, Refusal> {
        let pairs = values.iter().map(|v| ("port".to_owned(), (*v).to_owned()));
        ports(&pairs.collect::<Vec<_>>())
    }

    #[test]
    fn ports_come_one_by_one_or_as_a_list() {
        assert_eq!(parse(&["80,81", "8080"]).unwrap(), [80, 81, 8080]);
        assert!(parse(&[]).unwrap().is_empty());
        for wrong in ["0", "65536", "http", ""] {
            assert!(parse(&[wrong]).unwrap_err().message.contains("1 to 65535"));
        }
        let many = vec!["1"; 128];
        assert!(parse(&many).is_err());
    }
}
