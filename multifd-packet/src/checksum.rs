//! The checksum extension: CRC-32 over a RAM packet and its payload, in reserved bytes that QEMU
//! sends as zeros and never looks at.

use crate::ram::RAM_PACKET_FIXED_LEN;
use crate::{Field, PacketError};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the seal stands in a RAM packet: the first sixteen of its reserved bytes.
const AT: usize = 40;
/// "MFCK", big-endian.
const TAG: u32 = 0x4d46_434b;
/// The payload's CRC is there.
const HAS_PAYLOAD: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSeal {
    tag: U32,
    packet: U32,
    payload: U32,
    flags: U32,
}

/// The checksums a RAM packet carries.
///
/// Layout, big-endian, in the packet's bytes 40..56: `tag u32 = "MFCK" | CRC-32 of the packet, with
/// this field as zero u32 | CRC-32 of the payload as it is on the wire u32 | flags u32` (bit 0: the
/// payload's CRC is there; the others are zero). The CRC is the one of Ethernet, zlib and gzip.
/// Bytes 56..64 stay zero.
///
/// ```
/// use multifd_packet::{Compression, Flags, Geometry, RamFields, RamPacket, Seal};
///
/// let geometry = Geometry::new(4096)?;
/// let fields = RamFields { flags: Flags::data(Compression::None), payload_len: 4096, packet_num: 0, block: "pc.ram" };
/// let payload = [7u8; 4096];
/// let mut packet = [0u8; 1344];
/// RamPacket::encode(&fields, geometry, &[0x1000], &[], &mut packet)?;
/// Seal::write(&mut packet, Some(crc32fast::hash(&payload)))?;
///
/// let seal = Seal::verify(&packet)?.ok_or(multifd_packet::PacketError::NoChecksum)?;
/// seal.verify_payload(crc32fast::hash(&payload))?;
/// packet[330] ^= 1;
/// assert!(Seal::verify(&packet).is_err());
/// # Ok::<(), multifd_packet::PacketError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// CRC-32 of the payload on the wire; only a payload that cannot change on its way has one.
    pub payload: Option<u32>,
}

fn short(found: usize) -> PacketError {
    PacketError::Short {
        what: "RAM packet",
        expected: RAM_PACKET_FIXED_LEN,
        found,
    }
}

/// CRC-32 of a packet, its own field as zero.
fn packet_crc(packet: &[u8]) -> u32 {
    let (before, rest) = packet.split_at_checked(AT + 4).unwrap_or((packet, &[]));
    let mut crc = crc32fast::Hasher::new();
    crc.update(before);
    crc.update(&[0; 4]);
    crc.update(rest.get(4..).unwrap_or_default());
    crc.finalize()
}

impl Seal {
    /// Writes the checksums into an encoded RAM packet: `packet` is all of it, and nothing else.
    ///
    /// # Errors
    /// [`PacketError::Short`] if it is no RAM packet.
    pub fn write(packet: &mut [u8], payload: Option<u32>) -> Result<(), PacketError> {
        let found = packet.len();
        if found < RAM_PACKET_FIXED_LEN {
            return Err(short(found));
        }
        let mut raw = RawSeal {
            tag: U32::new(TAG),
            packet: U32::ZERO,
            payload: U32::new(payload.unwrap_or(0)),
            flags: U32::new(if payload.is_some() { HAS_PAYLOAD } else { 0 }),
        };
        let put = |raw: &RawSeal, packet: &mut [u8]| {
            let room = packet.get_mut(AT..).unwrap_or_default();
            raw.write_to_prefix(room).map_err(|_| short(found))
        };
        put(&raw, packet)?;
        raw.packet = U32::new(packet_crc(packet));
        put(&raw, packet)
    }

    /// Checks the packet against the checksum it carries; `None` if it carries none. `packet` is
    /// all of it, and nothing else.
    ///
    /// # Errors
    /// [`PacketError::Mismatch`] if the packet is not what was sealed; [`PacketError::TooLarge`]
    /// for flags without a meaning; [`PacketError::Short`].
    pub fn verify(packet: &[u8]) -> Result<Option<Self>, PacketError> {
        let sealed = packet.get(AT..).unwrap_or_default();
        let (raw, _) = RawSeal::ref_from_prefix(sealed).map_err(|_| short(packet.len()))?;
        if raw.tag.get() != TAG {
            return Ok(None);
        }
        let expected = packet_crc(packet);
        if raw.packet.get() != expected {
            return Err(PacketError::Mismatch {
                field: Field::PacketChecksum,
                found: raw.packet.get().into(),
                expected: expected.into(),
            });
        }
        let flags = raw.flags.get();
        if flags > HAS_PAYLOAD {
            return Err(PacketError::TooLarge {
                field: Field::ChecksumFlags,
                found: flags.into(),
                limit: HAS_PAYLOAD.into(),
            });
        }
        Ok(Some(Self {
            payload: (flags == HAS_PAYLOAD).then_some(raw.payload.get()),
        }))
    }

    /// Compares the CRC-32 of a payload that came with the one the packet carries, if it does.
    ///
    /// # Errors
    /// [`PacketError::Mismatch`] if they differ.
    pub fn verify_payload(&self, found: u32) -> Result<(), PacketError> {
        match self.payload {
            Some(expected) if expected != found => Err(PacketError::Mismatch {
                field: Field::PayloadChecksum,
                found: found.into(),
                expected: expected.into(),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compression, Flags, Geometry, RamFields, RamPacket};
    use proptest::prelude::*;

    fn packet(normal: &[u64], payload: Option<u32>) -> [u8; 1344] {
        let mut packet = [0; 1344];
        let fields = RamFields {
            flags: Flags::data(Compression::None),
            payload_len: u32::try_from(normal.len()).unwrap() * 4096,
            packet_num: 77,
            block: "pc.ram",
        };
        RamPacket::encode(
            &fields,
            Geometry::new(4096).unwrap(),
            normal,
            &[],
            &mut packet,
        )
        .unwrap();
        Seal::write(&mut packet, payload).unwrap();
        packet
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let sealed = packet(&[0], Some(0x0102_0304));
        assert_eq!(&sealed[40..44], b"MFCK");
        assert_eq!(sealed[48..56], [1, 2, 3, 4, 0, 0, 0, 1]);
        assert_eq!(sealed[56..64], [0; 8]);
        let mut zeroed = sealed;
        zeroed[44..48].fill(0);
        assert_eq!(sealed[44..48], crc32fast::hash(&zeroed).to_be_bytes());
        // Whoever does not know of it reads the packet as ever.
        assert!(RamPacket::parse(&sealed, Geometry::new(4096).unwrap()).is_ok());
        assert_eq!(Seal::verify(&[0; 1344]), Ok(None));
        assert!(Seal::verify(&sealed[..50]).is_err());
        assert!(Seal::write(&mut [0; 319], None).is_err());
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_in_a_packet_is_caught(
            pages in 0u64..128, payload in any::<Option<u32>>(), bit in 0usize..1344 * 8,
        ) {
            let normal: std::vec::Vec<u64> = (0..pages).map(|page| page * 4096).collect();
            let mut sealed = packet(&normal, payload);
            prop_assert_eq!(Seal::verify(&sealed), Ok(Some(Seal { payload })));
            sealed[bit / 8] ^= 1 << (bit % 8);
            // The tag's own bits make it a packet without a checksum: whoever asks for one sees
            // that.
            let expected = if (40 * 8..44 * 8).contains(&bit) { matches!(Seal::verify(&sealed), Ok(None)) } else { Seal::verify(&sealed).is_err() };
            prop_assert!(expected);
        }
    }
}
