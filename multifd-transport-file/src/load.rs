//! From a mapped-ram file into memory.

use crate::{FileError, PlacedBlock, sys};
use multifd_core::{RamBlock, RamMap, runs};
use multifd_packet::{Bitmap, MappedRamLayout};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Guest bytes one thread takes on at a time.
const STRIDE: u64 = 4 << 20;

/// What [`load`] has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loaded {
    /// Pages read from the file.
    pub pages: u64,
    /// Pages that are zero, and not in the file.
    pub zero_pages: u64,
}

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

/// One thread's piece of a block.
struct Piece<'a> {
    block: &'a RamBlock,
    /// Where page 0 lies in the file.
    pages_offset: u64,
    /// Which pages are stored; all of them without it.
    bitmap: Option<Bitmap<'a>>,
    start: u64,
    end: u64,
}

impl Piece<'_> {
    fn load(&self, file: &File) -> Result<Loaded, FileError> {
        let page_size = u64::from(self.block.page_size());
        let offsets = || (self.start..self.end).step_by(self.block.page_size() as usize);
        let stored = |offset: &u64| {
            self.bitmap
                .is_none_or(|bitmap| bitmap.contains(offset / page_size))
        };
        let mut loaded = Loaded::default();
        for run in runs(offsets().filter(stored), self.block.page_size()) {
            let at = self.pages_offset + run.offset;
            let region = self.block.region(run.offset, run.len)?;
            let read = sys::read_full_at(file, region, at).map_err(|source| FileError::At {
                doing: "reading",
                offset: at,
                len: run.len,
                source,
            })?;
            if read < run.len {
                return Err(FileError::Short {
                    what: "pages",
                    offset: at,
                    len: run.len as u64,
                    end: at + read as u64,
                });
            }
            loaded.pages += run.len as u64 / page_size;
        }
        for run in runs(offsets().filter(|offset| !stored(offset)), self.block.page_size()) {
            self.block.region(run.offset, run.len)?.clear();
            loaded.zero_pages += run.len as u64 / page_size;
        }
        Ok(loaded)
    }
}

/// Loads all blocks into the RAM blocks of the same names, with `threads` threads reading at once. What a RAM block held
/// before is gone.
///
/// # Errors
/// [`FileError`]; what the RAM blocks hold then is unspecified.
pub fn load(file: &File, blocks: &[PlacedBlock], ram: &RamMap, threads: usize) -> Result<Loaded, FileError> {
    let mut bitmaps = Vec::with_capacity(blocks.len());
    for placed in blocks {
        bitmaps.push(read_bitmap(file, &placed.layout)?);
    }
    let mut pieces = Vec::new();
    for (placed, bitmap) in blocks.iter().zip(&bitmaps) {
        let layout = &placed.layout;
        let len = layout.used_length();
        let block = ram
            .find(&placed.name)
            .filter(|block| block.len() == len && u64::from(block.page_size()) == layout.header().page_size);
        let block = block.ok_or_else(|| FileError::NoBlock {
            block: placed.name.clone(),
            len,
        })?;
        cut(
            block,
            layout.header().pages_offset,
            Some(Bitmap::new(bitmap)),
            &mut pieces,
        );
    }
    run_pieces(file, &pieces, threads.max(1))
}

/// Loads a file that is the block's memory and nothing else, with `threads` threads reading at once.
///
/// # Errors
/// [`FileError`], as when the file is shorter than the block; what the block holds then is unspecified.
pub fn load_raw(file: &File, block: &RamBlock, threads: usize) -> Result<Loaded, FileError> {
    let mut pieces = Vec::new();
    cut(block, 0, None, &mut pieces);
    run_pieces(file, &pieces, threads.max(1))
}

fn cut<'a>(block: &'a RamBlock, pages_offset: u64, bitmap: Option<Bitmap<'a>>, pieces: &mut Vec<Piece<'a>>) {
    let mut start = 0;
    while start < block.len() {
        let end = (start + STRIDE).min(block.len());
        pieces.push(Piece {
            block,
            pages_offset,
            bitmap,
            start,
            end,
        });
        start = end;
    }
}

fn run_pieces(file: &File, pieces: &[Piece<'_>], threads: usize) -> Result<Loaded, FileError> {
    let next = AtomicUsize::new(0);
    let total: Mutex<Result<Loaded, FileError>> = Mutex::new(Ok(Loaded::default()));
    let finish = |outcome: Result<Loaded, FileError>| {
        let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (&mut *total, outcome) {
            (Ok(sum), Ok(part)) => {
                sum.pages += part.pages;
                sum.zero_pages += part.zero_pages;
            }
            // The first error is the one to know.
            (Err(_), _) => {}
            (ok, Err(error)) => *ok = Err(error),
        }
        total.is_ok()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(pieces.len()) {
            scope.spawn(|| {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !finish(piece.load(file)) {
                        next.store(pieces.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    total
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
