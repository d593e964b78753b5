//! The RAM packet: which pages of one RAM block follow, and which are zero.

use crate::header::{RawHeader, check_magic};
use crate::name::{self, NAME_LEN};
use crate::{Field, Flags, PacketError};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a RAM packet before its offsets.
pub const RAM_PACKET_FIXED_LEN: usize = 320;
/// Guest bytes a RAM packet has room for: 512 KiB, whatever the page size.
const PACKET_GUEST_BYTES: u32 = 512 * 1024;
/// The smallest page size accepted, in bytes.
const MIN_PAGE_SIZE: u32 = 512;
/// Bytes of the longest RAM packet any accepted page size gives.
pub const MAX_RAM_PACKET_LEN: usize =
    RAM_PACKET_FIXED_LEN + 8 * (PACKET_GUEST_BYTES / MIN_PAGE_SIZE) as usize;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRam {
    header: RawHeader,
    pages_alloc: U32,
    normal_pages: U32,
    next_packet_size: U32,
    packet_num: U64,
    zero_pages: U32,
    reserved32: U32,
    reserved: [u8; 24],
    ramblock: [u8; NAME_LEN],
}

/// The shape of RAM packets for a guest page size: how many pages one holds and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    page_size: u32,
}

impl Geometry {
    /// The geometry for a guest page size in bytes (4096 on x86).
    ///
    /// # Errors
    /// [`PacketError::BadPageSize`] unless it is a power of two from 512 bytes to 512 KiB.
    pub const fn new(page_size: u32) -> Result<Self, PacketError> {
        if !page_size.is_power_of_two()
            || page_size < MIN_PAGE_SIZE
            || page_size > PACKET_GUEST_BYTES
        {
            return Err(PacketError::BadPageSize {
                found: page_size as u64,
            });
        }
        Ok(Self { page_size })
    }

    /// Bytes of a guest page.
    pub const fn page_size(self) -> u32 {
        self.page_size
    }

    /// Pages a packet has room for: 512 KiB worth.
    pub const fn pages_per_packet(self) -> u32 {
        PACKET_GUEST_BYTES / self.page_size
    }

    /// Bytes of every RAM packet, however few pages it names.
    pub const fn packet_len(self) -> usize {
        RAM_PACKET_FIXED_LEN + 8 * self.pages_per_packet() as usize
    }
}

/// What a RAM packet says, apart from its offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamFields<'a> {
    /// SYNC and the compression method.
    pub flags: Flags,
    /// Payload bytes that follow the packet.
    pub payload_len: u32,
    /// The packet's number, counted over all channels.
    pub packet_num: u64,
    /// The RAM block all offsets are in; may be empty only if there are none (a SYNC packet).
    pub block: &'a str,
}

/// A checked, borrowed view of a RAM packet.
///
/// Layout, big-endian: `header | pages_alloc u32 | normal_pages u32 | next_packet_size u32 |
/// packet_num u64 | zero_pages u32 | reserved u32 | reserved[24] | ramblock char[256] | offset
/// u64[pages_per_packet]`.
///
/// The counts are checked against each other and the geometry, offsets for page alignment. Whether
/// the block exists and an offset lies inside it only the caller can know. Senders before QEMU 9.0
/// have a reserved zero in place of `zero_pages` and may put pages in a SYNC packet: both read
/// right.
#[derive(Debug, Clone, Copy)]
pub struct RamPacket<'a> {
    fields: RamFields<'a>,
    normal: &'a [U64],
    zero: &'a [U64],
    reserved: &'a [u8; 24],
}

