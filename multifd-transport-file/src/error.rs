//! What can go wrong with a file.

use multifd_core::BlockError;
use std::io;
use std::path::PathBuf;

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused, at a path.
    #[error("{path}: {doing}: {cause}", path = .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
    /// A file has the name already.
    #[error("{path} exists already, and is not to be replaced", path = .path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The path names something else than a regular file.
    #[error("{path} is {kind}: {advice}", path = .path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The operating system refused, at a place in the file.
    #[error("{doing} {len} bytes at offset {offset:#x} of the file: {cause}")]
    At {
        /// What was being done.
        doing: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
        /// The system's reason.
        cause: io::Error,
    },
    /// RAM blocks have pages of different sizes.
    #[error("the RAM blocks have pages of {first} and of {other} bytes; all must have the same")]
    MixedPageSizes {
        /// Of the first block.
        first: u64,
        /// Of another one.
        other: u64,
    },
    /// The file ends before what it says it holds.
    #[error(
        "the file ends at {end:#x}, within {what} at {offset:#x} (+{len:#x} bytes): it is not whole"
    )]
    Short {
        /// What is cut.
        what: &'static str,
        /// Where that begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Where the file ends.
        end: u64,
    },
    /// The file system does not do direct I/O.
    #[error(
        "the file system refuses direct I/O: {cause}; use buffered I/O, or allow it as a fallback"
    )]
    DirectRefused {
        /// The system's reason.
        cause: io::Error,
    },
    /// A companion with checksums is not what it should be.
    #[error("the companion with checksums cannot be used: {0}")]
    Companion(String),
    /// A block of the file and the memory it is to be loaded into do not fit.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// There is no RAM block for a block of the file.
    #[error("there is no RAM block {block:?} of {len:#x} bytes to load into")]
    NoBlock {
        /// The name.
        block: String,
        /// Its length in bytes.
        len: u64,
    },
}
