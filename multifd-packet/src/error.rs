//! What can be wrong with bytes that claim to be a multifd structure.

use core::fmt;

/// The field of a packet or header an error speaks of, by its name in QEMU's wire description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// `magic`, the first four bytes.
    Magic,
    /// `version`.
    Version,
    /// `flags`.
    Flags,
    /// `pages_alloc`: room for page offsets in the packet.
    PagesAlloc,
    /// `normal_pages`: pages whose contents follow.
    NormalPages,
    /// `zero_pages`: pages that are only named.
    ZeroPages,
    /// `next_packet_size`: payload bytes after the packet.
    NextPacketSize,
    /// `ramblock`: the RAM block's name.
    RamBlock,
    /// `idstr`: the label of a device-state packet.
    IdStr,
    /// An entry of `offset[]`: a page's place in its RAM block.
    Offset,
    /// `page_size`.
    PageSize,
    /// `bitmap_offset` of a mapped-ram header.
    BitmapOffset,
    /// `pages_offset` of a mapped-ram header.
    PagesOffset,
    /// The checksum extension's CRC-32 of a packet.
    PacketChecksum,
    /// The checksum extension's CRC-32 of a payload.
    PayloadChecksum,
    /// The checksum extension's flags.
    ChecksumFlags,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "magic",
            Self::Version => "version",
            Self::Flags => "flags",
            Self::PagesAlloc => "pages_alloc",
            Self::NormalPages => "normal_pages",
            Self::ZeroPages => "zero_pages",
            Self::NextPacketSize => "next_packet_size",
            Self::RamBlock => "ramblock",
            Self::IdStr => "idstr",
            Self::Offset => "offset",
            Self::PageSize => "page_size",
            Self::BitmapOffset => "bitmap_offset",
            Self::PagesOffset => "pages_offset",
            Self::PacketChecksum => "the packet's checksum",
            Self::PayloadChecksum => "the payload's checksum",
            Self::ChecksumFlags => "the checksum's flags",
        })
    }
}

/// Why bytes are not the structure they were read as, or why a structure cannot be encoded.
///
/// Every variant names what was found and what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// The buffer is shorter than the structure.
    #[error("{what} needs {expected} bytes, the buffer has {found}")]
    Short {
        /// The structure.
        what: &'static str,
        /// Its length in bytes.
        expected: usize,
        /// The buffer's length in bytes.
        found: usize,
    },
    /// A field has a value other than the one it must have.
    #[error("{field} is {found:#x}, expected {expected:#x}")]
    Mismatch {
        /// The field.
        field: Field,
        /// Its value.
        found: u64,
        /// The only value allowed.
        expected: u64,
    },
    /// A field is larger than it may be.
    #[error("{field} is {found}, more than the limit of {limit}")]
    TooLarge {
        /// The field.
        field: Field,
        /// Its value.
        found: u64,
        /// The largest value allowed.
        limit: u64,
    },
    /// The compression bits of `flags` are no method this crate knows.
    #[error(
        "flags {flags:#x} carry the unknown compression method {bits:#x}; known are none, zlib, zstd, QPL, UADK, QATzip and private methods"
    )]
    UnknownCompression {
        /// The whole flags word.
        flags: u32,
        /// Its method bits, in place.
        bits: u32,
    },
    /// `flags` has bits with no meaning here, or two that exclude each other.
    #[error("flags {flags:#x} are not valid here (offending bits {bits:#x})")]
    BadFlags {
        /// The whole flags word.
        flags: u32,
        /// The bits that may not be set.
        bits: u32,
    },
    /// A value is not aligned as it must be.
    #[error("{field} {found:#x} is not a multiple of {align:#x}")]
    Unaligned {
        /// The field.
        field: Field,
        /// Its value.
        found: u64,
        /// The alignment in bytes.
        align: u64,
    },
    /// A name is empty, not NUL-terminated within its field, or not UTF-8.
    #[error("{field} is not a NUL-terminated name of 1 to 255 UTF-8 bytes")]
    BadName {
        /// The field.
        field: Field,
    },
    /// The page size is no power of two, or out of range.
    #[error("page size {found} is not a power of two between 512 and 524288 bytes")]
    BadPageSize {
        /// The page size in bytes.
        found: u64,
    },
    /// A payload is announced where there is none, or is missing where there must be one.
    #[error("next_packet_size is {found}, but {expected}")]
    BadPayload {
        /// `next_packet_size`.
        found: u32,
        /// The rule that does not hold, as half a sentence.
        expected: &'static str,
    },
    /// A packet carries no checksum, or none of its payload, where one is asked for.
    #[error("the packet carries no checksum of itself, or none of its payload")]
    NoChecksum,
    /// Offsets of a layout exceed 64 bits.
    #[error("{field} lies beyond the end of a 64-bit file")]
    Overflow {
        /// The field.
        field: Field,
    },
}
