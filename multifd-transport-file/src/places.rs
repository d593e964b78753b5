//! A file with a fixed place for every page, and which of them are stored.

use crate::bitmap::SharedBitmap;
#[cfg(feature = "digest")]
use crate::digest::RunningSums;
use crate::direct::{Bounce, DirectIo, PageFile};
use crate::{FileError, PlacedBlock, sys};
use multifd_core::{Iov, Run};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The pages that a [`FileTransport`](crate::FileTransport) or a
/// [`FileDestination`](crate::FileDestination) has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Written {
    /// Pages stored, over all blocks.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A RAM block's place, and which of its pages are stored.
pub(crate) struct Block {
    placed: PlacedBlock,
    bitmap: SharedBitmap,
    #[cfg(feature = "digest")]
    sums: Option<RunningSums>,
}

impl Block {
    /// The block and its place.
    pub(crate) fn placed(&self) -> &PlacedBlock {
        &self.placed
    }

    /// The block's name.
    pub(crate) fn name(&self) -> &str {
        &self.placed.name
    }

    /// Bytes of a page.
    pub(crate) fn page_size(&self) -> u64 {
        self.placed.layout.header().page_size
    }

    /// Bytes of the block.
    pub(crate) fn len(&self) -> u64 {
        self.placed.layout.used_length()
    }

    fn pages(&self, run: Run) -> Range<u64> {
        let first = run.offset / self.page_size();
        first..first + run.len as u64 / self.page_size()
    }

    fn at(&self, run: Run) -> u64 {
        self.placed.layout.header().pages_offset + run.offset
    }
}

pub(crate) struct FixedPlaces {
    file: PageFile,
    blocks: Vec<Block>,
}

impl FixedPlaces {
    pub(crate) fn new(
        file: File,
        blocks: Vec<PlacedBlock>,
        direct: DirectIo,
    ) -> Result<Self, FileError> {
        let blocks = blocks.into_iter().map(|placed| Block {
            bitmap: SharedBitmap::new(placed.layout.pages()),
            placed,
            #[cfg(feature = "digest")]
            sums: None,
        });
        Ok(Self {
            file: PageFile::new(file, direct, true)?,
            blocks: blocks.collect(),
        })
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Block> {
        self.blocks.iter().find(|block| block.placed.name == name)
    }

    /// Keeps checksums from now on, before anything has been stored.
    #[cfg(feature = "digest")]
    pub(crate) fn keep_sums(&mut self) {
        for block in &mut self.blocks {
            block.sums = Some(RunningSums::new(block.placed.layout.used_length()));
        }
    }

    /// The checksums of all blocks, if they were kept.
    #[cfg(feature = "digest")]
    pub(crate) fn sums(&self) -> Option<Vec<crate::BlockDigest>> {
        let of = |block: &Block| {
            Some(crate::BlockDigest {
                name: block.placed.name.clone(),
                used_length: block.len(),
                sums: block.sums.as_ref()?.sums(),
            })
        };
        self.blocks.iter().map(of).collect()
    }

    /// Takes what is stored of a run out of the checksums.
    #[cfg(feature = "digest")]
    fn forget(&self, block: &Block, run: Run, bounce: &mut Bounce) -> Result<(), FileError> {
        let Some(sums) = &block.sums else {
            return Ok(());
        };
        for pages in block.bitmap.runs(block.pages(run)) {
            let page = block.page_size();
            let stored = Run {
                offset: pages.start * page,
                len: usize::try_from((pages.end - pages.start) * page).unwrap_or(usize::MAX),
            };
            let before = bounce.before(stored.len);
            let at = block.at(stored);
            let read = self.file.buffered.read_exact_at(before, at);
            read.map_err(|cause| FileError::At {
                doing: "reading what was stored before,",
                offset: at,
                len: stored.len,
                cause,
            })?;
            sums.toggle(stored.offset, Iov::from(&*before));
        }
        Ok(())
    }

    /// Writes a run's contents to its place.
    pub(crate) fn store(
        &self,
        block: &Block,
        run: Run,
        contents: Iov<'_>,
        bounce: &mut Bounce,
    ) -> Result<(), FileError> {
        #[cfg(feature = "digest")]
        if let Some(sums) = &block.sums {
            self.forget(block, run, bounce)?;
            sums.toggle(run.offset, contents);
        }
        self.write(contents, block.at(run), bounce)?;
        block.bitmap.set(block.pages(run));
        Ok(())
    }

    /// Makes a run zero. Most zero pages were never stored; one that was has bytes in the file,
    /// which must go.
    pub(crate) fn clear(
        &self,
        block: &Block,
        run: Run,
        bounce: &mut Bounce,
    ) -> Result<(), FileError> {
        #[cfg(feature = "digest")]
        self.forget(block, run, bounce)?;
        if !block.bitmap.clear(block.pages(run)) {
            return Ok(());
        }
        let (at, len) = (block.at(run), run.len as u64);
        let punched =
            sys::punch_hole(&self.file.buffered, at, len).map_err(|cause| FileError::At {
                doing: "punching out",
                offset: at,
                len: run.len,
                cause,
            })?;
        if !punched {
            self.write(Iov::from(vec![0; run.len].as_slice()), at, bounce)?;
        }
        Ok(())
    }

    fn write(&self, contents: Iov<'_>, at: u64, bounce: &mut Bounce) -> Result<(), FileError> {
        let written = self.file.write_all(contents, at, bounce);
        written.map_err(|cause| FileError::At {
            doing: "writing",
            offset: at,
            len: contents.len(),
            cause,
        })
    }

    pub(crate) fn preallocate(&self) -> Result<(), FileError> {
        for Block { placed, .. } in &self.blocks {
            let (offset, len) = (
                placed.layout.header().pages_offset,
                placed.layout.used_length(),
            );
            sys::allocate(&self.file.buffered, offset, len).map_err(|cause| FileError::At {
                doing: "setting aside",
                offset,
                len: usize::try_from(len).unwrap_or(usize::MAX),
                cause,
            })?;
        }
        Ok(())
    }

    /// Writes the bitmaps.
    pub(crate) fn finish(&self) -> Result<Written, FileError> {
        let mut written = Written::default();
        for Block { placed, bitmap, .. } in &self.blocks {
            let header = placed.layout.header();
            let bytes = bitmap.to_bytes();
            self.file
                .buffered
                .write_all_at(&bytes, header.bitmap_offset)
                .map_err(|cause| FileError::At {
                    doing: "writing the bitmap,",
                    offset: header.bitmap_offset,
                    len: bytes.len(),
                    cause,
                })?;
            let pages = multifd_packet::Bitmap::new(&bytes).count();
            written.pages += pages;
            written.bytes += pages * header.page_size;
        }
        Ok(written)
    }
}
