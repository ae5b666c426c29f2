//! The controllers and the scheduler: clients of the API server like any other, over loopback.

use std::net::SocketAddr;

use anyhow::{Context, Error, Result};
use control_plane_controllers::{Cidr, Options};
use tokio::task::JoinSet;

use crate::api::OwnTokens;
use crate::flags::{Flags, Role};

/// Starts what `--role` names; `listening` is an address of the API server of this process.
pub fn start(
    flags: &Flags,
    listening: Option<SocketAddr>,
    own: &OwnTokens,
) -> Result<JoinSet<Result<()>>> {
    let mut tasks = JoinSet::new();
    let url = flags.server_url(listening)?;
    let client = |token: &str| {
        let url = url
            .parse()
            .with_context(|| format!("--server {url:?} is no URL"))?;
        let mut config = kube::Config::new(url);
        match &flags.server_token_file {
            Some(path) => config.auth_info.token_file = Some(path.display().to_string()),
            // Another process's API server knows none of our own tokens.
            None if listening.is_some() && flags.server.is_none() => {
                config.auth_info.token = Some(token.to_owned().into());
            }
            None => {}
        }
        kube::Client::try_from(config).context("cannot make a client")
    };
    if flags.role.has(Role::Controllers) {
        let cidrs = flags.cluster_cidr.iter().map(|cidr| {
            cidr.to_string()
                .parse::<Cidr>()
                .with_context(|| format!("--cluster-cidr {cidr}"))
        });
        let options = Options {
            cluster_cidrs: cidrs.collect::<Result<_>>()?,
            ..Options::default()
        };
        options.check()?;
        let client = client(&own.controllers)?;
        tasks.spawn(async move {
            control_plane_controllers::run(client, options)
                .await
                .context("the controllers ended")
        });
    }
    if flags.role.has(Role::Scheduler) {
        let client = client(&own.scheduler)?;
        tasks.spawn(async move {
            control_plane_scheduler::run(client, control_plane_scheduler::Options::default()).await;
            Ok(())
        });
    }
    Ok(tasks)
}

/// Waits until a part ends by itself, which none should; for ever if there is none.
pub async fn failed(tasks: &mut JoinSet<Result<()>>) -> Error {
    match tasks.join_next().await {
        Some(Ok(Ok(()))) => Error::msg("a part of the control plane ended by itself"),
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => Error::new(error).context("a part of the control plane died"),
        None => std::future::pending().await,
    }
}
