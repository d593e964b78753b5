//! Channels to fixed offsets: what `prepare()` made goes where its pages belong.

use crate::bitmap::SharedBitmap;
use crate::direct::{Bounce, DirectIo, PageFile};
use crate::{FileError, sys};
use multifd_core::{
    ChannelError, Iov, Outgoing, PageBatch, Run, SendChannel, Transport, Unblock, WriteFlags,
};
use multifd_packet::MappedRamLayout;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A RAM block and where its bitmap and pages lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBlock {
    /// The block's name.
    pub name: String,
    /// Its place.
    pub layout: MappedRamLayout,
}

/// What a [`FileTransport`] has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Pages stored, over all blocks.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

struct Block {
    placed: PlacedBlock,
    bitmap: SharedBitmap,
}

struct Shared {
    file: PageFile,
    blocks: Vec<Block>,
    stopped: AtomicBool,
}

/// Writes pages to their places in one file, over any number of channels; through the page cache only one of them is busy at a time.
///
/// Headers, SYNC and init packets have no place in a file and are not written. The method must be
/// [`Plain`](multifd_core::Plain): a fixed place has room for just the page.
pub struct FileTransport {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FileTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTransport")
            .field("blocks", &self.shared.blocks.len())
            .finish_non_exhaustive()
    }
}

impl FileTransport {
    /// A transport to `file`, whose layout says where each block's pages go.
    ///
    /// With direct I/O, page data goes past the page cache wherever it is aligned as the file system asks; memory that is
    /// not is copied to a buffer that is, and places in the file that are not go through the page cache. Bitmaps always do.
    ///
    /// # Errors
    /// [`FileError::DirectRefused`] if direct I/O is a must and the file system does not do it.
    pub fn new(file: File, blocks: Vec<PlacedBlock>, direct: DirectIo) -> Result<Self, FileError> {
        let blocks = blocks.into_iter().map(|placed| Block {
            bitmap: SharedBitmap::new(placed.layout.pages()),
            placed,
        });
        let shared = Shared {
            file: PageFile::new(file, direct, true)?,
            blocks: blocks.collect(),
            stopped: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Whether page data goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.file.is_direct()
    }

    /// Sets room for all pages aside on the disk, so that it can not run out later. Zero pages take room then, too.
    ///
    /// # Errors
    /// [`FileError::At`], as when the disk is too full or the file system can not do it.
    pub fn preallocate(&self) -> Result<(), FileError> {
        for Block { placed, .. } in &self.shared.blocks {
            let (offset, len) = (placed.layout.header().pages_offset, placed.layout.used_length());
            sys::allocate(&self.shared.file.buffered, offset, len).map_err(|source| FileError::At {
                doing: "setting aside",
                offset,
                len: usize::try_from(len).unwrap_or(usize::MAX),
                source,
            })?;
        }
        Ok(())
    }

    /// Writes the bitmaps: call it when the sender has finished.
    ///
    /// # Errors
    /// [`FileError::At`], the system's reason.
    pub fn finish(&self) -> Result<Written, FileError> {
        let mut written = Written::default();
        for Block { placed, bitmap } in &self.shared.blocks {
            let header = placed.layout.header();
            let bytes = bitmap.to_bytes();
            self.shared
                .file
                .buffered
                .write_all_at(&bytes, header.bitmap_offset)
                .map_err(|source| FileError::At {
                    doing: "writing the bitmap,",
                    offset: header.bitmap_offset,
                    len: bytes.len(),
                    source,
                })?;
            let pages = multifd_packet::Bitmap::new(&bytes).count();
            written.pages += pages;
            written.bytes += pages * header.page_size;
        }
        Ok(written)
    }
}

impl Transport for FileTransport {
    fn open(&self, _id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(FileChannel {
            shared: Arc::clone(&self.shared),
            bounce: Bounce::default(),
        }))
    }
}

struct FileChannel {
    shared: Arc<Shared>,
    bounce: Bounce,
}

impl FileChannel {
    fn send_pages(&mut self, batch: &PageBatch, payload: &[Iov<'_>]) -> Result<(), ChannelError> {
        let Self { shared, bounce } = self;
        let name = batch.block().name();
        let Block { placed, bitmap } = shared
            .blocks
            .iter()
            .find(|block| block.placed.name == name)
            .ok_or_else(|| ChannelError::Peer(format!("RAM block {name:?} has no place in the file")))?;
        let header = placed.layout.header();
        let ram = batch.block();
        if u64::from(ram.page_size()) != header.page_size || ram.len() != placed.layout.used_length() {
            return Err(ChannelError::Peer(format!(
                "RAM block {name:?} has {:#x} bytes in pages of {:#x}, its place in the file {:#x} in pages of {:#x}",
                ram.len(),
                ram.page_size(),
                placed.layout.used_length(),
                header.page_size
            )));
        }
        let pages = |run: &Run| {
            let first = run.offset / header.page_size;
            first..first + run.len as u64 / header.page_size
        };
        let mut write = |iov: Iov<'_>, at: u64| {
            shared.file.write_all(iov, at, bounce).map_err(|source| {
                let message = format!(
                    "writing {} bytes at offset {at:#x} of the file: {source}",
                    iov.len()
                );
                ChannelError::from(io::Error::new(source.kind(), message))
            })
        };
        let mut payload = payload.iter();
        for run in batch.normal_runs() {
            let iov = payload.next().filter(|iov| iov.len() == run.len).ok_or_else(|| {
                ChannelError::Peer(
                    "compressed pages have no fixed place in a file: use the method none".into(),
                )
            })?;
            write(*iov, header.pages_offset + run.offset)?;
            bitmap.set(pages(&run));
        }
        for run in batch.zero_runs() {
            // Most zero pages were never stored; one that was has bytes in the file that must go.
            if bitmap.clear(pages(&run)) {
                let at = header.pages_offset + run.offset;
                if !sys::punch_hole(&shared.file.buffered, at, run.len as u64)? {
                    write(Iov::from(vec![0; run.len].as_slice()), at)?;
                }
            }
        }
        Ok(())
    }
}

impl SendChannel for FileChannel {
    fn send(&mut self, message: &Outgoing<'_>, _flags: WriteFlags) -> Result<(), ChannelError> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        match message.pages() {
            Some(batch) => self.send_pages(batch, message.payload()),
            None if message.payload().is_empty() => Ok(()),
            None => Err(ChannelError::Peer(
                "device state has no place in a mapped-ram file".into(),
            )),
        }
    }

    /// Through the page cache the kernel lets only one thread at a time write to a file, and the others spin.
    fn busy_at_once(&self) -> Option<NonZeroUsize> {
        (!self.shared.file.is_direct()).then_some(NonZeroUsize::MIN)
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Handle(Arc::clone(&self.shared))))
    }
}

/// A write to a file can not be interrupted; the next one is refused.
struct Handle(Arc<Shared>);

impl Unblock for Handle {
    fn unblock(&self) {
        self.0.stopped.store(true, Ordering::Release);
    }
}
