//! Connections: accepted, bounded in what they may cost before a request is there, and ended in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch as signal;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower::ServiceExt;

use crate::access::Certified;
use crate::tls;

/// How long the head of a request may take to arrive, from the first byte of the connection or the end of the answer
/// before: an idle connection ends with it too.
const HEAD_WITHIN: Duration = Duration::from_secs(90);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Requests of one HTTP/2 connection at one time, as kube-apiserver.
const STREAMS: u32 = 100;
/// A silent HTTP/2 connection is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(15);
/// Pause after an accept that failed, which happens when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `app` on one listener until `stopping` turns true, and then until the open requests are answered.
///
/// # Errors
/// None today: a connection that fails ends alone.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    stopping: signal::Receiver<bool>,
) -> io::Result<()> {
    let (door, graceful) = (Door::new(app), GracefulShutdown::new());
    accept(&listener, stopping, |stream, peer| {
        let (door, watcher) = (door.clone(), graceful.watcher());
        tokio::spawn(async move { door.serve(stream, peer, None, watcher).await });
    })
    .await;
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// As [`serve`], over TLS. Who shows a certificate of the clients' authority is who it says.
///
/// # Errors
/// None today: a connection that fails ends alone.
pub async fn serve_tls(
    listener: TcpListener,
    app: Router,
    config: Arc<ServerConfig>,
    stopping: signal::Receiver<bool>,
) -> io::Result<()> {
    let (door, graceful) = (Door::new(app), GracefulShutdown::new());
    let acceptor = TlsAcceptor::from(config);
    accept(&listener, stopping, |stream, peer| {
        let (door, watcher) = (door.clone(), graceful.watcher());
        let handshake = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream));
        tokio::spawn(async move {
            match handshake.await {
                Ok(Ok(stream)) => {
                    let certified = tls::client(stream.get_ref().1);
                    door.serve(stream, peer, certified, watcher).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS within {HANDSHAKE_WITHIN:?}"),
            }
        });
    })
    .await;
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// Takes connections until `stopping` turns true.
async fn accept(
    listener: &TcpListener,
    mut stopping: signal::Receiver<bool>,
    take: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // A watch sends many small lines, each of which somebody waits for.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                take(stream, peer);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Door {
    app: Router,
    builder: Arc<Builder<TokioExecutor>>,
}

impl Door {
    fn new(app: Router) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        Self {
            app,
            builder: Arc::new(builder),
        }
    }

    /// Serves one connection to its end.
    async fn serve<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        certified: Option<Certified>,
        watcher: Watcher,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = self.app.clone();
        let service = app.map_request(move |mut request: Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(ConnectInfo(peer));
            if let Some(certified) = certified.clone() {
                extensions.insert(certified);
            }
            request.map(axum::body::Body::new)
        });
        let service = TowerToHyperService::new(service);
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            // Clients go as they like.
            tracing::debug!(%peer, error, "a connection ended");
        }
    }
}
