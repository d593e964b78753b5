//! Why a command failed.

use multifd_core::{BlockError, ChannelError, MethodError, UnpackError};
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
    File(FileError),
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
    #[error("{path}: {reason}", path = .path.display())]
    InFile { path: PathBuf, reason: String },
    #[error(
        "{path} is the file {input} itself, which is read: an output must be another file", path = .path.display(),
        input = .input.display()
    )]
    OutputIsInput { path: PathBuf, input: PathBuf },
    #[error("QEMU's monitor at {address}: it closed the connection: QEMU has ended")]
    QemuGone { address: String },
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

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Exists { path } => Self::Exists { path },
            other => Self::File(other),
        }
    }
}

impl Failure {
    /// What a person is told: of an interrupt by that word, and of a limit with the option that
    /// raises it.
    pub(crate) fn told(&self, interrupted: bool) -> String {
        let engine = match self {
            Self::Engine(error) | Self::Migration(multifd_qemu::Error::Engine(error)) => Some(error),
            _ => None,
        };
        if interrupted && matches!(engine, Some(multifd_core::Error::Cancelled)) {
            return "interrupted".into();
        }
        let mut text = self.to_string();
        if let Self::Migration(multifd_qemu::Error::TooLarge {
            what: "the guest's RAM",
            ..
        }) = self
        {
            text.push_str(" (--max-ram)");
        }
        let over = match engine {
            Some(multifd_core::Error::Payload { source, .. }) => matches!(source, UnpackError::Memory { .. }),
            _ => matches!(self, Self::Migration(multifd_qemu::Error::Memory { .. })),
        };
        if over {
            text.push_str(" (--max-memory)");
        }
        text
    }
}

/// Says what was being done when a connection failed.
pub(crate) fn doing(doing: &'static str) -> impl Fn(ChannelError) -> Failure {
    move |source| Failure::Connection { doing, source }
}
