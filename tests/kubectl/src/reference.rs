//! A real kube-apiserver over a real etcd, on which the cases are proven.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control_plane_store::etcd::testing::LocalEtcd;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Names the kube-apiserver to run the cases against.
pub const VARIABLE: &str = "FAIRLEAD_REFERENCE";

/// A start takes some five seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const TOKEN: &str = "reference";

/// A kube-apiserver of its own over an empty etcd, alone: no controller and no node. It ends when this is dropped.
#[derive(Debug)]
pub struct KubeApiserver {
    port: u16,
    process: Child,
    _etcd: LocalEtcd,
    folder: TempDir,
}

/// The kube-apiserver that the environment names, if it names one.
#[must_use]
pub fn given() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

impl KubeApiserver {
    /// # Errors
    /// When it cannot be started, or is not ready after two minutes; with the end of its log.
    pub async fn start(program: &Path) -> Result<Self> {
        let etcd = LocalEtcd::start(1).await;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = command(program, folder.path(), &etcd.urls().join(","), port)?
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
        let log = self.folder.path().join("log");
        let end = tokio::time::Instant::now() + PATIENCE;
        let kubeconfig = self.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.kubeconfig())?;
        let kubectl = crate::find("kubectl", "FAIRLEAD_KUBECTL")?;
        while tokio::time::Instant::now() < end {
            if let Some(status) = self.process.try_wait()? {
                bail!("the kube-apiserver ended with {status}:\n{}", tail(&log));
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
            tail(&log)
        )
    }

    /// How clients reach it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        // Its certificate is its own, made at its start.
        crate::kubeconfig(
            &format!("https://127.0.0.1:{}", self.port),
            ", insecure-skip-tls-verify: true",
            &format!("token: {TOKEN}"),
        )
    }
}

/// The flags are those of <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/>; all
/// files are in `folder`.
fn command(program: &Path, folder: &Path, etcd: &str, port: u16) -> Result<Command> {
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))?;
    let pair = rcgen::KeyPair::generate()?;
    let key = folder.join("service-account.key");
    std::fs::write(&key, pair.serialize_pem())?;
    // A kube-apiserver takes the public half of a private key only from older formats.
    let public = folder.join("service-account.pub");
    std::fs::write(&public, pair.public_key_pem())?;
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command
        .arg(format!("--etcd-servers={etcd}"))
        .arg("--bind-address=127.0.0.1")
        .arg(format!("--secure-port={port}"))
        .arg(format!(
            "--cert-dir={}",
            folder.join("certificates").display()
        ))
        .arg(format!("--token-auth-file={}", tokens.display()))
        .arg("--authorization-mode=AlwaysAllow")
        // No controller makes the default ServiceAccounts.
        .arg("--disable-admission-plugins=ServiceAccount")
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(format!("--service-account-key-file={}", public.display()))
        .arg(format!(
            "--service-account-signing-key-file={}",
            key.display()
        ))
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .arg("--allow-privileged")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
