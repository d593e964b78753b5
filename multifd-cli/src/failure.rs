//! Why a command failed.

use multifd_core::{BlockError, ChannelError, Error as EngineError, MethodError, UnpackError};
use multifd_qemu::Error as MigrationError;
use multifd_qemu::qmp::QmpError;
use multifd_transport_file::FileError;
use multifd_transport_socket::{SecretError, TlsError};
use multifd_transport_store::StoreError;
use std::io;
use std::path::PathBuf;

/// The error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Migration(MigrationError),
    #[error(transparent)]
    Qmp(QmpError),
    #[error(transparent)]
    File(FileError),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{doing}: {cause}")]
    Connection {
        doing: &'static str,
        cause: ChannelError,
    },
    #[error("{path}: {cause}", path = .path.display())]
    Open { path: PathBuf, cause: io::Error },
    #[error("{doing}: {cause}")]
    System {
        doing: &'static str,
        cause: io::Error,
    },
    #[error("{path} exists already; --force replaces it", path = .path.display())]
    Exists { path: PathBuf },
    #[error("{path}: {reason}", path = .path.display())]
    InFile { path: PathBuf, reason: String },
    #[error(
        "{path} is the file {input} itself, which is read: an output must be another file", path = .path.display(),
        input = .input.display()
    )]
    OutputIsInput { path: PathBuf, input: PathBuf },
    #[error("{path} has no RAM block {block:?}; it has {known}", path = .path.display())]
    NoBlock {
        path: PathBuf,
        block: String,
        known: String,
    },
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

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Cancelled(error) => Self::Engine(error),
            other => Self::Store(other),
        }
    }
}

impl From<MigrationError> for Failure {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::SnapshotFile(error) => error.into(),
            MigrationError::Store(error) => error.into(),
            other => Self::Migration(other),
        }
    }
}

impl From<QmpError> for Failure {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Migration(error) => error.into(),
            other => Self::Qmp(other),
        }
    }
}

impl Failure {
    /// The engine's error, if that is why.
    pub(crate) fn engine(&self) -> Option<&EngineError> {
        match self {
            Self::Engine(error) | Self::Migration(MigrationError::Engine(error)) => Some(error),
            _ => None,
        }
    }

    /// The text for people: "interrupted" after an interrupt; limits with the option that raises
    /// them.
    pub(crate) fn told(&self, interrupted: bool) -> String {
        let engine = self.engine();
        if interrupted && matches!(engine, Some(EngineError::Cancelled)) {
            return "interrupted".into();
        }
        let over = match engine {
            Some(EngineError::Payload { cause, .. }) => matches!(cause, UnpackError::Memory { .. }),
            _ => matches!(self, Self::Migration(MigrationError::Memory { .. })),
        };
        let option = match self {
            Self::Migration(MigrationError::TooLarge {
                what: "the guest's RAM",
                ..
            }) => " (--max-ram)",
            _ if self.is_no_space() => ". Zero pages take no space: --no-space-check tries it",
            _ if over => " (--max-memory)",
            _ => "",
        };
        format!("{self}{option}")
    }

    /// Whether a disk is too small.
    fn is_no_space(&self) -> bool {
        let cause = match self {
            Self::Migration(MigrationError::Declined(cause)) | Self::Qmp(QmpError::Hook(cause)) => {
                cause.downcast_ref()
            }
            Self::Migration(error) => Some(error),
            _ => None,
        };
        matches!(cause, Some(MigrationError::NoSpace { .. }))
    }
}

/// Names what was being done when a connection failed.
pub(crate) fn doing(doing: &'static str) -> impl Fn(ChannelError) -> Failure {
    move |cause| Failure::Connection { doing, cause }
}