impl<'a> RamPacket<'a> {
    /// Reads a packet of [`Geometry::packet_len`] bytes from the start of `bytes`, copying nothing.
    ///
    /// # Errors
    /// Any [`PacketError`]: wrong magic, version or flags; counts that exceed each other or the
    /// geometry; a block name that is missing while pages are named; an offset that is not
    /// page-aligned; normal pages without a payload; under method none, a payload that is not
    /// exactly the normal pages; under any method, a payload of more than twice the packet's guest
    /// bytes.
    ///
    /// Without normal pages there is no payload, whatever `next_packet_size` says.
    pub fn parse(bytes: &'a [u8], geometry: Geometry) -> Result<Self, PacketError> {
        let short = PacketError::Short {
            what: "RAM packet",
            expected: geometry.packet_len(),
            found: bytes.len(),
        };
        let (raw, rest) = RawRam::ref_from_prefix(bytes).map_err(|_| short)?;
        check_magic(raw.header.magic.get(), raw.header.version.get())?;
        let flags = Flags::from_wire(raw.header.flags.get())?;
        if flags.is_device_state() {
            return Err(PacketError::BadFlags {
                flags: flags.bits(),
                bits: Flags::DEVICE_STATE,
            });
        }
        let capacity = geometry.pages_per_packet();
        let alloc = at_most(Field::PagesAlloc, raw.pages_alloc.get(), capacity)?;
        let normal_pages = at_most(Field::NormalPages, raw.normal_pages.get(), alloc)?;
        let zero_pages = at_most(Field::ZeroPages, raw.zero_pages.get(), alloc - normal_pages)?;
        let (offsets, _) =
            <[U64]>::ref_from_prefix_with_elems(rest, capacity as usize).map_err(|_| short)?;
        let named = offsets
            .get(..(normal_pages + zero_pages) as usize)
            .ok_or(short)?;
        let (normal, zero) = named.split_at_checked(normal_pages as usize).ok_or(short)?;
        for offset in named {
            let align = u64::from(geometry.page_size);
            if offset.get() % align != 0 {
                return Err(PacketError::Unaligned {
                    field: Field::Offset,
                    found: offset.get(),
                    align,
                });
            }
        }
        // Before QEMU 9.0 a packet without normal pages has whatever size the one before it had.
        let payload_len = if normal_pages == 0 {
            0
        } else {
            raw.next_packet_size.get()
        };
        check_payload(flags, payload_len, normal_pages, geometry)?;
        let block = if named.is_empty() {
            // A SYNC packet's name is whatever the sender's buffer held last: an unreadable one
            // means nothing.
            name::parse(&raw.ramblock, Field::RamBlock).unwrap_or_default()
        } else {
            name::parse(&raw.ramblock, Field::RamBlock)?
        };
        let fields = RamFields {
            flags,
            payload_len,
            packet_num: raw.packet_num.get(),
            block,
        };
        Ok(Self {
            fields,
            normal,
            zero,
            reserved: &raw.reserved,
        })
    }

    /// Writes a packet to the start of `out` and returns its length, [`Geometry::packet_len`].
    ///
    /// `normal` are the offsets of pages whose contents follow, `zero` those of zero pages, in
    /// bytes from the start of the block.
    ///
    /// # Errors
    /// Whatever [`RamPacket::parse`] would refuse, and [`PacketError::Short`] if `out` is too
    /// small; then `out` is unspecified.
    pub fn encode(
        fields: &RamFields<'_>,
        geometry: Geometry,
        normal: &[u64],
        zero: &[u64],
        out: &mut [u8],
    ) -> Result<usize, PacketError> {
        let len = geometry.packet_len();
        let short = PacketError::Short {
            what: "RAM packet",
            expected: len,
            found: out.len(),
        };
        let out = out.get_mut(..len).ok_or(short)?;
        let capacity = geometry.pages_per_packet();
        let normal_pages = at_most(Field::NormalPages, count(normal), capacity)?;
        let zero_pages = at_most(Field::ZeroPages, count(zero), capacity - normal_pages)?;
        if fields.flags.is_device_state() {
            return Err(PacketError::BadFlags {
                flags: fields.flags.bits(),
                bits: Flags::DEVICE_STATE,
            });
        }
        check_payload(fields.flags, fields.payload_len, normal_pages, geometry)?;
        let no_pages = normal.is_empty() && zero.is_empty();
        let ramblock = if fields.block.is_empty() && no_pages {
            [0; NAME_LEN]
        } else {
            name::encode(fields.block, Field::RamBlock)?
        };
        let raw = RawRam {
            header: RawHeader::new(fields.flags),
            pages_alloc: U32::new(capacity),
            normal_pages: U32::new(normal_pages),
            next_packet_size: U32::new(fields.payload_len),
            packet_num: U64::new(fields.packet_num),
            zero_pages: U32::new(zero_pages),
            reserved32: U32::ZERO,
            reserved: [0; 24],
            ramblock,
        };
        raw.write_to_prefix(out).map_err(|_| short)?;
        let (_, rest) = out
            .split_at_mut_checked(RAM_PACKET_FIXED_LEN)
            .ok_or(short)?;
        let (slots, _) =
            <[U64]>::mut_from_prefix_with_elems(rest, capacity as usize).map_err(|_| short)?;
        let align = u64::from(geometry.page_size);
        let mut named = normal.iter().chain(zero);
        for slot in slots {
            let offset = named.next().copied().unwrap_or(0);
            if offset % align != 0 {
                return Err(PacketError::Unaligned {
                    field: Field::Offset,
                    found: offset,
                    align,
                });
            }
            slot.set(offset);
        }
        Ok(len)
    }

