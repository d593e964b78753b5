//! Certificates and keys, in a folder as QEMU's `tls-creds-x509` has it.

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why credentials cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {why}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificates or keys that do not fit together.
    #[error("{folder}: {why}", folder = .folder.display())]
    Unfit {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name no certificate can have.
    #[error("{name:?} is no host name or address a certificate could be for")]
    Name {
        /// The name.
        name: String,
    },
}

fn unreadable(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File {
        path: path.into(),
        why: format!("{why}"),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|e| unreadable(path, e))?
        .collect();
    let all = all.map_err(|e| unreadable(path, e))?;
    if all.is_empty() {
        return Err(unreadable(path, "there is no certificate in it"));
    }
    Ok(all)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| unreadable(path, e))
}

/// The authorities of `ca-cert.pem`, and what `ca-crl.pem` revokes, if it is there.
fn authorities(
    folder: &Path,
) -> Result<
    (
        Arc<RootCertStore>,
        Vec<CertificateRevocationListDer<'static>>,
    ),
    TlsError,
> {
    let path = folder.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|e| unreadable(&path, e))?;
    }
    let path = folder.join("ca-crl.pem");
    let revoked = if path.exists() {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_file_iter(&path)
            .map_err(|e| unreadable(&path, e))?
            .collect();
        lists.map_err(|e| unreadable(&path, e))?
    } else {
        Vec::new()
    };
    Ok((Arc::new(roots), revoked))
}

/// What the connecting side needs: authorities to trust, the name the server must prove, and a
/// certificate of its own if it has one.
#[derive(Debug, Clone)]
pub struct TlsClient {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

impl TlsClient {
    /// Reads `ca-cert.pem` of `folder`, and, if they are there, `ca-crl.pem`, `client-cert.pem` and
    /// `client-key.pem`. The server's certificate must be for `name`, a host name or an IP address,
    /// among its alternative names.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn from_folder(folder: &Path, name: &str) -> Result<Self, TlsError> {
        let unfit = |why: String| TlsError::Unfit {
            folder: folder.into(),
            why,
        };
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::Name { name: name.into() })?;
        let (roots, revoked) = authorities(folder)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(revoked)
            .build()
            .map_err(|e| unfit(e.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unfit(e.to_string()))?
            .with_webpki_verifier(verifier);
        let own = folder.join("client-cert.pem");
        let config = if own.exists() {
            builder
                .with_client_auth_cert(certificates(&own)?, key(&folder.join("client-key.pem"))?)
                .map_err(|e| unfit(e.to_string()))?
        } else {
            builder.with_no_client_auth()
        };
        Ok(Self {
            config: Arc::new(config),
            name: server,
        })
    }
}

/// What the listening side needs: its certificate, and authorities whose clients it lets in.
#[derive(Debug, Clone)]
pub struct TlsServer {
    pub(crate) config: Arc<ServerConfig>,
}

impl TlsServer {
    /// Reads `server-cert.pem` and `server-key.pem` of `folder`, and, for `verify_peer`,
    /// `ca-cert.pem` and, if it is there, `ca-crl.pem`: then every client must have a certificate
    /// of that authority.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn from_folder(folder: &Path, verify_peer: bool) -> Result<Self, TlsError> {
        let unfit = |why: String| TlsError::Unfit {
            folder: folder.into(),
            why,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| unfit(e.to_string()))?;
        let builder = if verify_peer {
            let (roots, revoked) = authorities(folder)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .with_crls(revoked)
                .build()
                .map_err(|e| unfit(e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(
                certificates(&folder.join("server-cert.pem"))?,
                key(&folder.join("server-key.pem"))?,
            )
            .map_err(|e| unfit(e.to_string()))?;
        // A source that never reads would close its connection with tickets unread, which resets
        // it: what it sent last could be lost.
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
        })
    }
}
