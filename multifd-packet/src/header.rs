//! The twelve bytes every packet after the init packet begins with.

use crate::{Field, Flags, PacketError};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First four bytes of every multifd packet, big-endian; also what tells a multifd connection from
/// the main one.
pub const MAGIC: u32 = 0x1122_3344;
/// First four bytes of the main connection ("QEVM"), big-endian.
pub const MAIN_MAGIC: u32 = 0x5145_564d;

/// What a connection is, by its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Greeting {
    /// QEMU's main connection: [`MAIN_MAGIC`].
    Main,
    /// A multifd channel: [`MAGIC`].
    Channel,
}

impl Greeting {
    /// What a connection that starts with `head` is; `None` if it is neither.
    pub const fn of(head: [u8; 4]) -> Option<Self> {
        match u32::from_be_bytes(head) {
            MAIN_MAGIC => Some(Self::Main),
            MAGIC => Some(Self::Channel),
            _ => None,
        }
    }
}

/// The only version of the multifd protocol.
pub const VERSION: u32 = 1;
/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 12;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: U32,
    pub(crate) version: U32,
    pub(crate) flags: U32,
}

impl RawHeader {
    pub(crate) fn new(flags: Flags) -> Self {
        Self {
            magic: U32::new(MAGIC),
            version: U32::new(VERSION),
            flags: U32::new(flags.bits()),
        }
    }
}

pub(crate) fn check_magic(magic: u32, version: u32) -> Result<(), PacketError> {
    if magic != MAGIC {
        return Err(PacketError::Mismatch {
            field: Field::Magic,
            found: magic.into(),
            expected: MAGIC.into(),
        });
    }
    if version != VERSION {
        return Err(PacketError::Mismatch {
            field: Field::Version,
            found: version.into(),
            expected: VERSION.into(),
        });
    }
    Ok(())
}

/// A packet's header: which of the two packets follows, and with which flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The checked flags word.
    pub flags: Flags,
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes of a packet: `magic u32 | version u32 | flags u32`,
    /// big-endian.
    ///
    /// # Errors
    /// [`PacketError::Short`], [`PacketError::Mismatch`] for magic or version, and what
    /// [`Flags::from_wire`] refuses.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| PacketError::Short {
            what: "packet header",
            expected: HEADER_LEN,
            found: bytes.len(),
        })?;
        check_magic(raw.magic.get(), raw.version.get())?;
        Ok(Self {
            flags: Flags::from_wire(raw.flags.get())?,
        })
    }
}
