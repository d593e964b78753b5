//! What can go wrong with a running QEMU.

use crate::Error;
use multifd_core::BoxError;

/// Why a snapshot could not be taken of a QEMU, or restored into it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The monitor refuses, or does not speak QMP.
    #[error("QEMU's monitor at {address}: {why}")]
    Monitor {
        /// The monitor's address.
        address: String,
        /// Its words, or what is wrong with them.
        why: String,
    },
    /// QEMU has closed the connection.
    #[error("QEMU's monitor at {address}: it closed the connection: QEMU has ended")]
    Gone {
        /// The monitor's address.
        address: String,
    },
    /// It cannot be done with this QEMU as it is, and nothing was changed.
    #[error("{0}. Nothing was changed")]
    Refused(String),
    /// QEMU does not take a descriptor, as where it is confined. Everything is as it was found.
    #[error("QEMU does not take the file's descriptor: {0}")]
    NotPassed(String),
    /// QEMU's side of the migration has failed, in its own words.
    #[error("{0}")]
    Failed(String),
    /// Our side of the migration has failed.
    #[error(transparent)]
    Migration(#[from] Error),
    /// A hook of the caller has said no.
    #[error("{0}")]
    Hook(BoxError),
}

impl From<multifd_core::Error> for QmpError {
    fn from(error: multifd_core::Error) -> Self {
        Self::Migration(error.into())
    }
}
