//! A server in a pod that ends as a well-behaved one does: it closes its listener, and then lets its clients finish.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tests_testkit::NetNs;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::{listener_in, runtime_in};

/// Answers each line with `LINE NAME CLIENT`; its connections are cut when it is dropped.
#[derive(Debug)]
pub struct WebServer {
    counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    /// Its threads live in the pod's network namespace.
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl WebServer {
    /// Listens on a port of all addresses.
    ///
    /// # Errors
    ///
    /// When somebody has the port.
    pub fn start(netns: &NetNs, port: u16, name: &str) -> Result<Self> {
        let runtime = runtime_in(netns)?;
        let listener = listener_in(&runtime, port)?;
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        runtime.spawn(serve(listener, stopped, counts.clone(), name.to_owned()));
        Ok(Self {
            counts,
            stop,
            runtime: Some(runtime),
        })
    }

    /// From here on connections are refused; those that are there go on.
    pub fn close_listener(&self) {
        self.stop.send_replace(true);
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// Connections that have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
    counts: Arc<Counts>,
    name: String,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender goes with the runtime.
            _ = stopped.changed() => return,
        };
        let Ok((stream, client)) = accepted else {
            return;
        };
        counts.accepted.fetch_add(1, Ordering::SeqCst);
        counts.open.fetch_add(1, Ordering::SeqCst);
        let (counts, name) = (counts.clone(), name.clone());
        tokio::spawn(async move {
            // A client that breaks off is its own affair.
            let _ = answer(stream, client.ip().to_canonical(), &name).await;
            counts.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer(mut stream: TcpStream, client: IpAddr, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = format!("{line} {name} {client}\n");
        writer.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}
