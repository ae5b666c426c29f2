//! A watcher that reads the lines of its watch itself: a thousand clients with types would take minutes.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::{END, PAUSE};

/// What one watcher knows: the version of each object, and how far it is.
#[derive(Default)]
pub struct Watcher {
    pub state: HashMap<String, u64>,
    pub version: u64,
    /// How often its version was too old, so that it had to list again.
    pub relisted: usize,
}

impl Watcher {
    /// Follows the objects until the last one is there, through every end of a server.
    pub async fn follow(mut self, server: watch::Receiver<SocketAddr>) -> Self {
        while !self.state.contains_key(END) {
            let address = *server.borrow();
            // A server that goes cuts the stream; the next one goes on after the last event.
            if self.read(address).await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        self
    }

    async fn read(&mut self, address: SocketAddr) -> std::io::Result<()> {
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={}",
            self.version
        );
        let (code, mut lines) = ask(address, &path).await?;
        if code == 410 {
            return self.list(address).await;
        }
        accept(code)?;
        let mut line = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line).await? == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            if line.starts_with(r#"{"type":"ERROR""#) {
                assert!(line.contains(r#""code":410"#), "{line}");
                return self.list(address).await;
            }
            let (name, version) = (field(&line, "name"), field(&line, "resourceVersion"));
            let version = version.parse().unwrap();
            assert!(
                version > self.version,
                "twice or out of order: {} then {line}",
                self.version
            );
            self.version = version;
            let over = name == END;
            self.state.insert(name, version);
            if over {
                return Ok(());
            }
        }
    }

    async fn list(&mut self, address: SocketAddr) -> std::io::Result<()> {
        let (code, mut body) = ask(address, "/api/v1/namespaces/default/configmaps").await?;
        accept(code)?;
        let mut text = String::new();
        body.read_to_string(&mut text).await?;
        let Ok(list) = serde_json::from_str::<Value>(&text) else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        let version = |v: &Value| {
            v["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(
            version(&list) >= self.version,
            "the list is older than what was seen"
        );
        self.version = version(&list);
        let items = list["items"].as_array().unwrap().iter();
        self.state = items
            .map(|item| {
                (
                    item["metadata"]["name"].as_str().unwrap().to_owned(),
                    version(item),
                )
            })
            .collect();
        self.relisted += 1;
        Ok(())
    }
}

/// A server that reads its store anew says 504 to who is ahead of it: a client asks again.
fn accept(code: u16) -> std::io::Result<()> {
    match code {
        200 => Ok(()),
        503 | 504 => Err(std::io::ErrorKind::WouldBlock.into()),
        _ => panic!("a watch or a list was answered {code}"),
    }
}

/// Asks on a connection of its own, by HTTP/1.0, in which a body comes without chunks; the status and the body.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<(u16, BufReader<TcpStream>)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::with_capacity(4096, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.unwrap(), lines))
}

/// The text of a member of `metadata`, from an event's line.
fn field(line: &str, name: &str) -> String {
    let (_, metadata) = line.split_once(r#""metadata":{"#).unwrap();
    let (_, after) = metadata.split_once(&format!("\"{name}\":\"")).unwrap();
    after.split_once('"').unwrap().0.to_owned()
}
