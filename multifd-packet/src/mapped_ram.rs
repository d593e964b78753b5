//! Mapped-ram: where a RAM block's bitmap and pages lie in a migration file.

use crate::{Field, PacketError};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a [`MappedRamHeader`].
pub const MAPPED_RAM_HEADER_LEN: usize = 28;
/// QEMU puts each block's pages at a multiple of this many bytes.
pub const PAGES_ALIGN: u64 = 1 << 20;
const MAPPED_RAM_VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMapped {
    version: U32,
    page_size: U64,
    bitmap_offset: U64,
    pages_offset: U64,
}

/// The header after a block's entry in a mapped-ram file:
/// `version u32 = 1 | page size u64 | bitmap offset u64 | pages offset u64`, big-endian, packed.
///
/// Offsets are bytes from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRamHeader {
    /// Guest page size in bytes.
    pub page_size: u64,
    /// Where the bitmap starts.
    pub bitmap_offset: u64,
    /// Where page 0 of the block lies.
    pub pages_offset: u64,
}

impl MappedRamHeader {
    /// Reads a header from the first [`MAPPED_RAM_HEADER_LEN`] bytes.
    ///
    /// # Errors
    /// [`PacketError::Short`]; a version other than 1; a page size that is no power of two from 512
    /// bytes to 512 KiB; pages that are not page-aligned. Whether the regions fit the file is for
    /// [`MappedRamLayout::from_header`] and the caller to say.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let (raw, _) = RawMapped::ref_from_prefix(bytes).map_err(|_| PacketError::Short {
            what: "mapped-ram header",
            expected: MAPPED_RAM_HEADER_LEN,
            found: bytes.len(),
        })?;
        if raw.version.get() != MAPPED_RAM_VERSION {
            return Err(PacketError::Mismatch {
                field: Field::Version,
                found: raw.version.get().into(),
                expected: MAPPED_RAM_VERSION.into(),
            });
        }
        let header = Self {
            page_size: raw.page_size.get(),
            bitmap_offset: raw.bitmap_offset.get(),
            pages_offset: raw.pages_offset.get(),
        };
        header.check()?;
        Ok(header)
    }

    /// Writes the header to the start of `out` and returns its length.
    ///
    /// # Errors
    /// What [`MappedRamHeader::parse`] would refuse, and [`PacketError::Short`].
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, PacketError> {
        self.check()?;
        let raw = RawMapped {
            version: U32::new(MAPPED_RAM_VERSION),
            page_size: U64::new(self.page_size),
            bitmap_offset: U64::new(self.bitmap_offset),
            pages_offset: U64::new(self.pages_offset),
        };
        raw.write_to_prefix(out).map_err(|_| PacketError::Short {
            what: "mapped-ram header",
            expected: MAPPED_RAM_HEADER_LEN,
            found: out.len(),
        })?;
        Ok(MAPPED_RAM_HEADER_LEN)
    }

    fn check(&self) -> Result<(), PacketError> {
        let bad = PacketError::BadPageSize {
            found: self.page_size,
        };
        let page_size = u32::try_from(self.page_size).map_err(|_| bad)?;
        crate::Geometry::new(page_size)?;
        if !self.pages_offset.is_multiple_of(self.page_size) {
            return Err(PacketError::Unaligned {
                field: Field::PagesOffset,
                found: self.pages_offset,
                align: self.page_size,
            });
        }
        Ok(())
    }
}

/// A block's regions in a mapped-ram file, checked not to overlap each other or to leave 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRamLayout {
    header: MappedRamHeader,
    used_length: u64,
}

impl MappedRamLayout {
    /// The layout QEMU gives a block whose mapped-ram header starts at `header_at`: bitmap right
    /// after the header, pages at the next multiple of [`PAGES_ALIGN`].
    ///
    /// # Errors
    /// [`PacketError::BadPageSize`], and [`PacketError::Overflow`] if a region would end past 2^64.
    pub fn place(header_at: u64, used_length: u64, page_size: u32) -> Result<Self, PacketError> {
        crate::Geometry::new(page_size)?;
        let bitmap_offset =
            header_at
                .checked_add(MAPPED_RAM_HEADER_LEN as u64)
                .ok_or(PacketError::Overflow {
                    field: Field::BitmapOffset,
                })?;
        let pages_offset = bitmap_offset
            .checked_add(bitmap_len(used_length, page_size.into()))
            .and_then(|end| end.checked_next_multiple_of(PAGES_ALIGN))
            .ok_or(PacketError::Overflow {
                field: Field::PagesOffset,
            })?;
        Self::from_header(
            MappedRamHeader {
                page_size: page_size.into(),
                bitmap_offset,
                pages_offset,
            },
            used_length,
        )
    }

    /// The layout a header read from a file describes, for a block of `used_length` bytes.
    ///
    /// # Errors
    /// [`PacketError::Overflow`] if a region would end past 2^64, [`PacketError::TooLarge`] if the
    /// bitmap runs into the pages, [`PacketError::Unaligned`] if `used_length` is no multiple of
    /// the page size.
    pub fn from_header(header: MappedRamHeader, used_length: u64) -> Result<Self, PacketError> {
        header.check()?;
        if !used_length.is_multiple_of(header.page_size) {
            return Err(PacketError::Unaligned {
                field: Field::PageSize,
                found: used_length,
                align: header.page_size,
            });
        }
        let layout = Self {
            header,
            used_length,
        };
        let bitmap_end = header
            .bitmap_offset
            .checked_add(layout.bitmap_len())
            .ok_or(PacketError::Overflow {
                field: Field::BitmapOffset,
            })?;
        if bitmap_end > header.pages_offset {
            return Err(PacketError::TooLarge {
                field: Field::BitmapOffset,
                found: header.bitmap_offset,
                limit: header.pages_offset.saturating_sub(layout.bitmap_len()),
            });
        }
        header
            .pages_offset
            .checked_add(used_length)
            .ok_or(PacketError::Overflow {
                field: Field::PagesOffset,
            })?;
        Ok(layout)
    }