    /// Flags, payload length, packet number and block name.
    pub fn fields(&self) -> &RamFields<'a> {
        &self.fields
    }

    /// Offsets of the pages whose contents follow, in payload order.
    pub fn normal(&self) -> Offsets<'a> {
        Offsets { wire: self.normal }
    }

    /// Offsets of the zero pages.
    pub fn zero(&self) -> Offsets<'a> {
        Offsets { wire: self.zero }
    }

    /// Bytes 40..64: zeros from QEMU, which never looks at them; an extension's otherwise.
    pub fn reserved(&self) -> &'a [u8; 24] {
        self.reserved
    }
}

/// Page offsets as they stand on the wire: bytes from the start of the RAM block, page-aligned.
#[derive(Debug, Clone, Copy)]
pub struct Offsets<'a> {
    wire: &'a [U64],
}

impl<'a> Offsets<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.wire.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// The offset at `index`.
    pub fn get(&self, index: usize) -> Option<u64> {
        self.wire.get(index).map(|offset| offset.get())
    }

    /// The offsets in wire order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.wire.iter().map(|o| o.get())
    }
}

fn count(offsets: &[u64]) -> u32 {
    u32::try_from(offsets.len()).unwrap_or(u32::MAX)
}

fn at_most(field: Field, found: u32, limit: u32) -> Result<u32, PacketError> {
    if found > limit {
        return Err(PacketError::TooLarge {
            field,
            found: found.into(),
            limit: limit.into(),
        });
    }
    Ok(found)
}

