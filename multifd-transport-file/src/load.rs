//! From a mapped-ram file into memory.

use crate::direct::{Bounce, DirectIo, PageFile};
use crate::{FileError, PlacedBlock, StoredPages};
use multifd_core::sync::lock;
use multifd_core::{RamBlock, RamMap, RamWriter, Run};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Guest bytes one thread takes on at a time.
const STRIDE: u64 = 4 << 20;

/// Bytes the kernel is told of at a time: some devices take no more of a hint.
const HINT: u64 = 256 << 10;

/// What [`load`] has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Loaded {
    /// Pages read from the file.
    pub pages: u64,
    /// Pages that are zero, and not in the file.
    pub zero_pages: u64,
}

/// One thread's piece of a block.
struct Piece<'a> {
    block: &'a Arc<RamBlock>,
    /// Where page 0 lies in the file.
    pages_offset: u64,
    /// Which pages are stored; all of them without it.
    pages: Option<&'a StoredPages>,
    start: u64,
    end: u64,
}

impl Piece<'_> {
    /// Runs of pages that are in the file.
    fn stored(&self) -> impl Iterator<Item = Run> {
        let page_size = u64::from(self.block.page_size());
        let range = self.start / page_size..self.end / page_size;
        let all = self.pages.is_none().then(|| range.clone());
        let some = self.pages.map(|pages| pages.runs(range));
        all.into_iter()
            .chain(some.into_iter().flatten())
            .map(move |run| Run {
                offset: run.start * page_size,
                len: usize::try_from((run.end - run.start) * page_size).unwrap_or(usize::MAX),
            })
    }

    /// Runs of pages that are not.
    fn absent(&self) -> impl Iterator<Item = Run> {
        gaps(self.stored(), self.start..self.end)
    }

    /// Has the kernel begin to read what is stored. It would not by itself: to it, several threads'
    /// reads are random ones.
    fn read_ahead(&self, file: &PageFile) {
        for run in self.stored() {
            let (at, end) = (self.pages_offset + run.offset, run.len as u64);
            for start in (0..end).step_by(HINT as usize) {
                file.will_need(at + start, HINT.min(end - start) as usize);
            }
        }
    }

    fn load(
        &self,
        file: &PageFile,
        bounce: &mut Bounce,
        writer: &mut dyn RamWriter,
    ) -> Result<Loaded, FileError> {
        let page_size = u64::from(self.block.page_size());
        let mut loaded = Loaded::default();
        writer.prepare(self.block, &mut self.stored());
        for run in self.stored() {
            let at = self.pages_offset + run.offset;
            let region = self.block.region(run.offset, run.len)?;
            let read = file
                .read_full(region, at, bounce)
                .map_err(|cause| FileError::At {
                    doing: "reading",
                    offset: at,
                    len: run.len,
                    cause,
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
        for run in self.absent() {
            for offset in (run.offset..run.offset + run.len as u64).step_by(page_size as usize) {
                writer.clear(self.block, offset)?;
            }
            loaded.zero_pages += run.len as u64 / page_size;
        }
        Ok(loaded)
    }
}

/// Makes what prepares memory for each thread that reads into it, such as a writer of
/// `multifd-residency`, or a [`PlainWriter`](multifd_core::memory::PlainWriter).
pub type MakeWriter<'a> = &'a dyn Fn() -> Box<dyn RamWriter>;

/// Loads all blocks into the RAM blocks of the same names, with `threads` threads reading at once.
/// What a RAM block held before is gone. With direct I/O, pages bypass the page cache wherever that
/// is possible.
///
/// # Errors
/// [`FileError`]; what the RAM blocks hold then is unspecified.
pub fn load(
    file: &File,
    blocks: &[PlacedBlock],
    ram: &RamMap,
    threads: usize,
    direct: DirectIo,
    writer: MakeWriter<'_>,
) -> Result<Loaded, FileError> {
    let mut stored = Vec::with_capacity(blocks.len());
    for placed in blocks {
        stored.push(StoredPages::read(file, &placed.layout)?);
    }
    let mut pieces = Vec::new();
    for (placed, stored) in blocks.iter().zip(&stored) {
        let layout = &placed.layout;
        let len = layout.used_length();
        let block = ram.find(&placed.name).filter(|block| {
            block.len() == len && u64::from(block.page_size()) == layout.header().page_size
        });
        let block = block.ok_or_else(|| FileError::NoBlock {
            block: placed.name.clone(),
            len,
        })?;
        cut(
            block,
            layout.header().pages_offset,
            Some(stored),
            &mut pieces,
        );
    }
    run_pieces(&page_file(file, direct)?, &pieces, threads.max(1), writer)
}

/// Loads a file that is the block's memory and nothing else, with `threads` threads reading at
/// once.
///
/// # Errors
/// [`FileError`], as when the file is shorter than the block; what the block holds then is
/// unspecified.
pub fn load_raw(
    file: &File,
    block: &Arc<RamBlock>,
    threads: usize,
    writer: MakeWriter<'_>,
) -> Result<Loaded, FileError> {
    let mut pieces = Vec::new();
    cut(block, 0, None, &mut pieces);
    run_pieces(
        &page_file(file, DirectIo::Off)?,
        &pieces,
        threads.max(1),
        writer,
    )
}

fn cut<'a>(
    block: &'a Arc<RamBlock>,
    pages_offset: u64,
    pages: Option<&'a StoredPages>,
    pieces: &mut Vec<Piece<'a>>,
) {
    let mut start = 0;
    while start < block.len() {
        let end = (start + STRIDE).min(block.len());
        pieces.push(Piece {
            block,
            pages_offset,
            pages,
            start,
            end,
        });
        start = end;
    }
}

/// A handle of our own, to read from by offset.
fn page_file(file: &File, direct: DirectIo) -> Result<PageFile, FileError> {
    let own = file.try_clone().map_err(|cause| FileError::At {
        doing: "opening the file again to read",
        offset: 0,
        len: 0,
        cause,
    })?;
    PageFile::new(own, direct, false)
}

fn run_pieces(
    file: &PageFile,
    pieces: &[Piece<'_>],
    threads: usize,
    writer: MakeWriter<'_>,
) -> Result<Loaded, FileError> {
    let next = AtomicUsize::new(0);
    let total: Mutex<Result<Loaded, FileError>> = Mutex::new(Ok(Loaded::default()));
    let finish = |outcome: Result<Loaded, FileError>| {
        let mut total = lock(&total);
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
    let threads = threads.min(pieces.len());
    let writers: Vec<_> = (0..threads).map(|_| writer()).collect();
    let next = &next;
    std::thread::scope(|scope| {
        for mut writer in writers {
            scope.spawn(move || {
                let mut bounce = Bounce::default();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(piece) = pieces.get(at) else { break };
                    if file.reads_ahead() {
                        // The first ones have nobody before them to do it.
                        let first = (at < threads).then_some(piece);
                        let soon = pieces.get(at.saturating_add(threads));
                        first
                            .into_iter()
                            .chain(soon)
                            .for_each(|piece| piece.read_ahead(file));
                    }
                    if !finish(piece.load(file, &mut bounce, writer.as_mut())) {
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

/// What lies between runs of a range.
pub(crate) fn gaps(
    runs: impl Iterator<Item = Run>,
    range: Range<u64>,
) -> impl Iterator<Item = Run> {
    let end = Run {
        offset: range.end,
        len: 0,
    };
    let mut at = range.start;
    runs.chain([end]).filter_map(move |run| {
        let gap = Run {
            offset: at,
            len: usize::try_from(run.offset - at).unwrap_or(usize::MAX),
        };
        at = run.offset + run.len as u64;
        (gap.len > 0).then_some(gap)
    })
}
