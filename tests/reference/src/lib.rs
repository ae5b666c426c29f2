//! A real kube-apiserver, where a user names one: how tests and benches start it, alone, with no controller and no node.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Names the kube-apiserver to the tests.
pub const VARIABLE: &str = "FAIRLEAD_REFERENCE";
/// Of somebody who may do everything: with everything allowed it still answers nobody without a name.
pub const TOKEN: &str = "reference";
/// Of Services, in both families: those of our own server.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
const LOG: &str = "log";

/// The kube-apiserver that the environment names, if it names one.
#[must_use]
pub fn given() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Starts `program` over the etcd at `etcd`, listening on `address`; all its files, the log and its own certificate
/// (`certificates/apiserver.crt`) among them, are in `folder`. The flags are those of
/// <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/>.
///
/// # Errors
/// When a file cannot be written.
pub fn command(program: &Path, folder: &Path, address: SocketAddr, etcd: &str) -> Result<Command> {
    let file = |name: &str| folder.join(name);
    let (tokens, key, public) = (
        file("tokens.csv"),
        file("accounts.key"),
        file("accounts.pub"),
    );
    std::fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))
        .with_context(|| format!("cannot write {}", tokens.display()))?;
    // Started again, it knows the tokens that it gave out.
    if !public.exists() {
        let pair = rcgen::KeyPair::generate()?;
        std::fs::write(&key, pair.serialize_pem())?;
        // It takes the public half of a private key only from older formats.
        std::fs::write(&public, pair.public_key_pem())?;
    }
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(file(LOG))?;
    let mut command = Command::new(program);
    command
        .arg(format!("--etcd-servers={etcd}"))
        .arg(format!("--bind-address={}", address.ip()))
        .arg(format!("--secure-port={}", address.port()))
        .arg(format!("--cert-dir={}", file("certificates").display()))
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
        .arg(format!("--service-cluster-ip-range={SERVICE_RANGES}"))
        // Its address is nobody's business here.
        .arg("--endpoint-reconciler-type=none")
        .arg("--allow-privileged")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// The end of its log.
#[must_use]
pub fn tail(folder: &Path) -> String {
    let text = std::fs::read_to_string(folder.join(LOG)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
