//! The way to the API server.
//!
//! An agent outlives its API server many times: what goes wrong on the way must end in an error, so that somebody tries
//! again, and many agents that try again must not keep the server down.

use std::time::Duration;

use anyhow::{Context, bail};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

use crate::flags::Flags;
use crate::pace::PaceLayer;
use crate::patience::Patience;

/// A connection whose other side does not answer the kernel is over after [`IDLE`] and this often [`PROBE`].
const IDLE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// What was sent and is not acknowledged for so long is lost; with the probes above, whichever comes first.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Until an answer begins: longer than the API server itself works on a request (`--request-timeout`, a minute).
const HEAD: Duration = Duration::from_secs(70);
/// Until it goes on: longer than the server keeps a watch, which may be silent.
const BODY: Duration = Duration::from_secs(300);

/// A client by the flags; says nothing to the server yet.
///
/// # Errors
///
/// As [`config`]; and when the credentials cannot be read.
pub async fn connect(flags: &Flags) -> anyhow::Result<Client> {
    client(config(flags).await?).context("making the client of the API server")
}

fn client(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector =
        TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_read_timeout(Some(BODY));
    connector.set_reset_reader_on_write(true);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(PaceLayer::default())
        .layer(RetryLayer::new(Patience))
        .layer(TimeoutLayer::new(HEAD))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// Where the API server is and who we are, by the flags.
///
/// # Errors
///
/// When the flags lead nowhere.
pub async fn config(flags: &Flags) -> anyhow::Result<Config> {
    let config = if let Some(url) = &flags.server {
        Config::new(url.clone())
    } else if let Some(path) = &flags.kubeconfig {
        let file = Kubeconfig::read_from(path)
            .with_context(|| format!("--kubeconfig {}", path.display()))?;
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("--kubeconfig {}", path.display()))?
    } else {
        Config::incluster()
            .context("not in a pod: say where the API server is with --server or --kubeconfig")?
    };
    match config.cluster_url.scheme_str() {
        Some("http" | "https") => Ok(config),
        _ => bail!(
            "{}: the URL of the API server begins with https:// or http://",
            config.cluster_url
        ),
    }
}
