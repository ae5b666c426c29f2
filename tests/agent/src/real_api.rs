//! A real kube-apiserver over a real etcd, on the machine of the API server: the tests of the agent run against it too, so that
//! nothing in the agent depends on a server of ours.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tests_testkit::Machine;
use tokio::runtime::Runtime;

use crate::api::PORT;
use crate::eventually;
use crate::tls::Identity;

/// Not those of flannel's etcd, which runs beside it.
const ETCD: &str = "http://127.0.0.1:2479";
const ETCD_PEERS: &str = "http://127.0.0.1:2480";

/// With an etcd that lives as long as this; the server itself comes and goes.
#[derive(Debug)]
pub struct RealApi {
    program: PathBuf,
    folder: PathBuf,
    addresses: [IpAddr; 2],
    server: Option<Running>,
    _etcd: Running,
}

/// Killed when dropped.
#[derive(Debug)]
struct Running(Child);

impl RealApi {
    /// Starts the etcd and writes the files, all in `folder`.
    ///
    /// # Errors
    ///
    /// When there is no etcd, or a file cannot be written.
    pub fn new(program: PathBuf, machine: &Machine, folder: &Path) -> Result<Self> {
        let addresses = [machine.ipv4.into(), machine.ipv6.into()];
        let identity = Identity::new(addresses)?;
        identity.write(folder)?;
        let real = Self {
            program,
            folder: folder.to_owned(),
            addresses,
            server: None,
            _etcd: start_etcd(machine, folder)?,
        };
        for address in addresses {
            std::fs::write(real.kubeconfig(address), real.kubeconfig_text(address)?)?;
        }
        Ok(real)
    }

    /// Starts the server and waits until it has started whole.
    ///
    /// # Errors
    ///
    /// When it is not ready within a minute; with the end of its log.
    pub fn start(&mut self, machine: &Machine, runtime: &Runtime) -> Result<()> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let mut command = tests_reference::command(&self.program, &self.folder, address, ETCD)?;
        let file = |name| self.folder.join(name).display().to_string();
        command
            .arg(format!("--advertise-address={}", self.addresses[0]))
            .arg(format!("--tls-cert-file={}", file(Identity::CERTIFICATE)))
            .arg(format!("--tls-private-key-file={}", file(Identity::KEY)));
        let child = machine.run(|| command.spawn());
        let mut server = Running(child.context("start the kube-apiserver")?);
        let config = self.config()?;
        eventually("the kube-apiserver is not ready", || {
            if let Some(status) = server.0.try_wait()? {
                bail!("it ended with {status}");
            }
            let config = config.clone();
            runtime.block_on(runtime.spawn(async {
                let client = kube::Client::try_from(config)?;
                // It makes the namespace last.
                for path in ["/readyz", "/api/v1/namespaces/default"] {
                    let request = http::Request::get(path).body(Vec::new())?;
                    let answer = client.request_text(request).await?;
                    ensure!(!answer.is_empty(), "{path} is empty");
                }
                Ok(())
            }))?
        })
        .with_context(|| tests_reference::tail(&self.folder))?;
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9`.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// The file of a kubeconfig that leads to this address of the server's.
    pub fn kubeconfig(&self, address: IpAddr) -> PathBuf {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        self.folder.join(format!("kubeconfig-{family}"))
    }

    fn kubeconfig_text(&self, address: IpAddr) -> Result<String> {
        let server = format!("https://{}", SocketAddr::new(address, PORT));
        let authority = self.folder.join(Identity::AUTHORITY);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": "agent", "user": {"token": tests_reference::TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "agent"}}],
        });
        Ok(config.to_string())
    }

    /// For clients.
    ///
    /// # Errors
    ///
    /// When the kubeconfig is gone.
    pub fn config(&self) -> Result<Config> {
        let file = Kubeconfig::read_from(self.kubeconfig(self.addresses[0]))?;
        // It reads files only: nothing to wait for.
        let options = KubeConfigOptions::default();
        let made = Config::from_custom_kubeconfig(file, &options);
        Ok(futures::executor::block_on(made)?)
    }
}

fn start_etcd(machine: &Machine, folder: &Path) -> Result<Running> {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
        ])
        .args(["--listen-peer-urls", ETCD_PEERS])
        .args(["--initial-advertise-peer-urls", ETCD_PEERS])
        .args(["--initial-cluster", &format!("default={ETCD_PEERS}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = machine.run(|| command.spawn());
    Ok(Running(child.context("start etcd")?))
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
