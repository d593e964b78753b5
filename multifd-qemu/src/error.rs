//! What can go wrong on the main channel.

use multifd_core::{BlockError, BoxError, ChannelError, Error as EngineError, OverBudget};
use multifd_packet::PacketError;
use std::io;
use std::time::Duration;

/// Why a migration could not be received, sent, or read from a file. Offsets are bytes from the
/// start of the main channel or of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The main channel ended in the middle of something.
    #[error("the main channel ends at byte {offset}, within {what}: the migration is not complete")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// What is cut.
        what: &'static str,
    },
    /// The main channel's I/O failed.
    #[error("the main channel, at byte {offset}, {what}: {cause}")]
    Io {
        /// How far it had come.
        offset: u64,
        /// What was being read or written.
        what: &'static str,
        /// The reason.
        cause: io::Error,
    },
    /// A file could not be written.
    #[error("writing the file, at byte {offset}: {cause}")]
    File {
        /// Where.
        offset: u64,
        /// The reason.
        cause: io::Error,
    },
    /// Nothing came, on any connection, for the whole deadline.
    #[error(
        "nothing came for {deadline:?}, waiting for {what} at byte {offset} of the main channel"
    )]
    Stalled {
        /// How far the main channel had come.
        offset: u64,
        /// What was awaited.
        what: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// The bytes are not what they should be.
    #[error("byte {offset} of the main channel: {what} is {found}, expected {expected}")]
    Malformed {
        /// Where.
        offset: u64,
        /// Which field.
        what: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// Something is larger than the limit for it.
    #[error("byte {offset} of the main channel: {what} is {found}, more than the limit of {limit}")]
    TooLarge {
        /// Where.
        offset: u64,
        /// Which field.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// How large it may be.
        limit: u64,
    },
    /// The VM is not wanted here.
    #[error("{0}")]
    Declined(BoxError),
    /// Something takes more memory than there may be for what a peer makes us hold.
    #[error("byte {offset} of the main channel: {cause}")]
    Memory {
        /// Where.
        offset: u64,
        /// How much there was.
        cause: OverBudget,
    },
    /// A file does not begin as a migration does.
    #[error(
        "it is not a mapped-ram file: at byte {offset}, where a migration would begin, the magic number is {found:#x}, \
         expected 0x5145564d (\"QEVM\")"
    )]
    NotAMigration {
        /// Where.
        offset: u64,
        /// What stands there.
        found: u32,
    },
    /// The source uses something that is not handled here.
    #[error("byte {offset} of the main channel: the source sends {what}: {advice}")]
    Refused {
        /// Where.
        offset: u64,
        /// What.
        what: String,
        /// What to switch off on the source.
        advice: String,
    },
    /// A mapped-ram header is not valid.
    #[error("byte {offset} of the file: RAM block {block:?}: {cause}")]
    Mapped {
        /// Where the header is.
        offset: u64,
        /// The block.
        block: String,
        /// What is wrong with it.
        cause: PacketError,
    },
    /// The main connection could not be made or ended.
    #[error("{doing}: {cause}")]
    Connection {
        /// What was being done.
        doing: &'static str,
        /// The reason.
        cause: ChannelError,
    },
    /// The memory that was made for a RAM block is not what was asked for.
    #[error("the memory made for RAM block {block:?} has another name, or not {len} bytes")]
    OtherMemory {
        /// The block.
        block: String,
        /// Bytes asked for.
        len: u64,
    },
    /// A snapshot's file could not be written or read.
    #[cfg(feature = "file")]
    #[error(transparent)]
    SnapshotFile(#[from] multifd_transport_file::FileError),
    /// Something is wrong in a snapshot's file.
    #[cfg(feature = "file")]
    #[error("{path}: {cause}", path = .path.display())]
    InFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        cause: Box<Self>,
    },
    /// The disk has less space than a guest's RAM may take.
    #[cfg(feature = "file")]
    #[error(
        "{path}: No space left on device for all of the guest's RAM: {free} free, and it has {needed}", path = .path.display(), free = mebibytes(*.free), needed = mebibytes(*.needed)
    )]
    NoSpace {
        /// The file.
        path: std::path::PathBuf,
        /// Bytes of guest RAM.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A snapshot cannot become a QEMU's RAM.
    #[cfg(feature = "file")]
    #[error("the snapshot cannot be mapped as a QEMU's RAM: {0}")]
    CannotMap(String),
    /// A raw image is not made of whole pages.
    #[cfg(feature = "file")]
    #[error("{path} has {len} bytes, not a positive multiple of the page size {page_size}", path = .path.display())]
    RawLength {
        /// The file.
        path: std::path::PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Bytes of a page.
        page_size: u32,
    },
    /// A store could not be written or read.
    #[cfg(feature = "store")]
    #[error(transparent)]
    Store(#[from] multifd_transport_store::StoreError),
    /// The engine's first error, with its channel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A RAM block is unusable, or its memory cannot be allocated.
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// A size for people.
#[cfg(feature = "file")]
#[allow(clippy::cast_precision_loss)] // Two digits are shown.
fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
