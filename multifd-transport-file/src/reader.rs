//! A block's memory as it lies in a file, read piece by piece.

use crate::{FileError, PlacedBlock};
use multifd_core::runs;
use multifd_packet::{Bitmap, MappedRamLayout};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads a block's bitmap: bit `i % 64` of little-endian word `i / 64` says that page `i` is stored.
///
/// # Errors
/// [`FileError::Short`] if the file ends within it; [`FileError::At`].
pub fn read_bitmap(file: &File, layout: &MappedRamLayout) -> Result<Vec<u8>, FileError> {
    let (offset, len) = (layout.header().bitmap_offset, layout.bitmap_len());
    let failed = |source| FileError::At {
        doing: "reading the bitmap,",
        offset,
        len: usize::try_from(len).unwrap_or(usize::MAX),
        source,
    };
    // The file must be as long as it claims before anything is allocated.
    let end = file.metadata().map_err(failed)?.len();
    if offset.checked_add(len).is_none_or(|needed| needed > end) {
        return Err(FileError::Short {
            what: "a bitmap",
            offset,
            len,
            end,
        });
    }
    let size = usize::try_from(len).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

/// Reads any part of a block's memory; pages that are not stored read as zeros.
#[derive(Debug)]
pub struct BlockReader<'a> {
    file: &'a File,
    block: &'a PlacedBlock,
    bitmap: Vec<u8>,
}

impl<'a> BlockReader<'a> {
    /// A reader of `block`, whose bitmap is read now.
    ///
    /// # Errors
    /// As [`read_bitmap`].
    pub fn new(file: &'a File, block: &'a PlacedBlock) -> Result<Self, FileError> {
        let bitmap = read_bitmap(file, &block.layout)?;
        Ok(Self { file, block, bitmap })
    }

    /// The block.
    pub fn block(&self) -> &'a PlacedBlock {
        self.block
    }

    /// The block's bitmap of stored pages.
    pub fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(&self.bitmap)
    }

    /// Bytes of a page.
    fn page_size(&self) -> u64 {
        self.block.layout.header().page_size
    }

    /// Whether any page of `len` bytes at `offset` is stored.
    pub fn is_stored(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len).div_ceil(self.page_size());
        (offset / self.page_size()..end).any(|page| self.bitmap().contains(page))
    }

    /// Fills `out` with the memory at `offset`. Both are whole pages.
    ///
    /// # Errors
    /// [`FileError::Short`] if the file ends within a stored page; [`FileError::At`].
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), FileError> {
        out.fill(0);
        let header = self.block.layout.header();
        let page = self.page_size();
        let bitmap = self.bitmap();
        let end = offset + out.len() as u64;
        let stored = (offset / page..end.div_ceil(page)).filter(|&number| bitmap.contains(number));
        // A page size is at most 512 KiB: it was checked when the layout was made.
        let page_size = u32::try_from(page).unwrap_or(u32::MAX);
        for run in runs(stored.map(|number| number * page), page_size) {
            let start = usize::try_from(run.offset - offset).unwrap_or(usize::MAX);
            let len = run.len.min(out.len().saturating_sub(start));
            let Some(piece) = out.get_mut(start..start + len) else {
                continue;
            };
            let at = header.pages_offset + run.offset;
            self.file
                .read_exact_at(piece, at)
                .map_err(|source| match source.kind() {
                    io::ErrorKind::UnexpectedEof => FileError::Short {
                        what: "pages",
                        offset: at,
                        len: len as u64,
                        end: self.file.metadata().map_or(0, |data| data.len()),
                    },
                    _ => FileError::At {
                        doing: "reading",
                        offset: at,
                        len,
                        source,
                    },
                })?;
        }
        Ok(())
    }
}
