//! What can be wrong with guest memory, with where and why.

use multifd_packet::PacketError;
use std::io;
use std::sync::Arc;

/// What can be wrong with a RAM block or a place in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The place is not inside the block.
    #[error("bytes {offset:#x}..+{len:#x} lie outside RAM block {block:?} of {block_len:#x} bytes")]
    Outside {
        /// The block's name.
        block: String,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The block's length in bytes.
        block_len: u64,
    },
    /// The block's length is 0 or no multiple of its page size.
    #[error(
        "RAM block {block:?} has {len:#x} bytes, not a positive multiple of its page size {page_size:#x}"
    )]
    Length {
        /// The block's name.
        block: String,
        /// Length in bytes.
        len: u64,
        /// Page size in bytes.
        page_size: u32,
    },
    /// The name can not be sent: empty, over 255 bytes, or with a NUL.
    #[error("RAM block name {block:?} is not 1 to 255 bytes without NUL")]
    Name {
        /// The name.
        block: String,
    },
    /// Two blocks of a map have one name, or different page sizes.
    #[error("RAM block {block:?} does not fit the map: {reason}")]
    Map {
        /// The block's name.
        block: String,
        /// Why.
        reason: &'static str,
    },
    /// The page size can not be used.
    #[error(transparent)]
    PageSize(#[from] PacketError),
    /// Memory could not be had.
    #[error("no memory for RAM block {block:?} ({len:#x} bytes): {source}")]
    Memory {
        /// The block's name.
        block: String,
        /// Length in bytes.
        len: u64,
        /// The operating system's reason.
        source: Arc<io::Error>,
    },
}
