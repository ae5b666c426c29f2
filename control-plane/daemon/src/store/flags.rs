//! The flags that lead to etcd, by kube-apiserver's names where it has them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use control_plane_store::etcd::{Options, Tls};

/// How to reach etcd.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreFlags {
    /// Keep the state in this etcd cluster (3.4 or newer) instead of --data-dir: the client URLs of its members, with
    /// commas between
    #[arg(long, value_name = "URLS", value_delimiter = ',', global = true)]
    pub etcd_servers: Vec<String>,

    /// The certificate of the authority that signed those of etcd, in PEM form; needed for https
    #[arg(long, value_name = "FILE", global = true)]
    pub etcd_cafile: Option<PathBuf>,

    /// Our certificate for etcd, in PEM form
    #[arg(long, value_name = "FILE", global = true)]
    pub etcd_certfile: Option<PathBuf>,

    /// The key of --etcd-certfile, in PEM form
    #[arg(long, value_name = "FILE", global = true)]
    pub etcd_keyfile: Option<PathBuf>,

    /// The user, where etcd has authentication; it must be allowed to read all keys
    #[arg(long, value_name = "NAME", global = true)]
    pub etcd_user: Option<String>,

    /// The file that holds the password of --etcd-user
    #[arg(long, value_name = "FILE", global = true)]
    pub etcd_password_file: Option<PathBuf>,
}

impl StoreFlags {
    /// How to reach the etcd of these URLs, which came with the flag `name`.
    ///
    /// # Errors
    /// What is wrong with the URLs, or with flags that do not go together.
    pub fn options(&self, name: &str, servers: &[String]) -> Result<Options> {
        for server in servers {
            let host = server
                .strip_prefix("http://")
                .or_else(|| server.strip_prefix("https://"));
            ensure!(
                host.is_some_and(|host| !host.trim_end_matches('/').is_empty()),
                "{name} {server:?}: give client URLs, as in http://10.0.0.1:2379 or https://10.0.0.1:2379"
            );
        }
        let encrypted = |server: &String| server.starts_with("https://");
        let tls = servers.iter().all(encrypted);
        ensure!(
            tls || !servers.iter().any(encrypted),
            "{name}: give either https URLs or http URLs, not both"
        );
        Ok(Options {
            tls: self.tls(name, tls)?,
            user: self.user()?,
            ..Options::new(servers.to_vec())
        })
    }

    fn tls(&self, name: &str, encrypted: bool) -> Result<Option<Tls>> {
        if !encrypted {
            let files = [
                ("--etcd-cafile", &self.etcd_cafile),
                ("--etcd-certfile", &self.etcd_certfile),
                ("--etcd-keyfile", &self.etcd_keyfile),
            ];
            if let Some((file, _)) = files.iter().find(|(_, path)| path.is_some()) {
                bail!("{file} has no meaning for the http URLs of {name}; give https URLs");
            }
            return Ok(None);
        }
        let ca = self.etcd_cafile.as_deref().with_context(|| {
            format!(
                "{name} has https URLs: give --etcd-cafile, the authority of their certificates"
            )
        })?;
        let identity = match (&self.etcd_certfile, &self.etcd_keyfile) {
            (Some(certificate), Some(key)) => Some((
                read_pem("--etcd-certfile", certificate, "CERTIFICATE")?,
                read_pem("--etcd-keyfile", key, "PRIVATE KEY")?,
            )),
            (None, None) => None,
            (Some(_), None) => bail!("--etcd-certfile needs --etcd-keyfile, its key"),
            (None, Some(_)) => bail!("--etcd-keyfile needs --etcd-certfile, its certificate"),
        };
        Ok(Some(Tls {
            ca: read_pem("--etcd-cafile", ca, "CERTIFICATE")?,
            identity,
        }))
    }

    fn user(&self) -> Result<Option<(String, String)>> {
        match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(path)) => {
                let password = std::fs::read_to_string(path).with_context(|| {
                    format!("cannot read --etcd-password-file {}", path.display())
                })?;
                Ok(Some((user.clone(), password.trim_end().to_owned())))
            }
            (None, None) => Ok(None),
            (Some(_), None) => bail!("--etcd-user needs --etcd-password-file"),
            (None, Some(_)) => bail!("--etcd-password-file needs --etcd-user"),
        }
    }
}

fn read_pem(flag: &str, path: &Path, kind: &str) -> Result<Vec<u8>> {
    let pem = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {flag} {}", path.display()))?;
    let is_one = |line: &str| line.starts_with("-----BEGIN ") && line.contains(kind);
    ensure!(
        pem.lines().any(is_one),
        "{flag} {}: there is no {kind} in PEM form in it",
        path.display()
    );
    Ok(pem.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(flags: &StoreFlags, servers: &[&str]) -> String {
        let servers: Vec<String> = servers.iter().map(|s| (*s).to_owned()).collect();
        let refused = flags.options("--etcd-servers", &servers);
        format!("{:#}", refused.expect_err("these do not go together"))
    }

    #[test]
    fn flags_that_do_not_go_together_name_the_way_out() {
        let plain = StoreFlags::default();
        let file = |path: &str| Some(PathBuf::from(path));
        for url in ["10.0.0.1:2379", "ftp://x:1", "http://", ""] {
            let said = refusal(&plain, &[url]);
            assert!(said.contains("as in http://10.0.0.1:2379"), "{said}");
        }
        let said = refusal(&plain, &["http://a:1", "https://b:1"]);
        assert!(said.contains("not both"), "{said}");
        let said = refusal(&plain, &["https://a:1"]);
        assert!(said.contains("give --etcd-cafile"), "{said}");
        let with_ca = StoreFlags {
            etcd_cafile: file("/nonexistent/ca.crt"),
            ..StoreFlags::default()
        };
        let said = refusal(&with_ca, &["http://a:1"]);
        assert!(said.contains("--etcd-cafile has no meaning"), "{said}");
        let said = refusal(&with_ca, &["https://a:1"]);
        assert!(
            said.contains("cannot read --etcd-cafile /nonexistent/ca.crt"),
            "{said}"
        );
        let no_key = StoreFlags {
            etcd_certfile: file("/nonexistent/tls.crt"),
            ..with_ca
        };
        let said = refusal(&no_key, &["https://a:1"]);
        assert!(
            said.contains("--etcd-certfile needs --etcd-keyfile"),
            "{said}"
        );
        let no_password = StoreFlags {
            etcd_user: Some("root".into()),
            ..StoreFlags::default()
        };
        let said = refusal(&no_password, &["http://a:1"]);
        assert!(
            said.contains("--etcd-user needs --etcd-password-file"),
            "{said}"
        );
    }

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        std::fs::write(&path, "not a certificate").unwrap();
        let flags = StoreFlags {
            etcd_cafile: Some(path),
            ..StoreFlags::default()
        };
        let said = refusal(&flags, &["https://a:1"]);
        assert!(
            said.contains("ca.crt: there is no CERTIFICATE in PEM form"),
            "{said}"
        );
    }
}
