//! What can go wrong on the main channel.

use multifd_core::{BlockError, Error as EngineError, OverBudget};
use multifd_packet::PacketError;
use std::io;
use std::time::Duration;

/// Why a migration could not be received, sent, or read from a file. Offsets are bytes from the start of the main channel
/// or of the file.
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
    #[error("the main channel, at byte {offset}, {what}: {source}")]
    Io {
        /// How far it had come.
        offset: u64,
        /// What was being read or written.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("writing the file, at byte {offset}: {source}")]
    File {
        /// Where.
        offset: u64,
        /// The reason.
        source: io::Error,
    },
    /// Nothing came, on any connection, for the whole deadline.
    #[error("nothing came for {deadline:?}, waiting for {what} at byte {offset} of the main channel")]
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
    Declined(String),
    /// Something takes more memory than there may be for what a peer makes us hold.
    #[error("byte {offset} of the main channel: {source}")]
    Memory {
        /// Where.
        offset: u64,
        /// How much there was.
        source: OverBudget,
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
    #[error("byte {offset} of the main channel: the source sends {what}, which is not supported: {advice}")]
    Refused {
        /// Where.
        offset: u64,
        /// What.
        what: String,
        /// What to switch off on the source.
        advice: String,
    },
    /// A mapped-ram header is not valid.
    #[error("byte {offset} of the file: RAM block {block:?}: {source}")]
    Mapped {
        /// Where the header is.
        offset: u64,
        /// The block.
        block: String,
        /// What is wrong with it.
        source: PacketError,
    },
    /// The engine's first error, with its channel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A RAM block can not be used, or memory for it not be had.
    #[error(transparent)]
    Block(#[from] BlockError),
}
