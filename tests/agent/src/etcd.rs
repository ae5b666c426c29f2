//! An etcd with flannel's registry, on the machine of the API server.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use etcd_client::{Client, GetOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Api, eventually};

const PREFIX: &str = "/coreos.com/network";

/// Ends when this is dropped.
#[derive(Debug)]
pub struct Etcd<'a> {
    api: &'a Api,
    url: String,
    child: Child,
    directory: TempDir,
}

impl<'a> Etcd<'a> {
    /// With flannel's configuration in it; `None` if there is no etcd on this machine.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn start(api: &'a Api, config: &Value) -> Result<Option<Self>> {
        let directory = tempfile::tempdir().context("make a temporary folder")?;
        let url = format!("http://{}:2379", api.machine().ipv4);
        let Some(child) = spawn(api, &directory, &url)? else {
            return Ok(None);
        };
        let etcd = Self {
            api,
            url,
            child,
            directory,
        };
        eventually("etcd does not answer", || {
            etcd.put("/config", &config.to_string())
        })?;
        Ok(Some(etcd))
    }

    /// `kill -9`.
    ///
    /// # Errors
    ///
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it with what it had, after [`Etcd::kill`], and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn again(&mut self) -> Result<()> {
        let child = spawn(self.api, &self.directory, &self.url)?;
        self.child = child.context("etcd was there a moment ago")?;
        eventually("etcd does not answer again", || self.leases().map(drop))
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Writes a key below flannel's prefix, without an end.
    ///
    /// # Errors
    ///
    /// When etcd does not take it.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        let (url, key, value) = (self.url.clone(), format!("{PREFIX}{key}"), value.to_owned());
        self.api.run(async move {
            Client::connect([url], None)
                .await?
                .put(key, value, None)
                .await?;
            Ok(())
        })
    }

    /// # Errors
    ///
    /// When etcd does not answer.
    pub fn delete(&self, key: &str) -> Result<()> {
        let (url, key) = (self.url.clone(), format!("{PREFIX}{key}"));
        self.api.run(async move {
            Client::connect([url], None)
                .await?
                .delete(key, None)
                .await?;
            Ok(())
        })
    }

    /// The leases: last parts of keys, and values.
    ///
    /// # Errors
    ///
    /// When etcd does not answer, or a value is no JSON.
    pub fn leases(&self) -> Result<Vec<(String, Value)>> {
        let (url, key) = (self.url.clone(), format!("{PREFIX}/subnets/"));
        self.api.run(async move {
            let mut client = Client::connect([url], None).await?;
            let options = GetOptions::new().with_prefix();
            let found = client.get(key.clone(), Some(options)).await?;
            let read = found.kvs().iter().map(|pair| {
                let name = pair.key_str()?.trim_start_matches(&key).to_owned();
                Ok((name, serde_json::from_slice(pair.value())?))
            });
            read.collect()
        })
    }
}

/// `None` if there is no etcd on this machine.
fn spawn(api: &Api, directory: &TempDir, url: &str) -> Result<Option<Child>> {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match api.machine().run(|| command.spawn()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        child => child.context("start etcd").map(Some),
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
