//! A real kube-apiserver over a real etcd, on which the cases are proven.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control_plane_store::etcd::testing::LocalEtcd;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A start takes some five seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A kube-apiserver of its own over an empty etcd, alone: no controller and no node. It ends when this is dropped.
#[derive(Debug)]
pub struct KubeApiserver {
    port: u16,
    process: Child,
    _etcd: LocalEtcd,
    folder: TempDir,
}

impl KubeApiserver {
    /// # Errors
    /// When it cannot be started, or is not ready after two minutes; with the end of its log.
    pub async fn start(program: &Path) -> Result<Self> {
        let etcd = LocalEtcd::start(1).await;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let etcds = etcd.urls().join(",");
        let command = tests_reference::command(program, folder.path(), address, &etcds)?;
        let process = Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self {
            port,
            process,
            _etcd: etcd,
            folder,
        };
        server.wait().await?;
        Ok(server)
    }

    async fn wait(&mut self) -> Result<()> {
        let log = || tests_reference::tail(self.folder.path());
        let end = tokio::time::Instant::now() + PATIENCE;
        let kubeconfig = self.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.kubeconfig())?;
        let kubectl = crate::find("kubectl", "FAIRLEAD_KUBECTL")?;
        while tokio::time::Instant::now() < end {
            if let Some(status) = self.process.try_wait()? {
                bail!("the kube-apiserver ended with {status}:\n{}", log());
            }
            let ready = Command::new(&kubectl)
                .args(["get", "--raw", "/readyz", "--kubeconfig"])
                .arg(&kubeconfig)
                .output()
                .await?;
            if ready.status.success() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        bail!(
            "the kube-apiserver is not ready after {PATIENCE:?}:\n{}",
            log()
        )
    }

    /// How clients reach it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        // Its certificate is its own, made at its start.
        crate::kubeconfig(
            &format!("https://127.0.0.1:{}", self.port),
            ", insecure-skip-tls-verify: true",
            &format!("token: {}", tests_reference::TOKEN),
        )
    }
}
