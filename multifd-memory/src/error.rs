//! What can be wrong with a RAM block, a map of them, or a place in one.

use multifd_packet::PacketError;
use std::io;
use std::sync::Arc;

/// Why a RAM block, a map of blocks, or a range of a block cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The range does not lie in the block.
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
    /// The block's length is 0 or not a multiple of its page size.
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
    /// The name cannot be sent: empty, over 255 bytes, or with a NUL.
    #[error("RAM block name {block:?} is not 1 to 255 bytes without NUL")]
    Name {
        /// The name.
        block: String,
    },
    /// The page size cannot be used.
    #[error(transparent)]
    PageSize(#[from] PacketError),
    /// Two blocks of a map have the same name.
    #[error("a RAM block named {block:?} is in the map already")]
    Duplicate {
        /// The name.
        block: String,
    },
    /// The blocks of a map differ in page size.
    #[error("RAM block {block:?} has pages of {found} bytes, the other blocks of {expected}")]
    MixedPageSizes {
        /// The block's name.
        block: String,
        /// Its page size in bytes.
        found: u32,
        /// The page size of the blocks already in the map.
        expected: u32,
    },
    /// The block is frozen: nothing can be received into it.
    #[error("RAM block {block:?} is frozen: nothing can be received into it")]
    Frozen {
        /// The block's name.
        block: String,
    },
    /// The memory is not private to the block, so it cannot be frozen.
    #[error("RAM block {block:?} cannot be frozen: others may write to its memory")]
    Shared {
        /// The block's name.
        block: String,
    },
    /// The block is in use elsewhere, so it cannot be frozen.
    #[error("RAM block {block:?} cannot be frozen: it is in use elsewhere")]
    InUse {
        /// The block's name.
        block: String,
    },
    /// The memory is not mapped for reading and writing.
    #[error("the memory of RAM block {block:?} is not mapped for reading and writing")]
    Protection {
        /// The block's name.
        block: String,
    },
    /// A batch was given more pages than one packet holds.
    #[error("a packet holds {limit} pages of RAM block {block:?}, and {found} were given")]
    TooManyPages {
        /// The block's name.
        block: String,
        /// Pages given.
        found: usize,
        /// Pages a packet holds.
        limit: usize,
    },
    /// The system has no memory for the block.
    #[error("no memory for RAM block {block:?} ({len:#x} bytes): {cause}")]
    Memory {
        /// The block's name.
        block: String,
        /// Length in bytes.
        len: u64,
        /// The system's reason.
        cause: Arc<io::Error>,
    },
}
