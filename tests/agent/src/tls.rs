//! A certificate authority of a test, and a listener that shows a certificate of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::serve::Listener;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

/// A server's certificate and key, and the authority that vouches for it.
#[derive(Debug)]
pub struct Identity {
    authority: String,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Identity {
    pub const AUTHORITY: &str = "ca.crt";
    pub const CERTIFICATE: &str = "server.crt";
    pub const KEY: &str = "server.key";

    /// Of a server with these addresses.
    pub fn new(addresses: [IpAddr; 2]) -> Result<Self> {
        let mut of_authority = CertificateParams::new([])?;
        of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let of_issuer = KeyPair::generate()?;
        let authority = of_authority.self_signed(&of_issuer)?;
        let issuer = Issuer::new(of_authority, of_issuer);
        let mut params = CertificateParams::new([])?;
        params.subject_alt_names = addresses.map(SanType::IpAddress).to_vec();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Self {
            authority: authority.pem(),
            certificate,
            key,
        })
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> String {
        self.authority.clone()
    }

    /// Writes the three files, in PEM.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, pem: String| {
            let path = folder.join(name);
            std::fs::write(&path, pem).with_context(|| format!("write {}", path.display()))
        };
        write(Self::AUTHORITY, self.authority())?;
        write(Self::CERTIFICATE, self.certificate.pem())?;
        write(Self::KEY, self.key.serialize_pem())
    }

    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let config = ServerConfig::builder().with_no_client_auth();
        let chain = vec![self.certificate.der().clone()];
        let config = config
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(key))
            .context("the proxy's certificate")?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// What `axum::serve` takes connections from.
pub struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    pub fn new(listener: TcpListener, acceptor: TlsAcceptor) -> Self {
        Self { listener, acceptor }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // A client that does not trust us is gone.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
