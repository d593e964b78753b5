//! A block's memory as it lies in a file, read piece by piece.

use crate::{FileError, PlacedBlock, StoredPages};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Reads any part of a block's memory; pages that are not stored read as zeros.
#[derive(Debug)]
pub struct BlockReader<'a> {
    file: &'a File,
    block: &'a PlacedBlock,
    stored: StoredPages,
}

impl<'a> BlockReader<'a> {
    /// A reader of `block`, whose bitmap is read now.
    ///
    /// # Errors
    /// As [`StoredPages::read`].
    pub fn new(file: &'a File, block: &'a PlacedBlock) -> Result<Self, FileError> {
        let stored = StoredPages::read(file, &block.layout)?;
        Ok(Self {
            file,
            block,
            stored,
        })
    }

    /// The block.
    pub fn block(&self) -> &'a PlacedBlock {
        self.block
    }

    /// The block's stored pages.
    pub fn stored(&self) -> &StoredPages {
        &self.stored
    }

    /// Bytes of a page.
    fn page_size(&self) -> u64 {
        self.block.layout.header().page_size
    }

    /// Whether any page of `len` bytes at `offset` is stored.
    pub fn is_stored(&self, offset: u64, len: u64) -> bool {
        self.stored.any_in(self.pages(offset, len))
    }

    /// What is stored of a range, whole pages, as runs of bytes in order.
    pub fn stored_runs(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let page = self.page_size();
        let pages = range.start / page..range.end.div_ceil(page);
        self.stored
            .runs(pages)
            .map(move |run| run.start * page..run.end * page)
    }

    /// The pages that `len` bytes at `offset` touch.
    fn pages(&self, offset: u64, len: u64) -> Range<u64> {
        offset / self.page_size()..offset.saturating_add(len).div_ceil(self.page_size())
    }

    /// Fills `out` with the memory at `offset`. Both are whole pages.
    ///
    /// # Errors
    /// [`FileError::Short`] if the file ends within a stored page; [`FileError::At`].
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), FileError> {
        let header = self.block.layout.header();
        let page = self.page_size();
        let mut filled = 0;
        for run in self.stored.runs(self.pages(offset, out.len() as u64)) {
            let start = usize::try_from(run.start * page - offset).unwrap_or(usize::MAX);
            let len = usize::try_from((run.end - run.start) * page).unwrap_or(usize::MAX);
            let len = len.min(out.len().saturating_sub(start));
            // What is not stored is zero.
            if let Some(gap) = out.get_mut(filled..start) {
                gap.fill(0);
            }
            filled = start.saturating_add(len);
            let Some(piece) = out.get_mut(start..start + len) else {
                continue;
            };
            let at = header.pages_offset + run.start * page;
            self.file
                .read_exact_at(piece, at)
                .map_err(|cause| match cause.kind() {
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
                        cause,
                    },
                })?;
        }
        if let Some(gap) = out.get_mut(filled..) {
            gap.fill(0);
        }
        Ok(())
    }
}
