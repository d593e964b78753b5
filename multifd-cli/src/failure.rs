//! Why a command failed.

use multifd_core::{BlockError, ChannelError, MethodError};
use multifd_transport_file::FileError;
use multifd_transport_socket::{SecretError, TlsError};
use std::io;
use std::path::PathBuf;

/// The error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Engine(#[from] multifd_core::Error),
    #[error(transparent)]
    Migration(#[from] multifd_qemu::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{doing}: {source}")]
    Connection {
        doing: &'static str,
        source: ChannelError,
    },
    #[error("{path}: {source}", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: {source}", .path.display())]
    NotASnapshot {
        path: PathBuf,
        source: multifd_qemu::Error,
    },
    #[error("QEMU's monitor at {address}: {why}")]
    Qmp { address: String, why: String },
    #[error("{doing}: {source}")]
    System { doing: &'static str, source: io::Error },
    #[error("{path} exists already; --force replaces it", path = .path.display())]
    Exists { path: PathBuf },
    #[error("{path} has no RAM block {block:?}; it has {known}", path = .path.display())]
    NoBlock {
        path: PathBuf,
        block: String,
        known: String,
    },
    #[error("{path} has {len} bytes, not a positive multiple of the page size {page_size}", path = .path.display())]
    RawLength { path: PathBuf, len: u64, page_size: u32 },
    #[error("{0}")]
    Other(String),
    /// The result itself has said it.
    #[error("the result says no")]
    Reported,
}

/// Says what was being done when a connection failed.
pub(crate) fn doing(doing: &'static str) -> impl Fn(ChannelError) -> Failure {
    move |source| Failure::Connection { doing, source }
}
