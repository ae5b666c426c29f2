//! The way to the API server.

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::flags::Flags;

/// A client by the flags; says nothing to the server yet.
///
/// # Errors
///
/// As [`config`].
pub async fn connect(flags: &Flags) -> anyhow::Result<Client> {
    Client::try_from(config(flags).await?).context("making the client of the API server")
}

/// Where the API server is, by the flags.
///
/// # Errors
///
/// When the flags lead nowhere, or to a server that wants TLS.
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
        Some("http") => {}
        Some("https") => bail!(
            "{}: https is not there yet: use a plain HTTP address, as on loopback",
            config.cluster_url
        ),
        _ => bail!(
            "{}: the URL of the API server begins with http://",
            config.cluster_url
        ),
    }
    Ok(config)
}
