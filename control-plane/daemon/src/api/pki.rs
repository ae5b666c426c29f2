//! An authority of the cluster's own, for those who bring none: made once in `--data-dir/pki`, with the server's
//! certificate, an administrator's, and a kubeconfig that holds the latter.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control_plane_apiserver::tls;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use time::{Duration, OffsetDateTime};

use super::files::write_private;
use crate::flags::Flags;

/// Days that certificates are good for. They are made anew at every start.
const DAYS: i64 = 365;
const AUTHORITY_DAYS: i64 = 3650;

/// What TLS needs.
#[derive(Debug)]
pub struct Pki {
    pub config: Arc<ServerConfig>,
}

/// The authority: a certificate and the key that signs with it.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Reads what the flags name and makes the rest, for a server at `addresses`.
    pub fn open(flags: &Flags, addresses: &[SocketAddr]) -> Result<Self> {
        let api = &flags.api;
        let folder = flags.data_dir.join("pki");
        let authority = Authority::open(&folder)?;
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (certificate, key) = match (&api.tls_cert_file, &api.tls_private_key_file) {
            (Some(certificate), Some(key)) => (read(certificate)?, read(key)?),
            _ => {
                let (certificate, key) = authority.server(flags, addresses)?;
                (certificate.into_bytes(), key.into_bytes())
            }
        };
        let clients = match &api.client_ca_file {
            Some(path) => read(path)?,
            None => {
                authority.write_admin(&folder, addresses)?;
                authority.certificate.clone().into_bytes()
            }
        };
        let config = tls::config(&certificate, &key, Some(&clients))
            .context("cannot serve TLS with --tls-cert-file, --tls-private-key-file and --client-ca-file, or what stands in --data-dir/pki")?;
        Ok(Self { config })
    }
}

impl Authority {
    fn open(folder: &Path) -> Result<Self> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        if !certificate_path.exists() && !key_path.exists() {
            let key = KeyPair::generate()?;
            let mut params = params("fairlead", &[], AUTHORITY_DAYS);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key)?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&certificate_path, &certificate.pem())?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| {
                format!(
                    "cannot read {}; remove both ca.crt and ca.key to have them made anew",
                    path.display()
                )
            })
        };
        let (certificate, key) = (read(&certificate_path)?, read(&key_path)?);
        let key =
            KeyPair::from_pem(&key).with_context(|| format!("{} is no key", key_path.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .with_context(|| format!("{} is no certificate", certificate_path.display()))?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// The server's certificate, for every name and address by which it is asked for.
    fn server(&self, flags: &Flags, addresses: &[SocketAddr]) -> Result<(String, String)> {
        let mut params = params("kube-apiserver", &[], DAYS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ] {
            let name = name.try_into().context("a name is no DNS name")?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let services = flags
            .service_cidr
            .iter()
            .filter_map(|range| range.iter().nth(1));
        let loopback = ["127.0.0.1", "::1"]
            .into_iter()
            .filter_map(|a| a.parse().ok());
        let own = addresses
            .iter()
            .map(SocketAddr::ip)
            .filter(|a| !a.is_unspecified());
        let all = own.chain(services).chain(loopback);
        params.subject_alt_names.extend(all.map(SanType::IpAddress));
        let (certificate, key) = self.sign(params)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// `admin.conf`: a kubeconfig of somebody who may do everything.
    fn write_admin(&self, folder: &Path, addresses: &[SocketAddr]) -> Result<()> {
        let address = addresses.first().context("there is no address")?;
        let host = match address.ip() {
            ip if ip.is_unspecified() && ip.is_ipv4() => "127.0.0.1".to_owned(),
            ip if ip.is_unspecified() => "[::1]".to_owned(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        let mut params = params("kubernetes-admin", &["system:masters"], DAYS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(params)?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fairlead",
            "clusters": [{"name": "fairlead", "cluster": {
                "server": format!("https://{host}:{}", address.port()),
                "certificate-authority-data": STANDARD.encode(&self.certificate),
            }}],
            "users": [{"name": "admin", "user": {
                "client-certificate-data": STANDARD.encode(certificate.pem()),
                "client-key-data": STANDARD.encode(key.serialize_pem()),
            }}],
            "contexts": [{"name": "fairlead", "context": {"cluster": "fairlead", "user": "admin"}}],
        });
        let path = folder.join("admin.conf");
        write_private(&path, &format!("{config:#}\n"))?;
        tracing::info!(path = %path.display(), "kubeconfig of an administrator");
        Ok(())
    }

    fn sign(&self, mut params: CertificateParams) -> Result<(Certificate, KeyPair)> {
        ensure!(
            params.not_after > params.not_before,
            "the clock is before 1970"
        );
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

fn params(name: &str, organizations: &[&str], days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    for organization in organizations {
        subject.push(DnType::OrganizationName, *organization);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    // A clock that is a little behind is no reason to refuse.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
    params
}
