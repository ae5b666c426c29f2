//! TLS: the server's configuration, who a client's certificate says that it is, and connections to webhooks.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::access::{Certified, User};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0} is no PEM")]
    Pem(
        &'static str,
        #[source] tokio_rustls::rustls::pki_types::pem::Error,
    ),
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    #[error("the clients' authority cannot be used")]
    Authority(#[source] tokio_rustls::rustls::server::VerifierBuilderError),
    #[error("the certificate and the key cannot be used")]
    Server(#[from] tokio_rustls::rustls::Error),
}

/// A configuration that shows `certificates` with `key`, and asks clients for certificates of `client_authority`
/// (`None`: for none). All are PEM.
///
/// # Errors
/// What cannot be read or used.
pub fn config(
    certificates: &[u8],
    key: &[u8],
    client_authority: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = read("the server's certificate", certificates)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| TlsError::Pem("the server's key", error))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in read("the clients' authority", authority)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                // Who has no certificate may have a token.
                .allow_unauthenticated()
                .build()
                .map_err(TlsError::Authority)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Who the client is by its certificate: the common name, with the organizations as groups.
pub fn client(connection: &ServerConnection) -> Option<Certified> {
    let certificate = connection.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
    let groups = groups.map(ToOwned::to_owned).collect();
    Some(Certified(Arc::new(User::authenticated(name, "", groups))))
}

fn read(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Pem(what, error))?;
    if all.is_empty() {
        return Err(TlsError::Empty(what));
    }
    Ok(all)
}

/// Speaks TLS on `stream` to `host`, whose certificate must be of one of `roots` (PEM).
///
/// # Errors
/// Why the other end is not trusted or does not answer.
pub async fn connect<S>(stream: S, host: &str, roots: &[u8]) -> Result<TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut store = RootCertStore::empty();
    let trusted = read("clientConfig.caBundle", roots).map_err(|error| error.to_string())?;
    for certificate in trusted {
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS with {host}: {error}"))
}
