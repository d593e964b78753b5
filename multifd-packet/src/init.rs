//! The init packet: the first 64 bytes on every multifd channel.

use crate::header::check_magic;
use crate::{MAGIC, PacketError, Uuid, VERSION};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an [`InitPacket`].
pub const INIT_PACKET_LEN: usize = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawInit {
    magic: U32,
    version: U32,
    uuid: [u8; 16],
    id: u8,
    reserved: [u8; 39],
}

/// Says whose channel this is: `magic u32 | version u32 | uuid[16] | id u8 | reserved[39]`,
/// big-endian.
///
/// The reserved bytes are written as zeros and not looked at, as in QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitPacket {
    /// The source VM's UUID (`-uuid`), or zeros.
    pub uuid: Uuid,
    /// The channel's number, from 0.
    pub channel: u8,
}

impl InitPacket {
    /// Reads an init packet from the first [`INIT_PACKET_LEN`] bytes.
    ///
    /// # Errors
    /// [`PacketError::Short`], and [`PacketError::Mismatch`] for magic or version. UUID and channel
    /// are the caller's to compare: only it knows the right ones.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let (raw, _) = RawInit::ref_from_prefix(bytes).map_err(|_| PacketError::Short {
            what: "init packet",
            expected: INIT_PACKET_LEN,
            found: bytes.len(),
        })?;
        check_magic(raw.magic.get(), raw.version.get())?;
        Ok(Self {
            uuid: Uuid(raw.uuid),
            channel: raw.id,
        })
    }

    /// Writes the packet to the start of `out` and returns its length.
    ///
    /// # Errors
    /// [`PacketError::Short`] if `out` has fewer than [`INIT_PACKET_LEN`] bytes.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, PacketError> {
        let raw = RawInit {
            magic: U32::new(MAGIC),
            version: U32::new(VERSION),
            uuid: self.uuid.0,
            id: self.channel,
            reserved: [0; 39],
        };
        raw.write_to_prefix(out).map_err(|_| PacketError::Short {
            what: "init packet",
            expected: INIT_PACKET_LEN,
            found: out.len(),
        })?;
        Ok(INIT_PACKET_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Field;

    #[test]
    fn init_packet_survives_the_wire_and_refuses_a_wrong_start() {
        let packet = InitPacket {
            uuid: Uuid(*b"0123456789abcdef"),
            channel: 7,
        };
        let mut bytes = [0xff; 70];
        assert_eq!(packet.encode(&mut bytes), Ok(64));
        assert_eq!(InitPacket::parse(&bytes), Ok(packet));
        assert_eq!(bytes[25..64], [0; 39]);
        bytes[7] = 2;
        assert_eq!(
            InitPacket::parse(&bytes),
            Err(PacketError::Mismatch {
                field: Field::Version,
                found: 2,
                expected: 1
            })
        );
        bytes[0] = 0;
        assert!(matches!(
            InitPacket::parse(&bytes),
            Err(PacketError::Mismatch {
                field: Field::Magic,
                ..
            })
        ));
        assert_eq!(
            InitPacket::parse(&bytes[..63]),
            Err(PacketError::Short {
                what: "init packet",
                expected: 64,
                found: 63
            })
        );
    }
}
