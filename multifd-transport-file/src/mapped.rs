//! A file's memory, mapped: read when it is looked at.

use crate::load::gaps;
use crate::{FileError, PlacedBlock, StoredPages, sys};
use multifd_core::{RamBlock, RamMap, Run, ZeroTest};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// The RAM blocks of a file as mappings of it, and which of their pages are zero.
///
/// Only the pages that are stored mean anything: in the place of another one the file may have what
/// was there in an earlier round. Ask [`MappedRam::zeros`] before a page is read, or
/// [`map`] blocks one by one, which read as zeros there.
#[non_exhaustive]
pub struct MappedRam {
    /// The blocks, copy on write.
    pub ram: RamMap,
    /// Which of their pages are zero.
    pub zeros: Arc<dyn ZeroTest>,
}

impl std::fmt::Debug for MappedRam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedRam")
            .field("ram", &self.ram)
            .finish_non_exhaustive()
    }
}

/// Knows by a file's bitmaps which pages of its RAM blocks are zero.
struct FileZeros(Vec<(String, StoredPages)>);

impl ZeroTest for FileZeros {
    fn is_zero(&self, block: &RamBlock, offset: u64) -> bool {
        let page = offset / u64::from(block.page_size());
        let mut all = self.0.iter();
        let stored = all.find(|(name, _)| name == block.name());
        stored.is_some_and(|(_, stored)| !stored.contains(page))
    }
}

/// Knows the holes of a raw image, and looks at the rest.
struct RawZeros(Vec<Range<u64>>);

impl ZeroTest for RawZeros {
    fn is_zero(&self, block: &RamBlock, offset: u64) -> bool {
        let end = offset + u64::from(block.page_size());
        let next = self.0.partition_point(|data| data.end <= offset);
        let is_hole = self.0.get(next).is_none_or(|data| data.start >= end);
        is_hole || block.page(offset).is_ok_and(|page| page.is_zero())
    }
}

/// Maps a file that is the memory of one RAM block and nothing else, as [`map_all`] does.
///
/// # Errors
/// [`FileError::At`] if it cannot be mapped; [`FileError::Block`] if it is empty, or not whole pages.
pub fn map_raw(file: &File, name: &str, page_size: u32) -> Result<MappedRam, FileError> {
    let failed = |cause| FileError::At {
        doing: "mapping",
        offset: 0,
        len: 0,
        cause,
    };
    let len = file.metadata().map_err(failed)?.len();
    let size = usize::try_from(len).unwrap_or(usize::MAX);
    let mapping = sys::map_private(file, 0, size).map_err(failed)?;
    let mut ram = RamMap::new();
    ram.add(RamBlock::from_mmap(name, mapping, page_size)?)?;
    let zeros = Arc::new(RawZeros(data_in(file, 0..len)?));
    Ok(MappedRam { ram, zeros })
}

/// Maps all blocks of a file: none of it is read, and no memory taken, before a page is looked at.
///
/// A file that is made shorter meanwhile ends the process with `SIGBUS` where a missing page is
/// touched: map only files that nobody truncates.
///
/// # Errors
/// [`FileError::Short`] if the file ends within a block's pages; [`FileError::At`] if it cannot be
/// mapped.
pub fn map_all(file: &File, blocks: &[PlacedBlock]) -> Result<MappedRam, FileError> {
    let mut ram = RamMap::new();
    let mut zeros = Vec::with_capacity(blocks.len());
    for placed in blocks {
        let (block, stored) = map_stored(file, placed)?;
        ram.add(block)?;
        zeros.push((placed.name.clone(), stored));
    }
    let zeros = Arc::new(FileZeros(zeros));
    Ok(MappedRam { ram, zeros })
}

/// A block's memory as a copy-on-write mapping of the file: nothing is read before it is looked at,
/// and nothing written to the block reaches the file.
///
/// A file that is made shorter meanwhile ends the process with `SIGBUS` where a missing page is
/// touched: map only files that nobody truncates.
///
/// # Errors
/// [`FileError::Short`] if the file ends within the block's pages; [`FileError::At`] if it cannot
/// be mapped.
pub fn map(file: &File, placed: &PlacedBlock) -> Result<RamBlock, FileError> {
    let (block, stored) = map_stored(file, placed)?;
    let layout = &placed.layout;
    let page = u64::from(block.page_size());
    let stored = stored.runs(0..layout.pages()).map(|run| Run {
        offset: run.start * page,
        len: usize::try_from((run.end - run.start) * page).unwrap_or(usize::MAX),
    });
    // What is not stored is zero, whatever an earlier round left in its place. Holes are not
    // touched.
    let start = layout.header().pages_offset;
    for gap in gaps(stored, 0..layout.used_length()) {
        let at = start + gap.offset;
        for data in data_in(file, at..at + gap.len as u64)? {
            let len = usize::try_from(data.end - data.start).unwrap_or(usize::MAX);
            block.region(data.start - start, len)?.clear();
        }
    }
    Ok(block)
}

/// The parts of a range of a file, in bytes, that are not holes.
///
/// # Errors
/// [`FileError::At`], the system's reason.
pub fn data_in(file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>, FileError> {
    let mut parts = Vec::new();
    let mut at = range.start;
    let next = |at| {
        sys::next_data(file, at..range.end).map_err(|cause| FileError::At {
            doing: "looking for data in",
            offset: at,
            len: usize::try_from(range.end - at).unwrap_or(usize::MAX),
            cause,
        })
    };
    while let Some(data) = next(at)? {
        at = data.end;
        parts.push(data);
    }
    Ok(parts)
}

/// A block's memory as it lies in the file, and which of its pages are stored.
fn map_stored(file: &File, placed: &PlacedBlock) -> Result<(RamBlock, StoredPages), FileError> {
    let layout = &placed.layout;
    let (offset, len) = (layout.header().pages_offset, layout.used_length());
    let stored = StoredPages::read(file, layout)?;
    let size = usize::try_from(len).unwrap_or(usize::MAX);
    let failed = |cause| FileError::At {
        doing: "mapping",
        offset,
        len: size,
        cause,
    };
    let end = file.metadata().map_err(failed)?.len();
    if layout.end() > end {
        return Err(FileError::Short {
            what: "pages",
            offset,
            len,
            end,
        });
    }
    let mapping = sys::map_private(file, offset, size).map_err(failed)?;
    let page_size = u32::try_from(layout.header().page_size).unwrap_or(u32::MAX);
    let block = RamBlock::from_mmap(&placed.name, mapping, page_size)?;
    Ok((block, stored))
}