    /// The header that describes this layout.
    pub fn header(&self) -> &MappedRamHeader {
        &self.header
    }

    /// Bytes of the block.
    pub fn used_length(&self) -> u64 {
        self.used_length
    }

    /// Pages of the block.
    pub fn pages(&self) -> u64 {
        self.used_length / self.header.page_size
    }

    /// Bytes of the bitmap: one bit a page, rounded up to whole 64-bit words.
    pub fn bitmap_len(&self) -> u64 {
        bitmap_len(self.used_length, self.header.page_size)
    }

    /// Where the next block's entry, or what comes after the last, lies in the file.
    pub fn end(&self) -> u64 {
        self.header.pages_offset + self.used_length
    }
}

fn bitmap_len(used_length: u64, page_size: u64) -> u64 {
    (used_length / page_size).div_ceil(64) * 8
}

/// A page bitmap as it lies in the file: bit `i % 64` of little-endian word `i / 64` says that page
/// `i` is stored.
#[derive(Debug, Clone, Copy)]
pub struct Bitmap<'a> {
    bytes: &'a [u8],
}

impl<'a> Bitmap<'a> {
    /// A view of the file's bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether page `page` is stored; pages past the end are not.
    pub fn contains(&self, page: u64) -> bool {
        // Little-endian words are plain bytes: bit i of the map is bit i % 8 of byte i / 8.
        usize::try_from(page / 8)
            .ok()
            .and_then(|byte| self.bytes.get(byte))
            .is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    }

    /// How many pages are stored.
    pub fn count(&self) -> u64 {
        self.bytes.iter().map(|b| u64::from(b.count_ones())).sum()
    }

    /// Marks page `page` in a bitmap under construction; `false` if it lies past the end.
    pub fn set(bytes: &mut [u8], page: u64) -> bool {
        match usize::try_from(page / 8)
            .ok()
            .and_then(|byte| bytes.get_mut(byte))
        {
            Some(byte) => {
                *byte |= 1 << (page % 8);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_matches_a_file_qemu_wrote() {
        // pc.ram, 16 MiB, of the recorded file: its header stands at byte 114.
        let layout = MappedRamLayout::place(114, 16 << 20, 4096).unwrap();
        assert_eq!(layout.header().bitmap_offset, 0x8e);
        assert_eq!(layout.bitmap_len(), 512);
        assert_eq!(layout.header().pages_offset, 1 << 20);
        assert_eq!(layout.end(), 17 << 20);
        let recorded = include_bytes!("../tests/fuzz/seeds/mapped_ram/pc.ram");
        assert_eq!(
            MappedRamHeader::parse(recorded).as_ref(),
            Ok(layout.header())
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let near_end = MappedRamHeader {
            page_size: 4096,
            bitmap_offset: u64::MAX - 3,
            pages_offset: u64::MAX - 4095,
        };
        assert_eq!(
            MappedRamLayout::from_header(near_end, 4096),
            Err(PacketError::Overflow {
                field: Field::BitmapOffset
            })
        );
        let overlap = MappedRamHeader {
            page_size: 4096,
            bitmap_offset: 4090,
            pages_offset: 4096,
        };
        assert!(matches!(
            MappedRamLayout::from_header(overlap, 4096),
            Err(PacketError::TooLarge {
                field: Field::BitmapOffset,
                ..
            })
        ));
        assert!(MappedRamLayout::place(u64::MAX - 20, 4096, 4096).is_err());
        assert!(MappedRamLayout::place(0, u64::MAX - 4095, 4096).is_err());
    }

    proptest! {
        #[test]
        fn header_survives_the_wire(shift in 9u32..20, bitmap_offset: u64, page in 0u64..1 << 40) {
            let header = MappedRamHeader {
                page_size: 1 << shift,
                bitmap_offset,
                pages_offset: page << shift,
            };
            let mut out = [0; 28];
            prop_assert_eq!(header.encode(&mut out), Ok(28));
            prop_assert_eq!(MappedRamHeader::parse(&out), Ok(header));
        }

        #[test]
        fn bits_are_where_little_endian_words_have_them(pages in proptest::collection::btree_set(0u64..256, 0..40)) {
            let mut words = [0u64; 4];
            let mut bytes = [0u8; 32];
            for &page in &pages {
                words[(page / 64) as usize] |= 1 << (page % 64);
                prop_assert!(Bitmap::set(&mut bytes, page));
            }
            let expected: std::vec::Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            prop_assert_eq!(&bytes[..], &expected[..]);
            let map = Bitmap::new(&bytes);
            prop_assert_eq!(map.count(), pages.len() as u64);
            prop_assert!((0..300).all(|p| map.contains(p) == pages.contains(&p)));
            prop_assert!(!Bitmap::set(&mut bytes, 256));
        }
    }
}