fn check_payload(
    flags: Flags,
    len: u32,
    normal_pages: u32,
    geometry: Geometry,
) -> Result<(), PacketError> {
    let raw = normal_pages * geometry.page_size;
    if normal_pages == 0 && len != 0 {
        return Err(PacketError::BadPayload {
            found: len,
            expected: "the packet names no normal pages",
        });
    }
    if normal_pages != 0 && len == 0 {
        return Err(PacketError::BadPayload {
            found: 0,
            expected: "the packet names normal pages",
        });
    }
    if flags.compression() == crate::Compression::None && len != raw {
        return Err(PacketError::BadPayload {
            found: len,
            expected: "without compression it is the normal pages' bytes",
        });
    }
    at_most(Field::NextPacketSize, len, 2 * PACKET_GUEST_BYTES)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compression;
    use proptest::prelude::*;

    fn geometry() -> Geometry {
        Geometry::new(4096).unwrap()
    }

    fn encode_ok(normal: &[u64], zero: &[u64]) -> [u8; 1344] {
        let mut out = [0xaa; 1344];
        let fields = RamFields {
            flags: Flags::data(Compression::None),
            payload_len: u32::try_from(normal.len()).unwrap() * 4096,
            packet_num: 9,
            block: "pc.ram",
        };
        assert_eq!(
            RamPacket::encode(&fields, geometry(), normal, zero, &mut out),
            Ok(1344)
        );
        out
    }

    #[test]
    fn geometry_follows_the_page_size() {
        assert_eq!(geometry().pages_per_packet(), 128);
        assert_eq!(geometry().packet_len(), 1344);
        assert_eq!(Geometry::new(65536).unwrap().packet_len(), 320 + 64);
        for bad in [0, 1, 256, 4095, 1 << 20] {
            assert_eq!(
                Geometry::new(bad),
                Err(PacketError::BadPageSize { found: bad.into() })
            );
        }
    }

    #[test]
    fn counts_are_held_against_each_other() {
        let good = encode_ok(&[0, 4096], &[8192]);
        let parse = |at: usize, value: u32| {
            let mut bytes = good;
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            RamPacket::parse(&bytes, geometry())
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(
            parse(12, 129),
            PacketError::TooLarge {
                field: Field::PagesAlloc,
                found: 129,
                limit: 128
            }
        );
        assert_eq!(
            parse(12, 1),
            PacketError::TooLarge {
                field: Field::NormalPages,
                found: 2,
                limit: 1
            }
        );
        assert_eq!(
            parse(16, u32::MAX),
            PacketError::TooLarge {
                field: Field::NormalPages,
                found: u64::from(u32::MAX),
                limit: 128
            }
        );
        assert_eq!(
            parse(32, u32::MAX),
            PacketError::TooLarge {
                field: Field::ZeroPages,
                found: u64::from(u32::MAX),
                limit: 126
            }
        );
        assert!(matches!(
            parse(20, 1),
            PacketError::BadPayload { found: 1, .. }
        ));
        assert!(matches!(parse(8, 0x40), PacketError::BadFlags { .. }));
        assert!(matches!(
            parse(324, 1),
            PacketError::Unaligned {
                field: Field::Offset,
                found: 1,
                align: 4096
            }
        ));
    }

    #[test]
    fn a_size_without_pages_means_nothing() {
        // As senders before QEMU 9.0 leave it in a SYNC that follows data.
        let mut bytes = encode_ok(&[], &[]);
        bytes[11] |= 1;
        bytes[20..24].copy_from_slice(&524_288u32.to_be_bytes());
        let packet = RamPacket::parse(&bytes, geometry()).unwrap();
        assert_eq!(packet.fields().payload_len, 0);
        assert!(packet.fields().flags.is_sync());
    }

    #[test]
    fn a_legacy_sync_may_carry_pages() {
        let mut bytes = encode_ok(&[4096], &[]);
        bytes[11] |= 1;
        let packet = RamPacket::parse(&bytes, geometry()).unwrap();
        assert!(packet.fields().flags.is_sync());
        assert_eq!(packet.normal().iter().next(), Some(4096));
    }

    #[test]
    fn a_sync_packet_needs_no_name_but_pages_do() {
        let mut out = [0; 1344];
        let fields = RamFields {
            flags: Flags::sync(),
            payload_len: 0,
            packet_num: 1,
            block: "",
        };
        RamPacket::encode(&fields, geometry(), &[], &[], &mut out).unwrap();
        assert_eq!(
            RamPacket::parse(&out, geometry()).unwrap().fields(),
            &fields
        );
        assert_eq!(
            RamPacket::encode(&fields, geometry(), &[], &[0], &mut out),
            Err(PacketError::BadName {
                field: Field::RamBlock
            })
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            pages in proptest::collection::vec(any::<u32>(), 0..128usize),
            split in any::<proptest::sample::Index>(),
            packet_num in any::<u64>(),
            sync in any::<bool>(),
            name in "[a-z/.@]{1,255}",
        ) {
            let offsets: std::vec::Vec<u64> = pages.iter().map(|&p| u64::from(p) * 4096).collect();
            let (normal, zero) = offsets.split_at(split.index(offsets.len() + 1));
            let bits = if sync { Flags::SYNC } else { 0 };
            let fields = RamFields {
                flags: Flags::from_wire(bits).unwrap(),
                payload_len: u32::try_from(normal.len()).unwrap() * 4096,
                packet_num,
                block: &name,
            };
            let mut out = [0x55; 1344];
            RamPacket::encode(&fields, geometry(), normal, zero, &mut out).unwrap();
            let packet = RamPacket::parse(&out, geometry()).unwrap();
            prop_assert_eq!(packet.fields(), &fields);
            prop_assert!(packet.normal().iter().eq(normal.iter().copied()));
            prop_assert!(packet.zero().iter().eq(zero.iter().copied()));
            prop_assert_eq!(packet.reserved(), &[0; 24]);
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000usize), shift in 0u32..24) {
            if let Ok(g) = Geometry::new(1 << shift) {
                let _ = RamPacket::parse(&bytes, g).map(|p| p.normal().len());
            }
        }
    }
}
