//! The bytes of a store's objects. All numbers are little-endian. `docs/store-format.md` of the
//! project describes them byte by byte.

mod chunk;
mod cursor;
mod head;
pub mod manifest;
pub mod pack;
pub(crate) mod table;
pub mod working_set;

pub use chunk::{ChunkRef, STORED_MAX};
pub(crate) use chunk::{Decoder, Encoder, name_of};

/// The version of the format: of stores, packs, manifests and working sets.
pub const VERSION: u32 = 1;
/// Bytes of the smallest and of the largest chunk.
pub const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 4096..=262_144;
/// Whether a chunk may have so many bytes: a power of two within [`CHUNK_SIZES`].
pub(crate) fn is_chunk_size(bytes: u32) -> bool {
    CHUNK_SIZES.contains(&bytes) && bytes.is_power_of_two()
}

/// Bytes of a chunk in a new store.
pub const DEFAULT_CHUNK: u32 = 65536;
