//! Channels to fixed offsets: each page goes where it belongs in the file.

use crate::direct::{Bounce, DirectIo};
use crate::places::{Block, FixedPlaces, Written};
use crate::{FileError, PlacedBlock};
use multifd_core::{
    Capabilities, ChannelError, Iov, Message, PageBatch, Placement, SendChannel, Transport,
    Unblock, WriteFlags,
};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes pages to their places in one file, over any number of channels. Through the page cache
/// only one of them is worth having busy: the kernel lets one thread at a time write to a file, and
/// the others spin.
///
/// Headers, SYNC and init packets have no place in a file and are not written.
pub struct FileTransport {
    places: Arc<FixedPlaces>,
    stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for FileTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTransport").finish_non_exhaustive()
    }
}

impl FileTransport {
    /// A transport to `file`, in which `blocks` says where each block's pages go.
    ///
    /// With direct I/O, page data bypasses the page cache wherever it is aligned as the file system
    /// asks. Memory that is not aligned is copied to a buffer that is; places in the file that are
    /// not go through the page cache. Bitmaps always do.
    ///
    /// # Errors
    /// [`FileError::DirectRefused`] if direct I/O was required and the file system does not do it.
    pub fn new(file: File, blocks: Vec<PlacedBlock>, direct: DirectIo) -> Result<Self, FileError> {
        Ok(Self {
            places: Arc::new(FixedPlaces::new(file, blocks, direct)?),
            stopped: Arc::default(),
        })
    }

    /// Whether page data bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        self.places.is_direct()
    }

    /// The RAM blocks and their places.
    pub fn blocks(&self) -> impl Iterator<Item = &PlacedBlock> {
        self.places.blocks().iter().map(Block::placed)
    }

    /// Reserves disk space for all pages, so that it cannot run out later. Zero pages take space
    /// then, too.
    ///
    /// # Errors
    /// [`FileError::At`], as when the disk is too full or the file system cannot do it.
    pub fn preallocate(&self) -> Result<(), FileError> {
        self.places.preallocate()
    }

    /// Writes the bitmaps: call it when the sender has finished.
    ///
    /// # Errors
    /// [`FileError::At`], the system's reason.
    pub fn finish(&self) -> Result<Written, FileError> {
        self.places.finish()
    }
}

impl Transport for FileTransport {
    fn open(&self, _id: u8) -> Result<Box<dyn SendChannel>, ChannelError> {
        Ok(Box::new(FileChannel {
            places: Arc::clone(&self.places),
            stopped: Arc::clone(&self.stopped),
            bounce: Bounce::default(),
        }))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .placement(Placement::Fixed)
            .useful_channels((!self.is_direct()).then_some(NonZeroUsize::MIN))
    }
}

struct FileChannel {
    places: Arc<FixedPlaces>,
    stopped: Arc<AtomicBool>,
    bounce: Bounce,
}

impl FileChannel {
    fn send_pages(&mut self, batch: &PageBatch, payload: &[Iov<'_>]) -> Result<(), ChannelError> {
        let ram = batch.block();
        let name = ram.name();
        let block = self.places.find(name).ok_or_else(|| {
            ChannelError::Misconfigured(format!("RAM block {name:?} has no place in the file"))
        })?;
        let (page_size, len) = (block.page_size(), block.len());
        if u64::from(ram.page_size()) != page_size || ram.len() != len {
            return Err(ChannelError::Misconfigured(format!(
                "RAM block {name:?} has {:#x} bytes in pages of {:#x}, its place in the file {len:#x} in pages of {page_size:#x}",
                ram.len(),
                ram.page_size(),
            )));
        }
        let mut payload = payload.iter();
        for run in batch.normal_runs() {
            let iov = payload
                .next()
                .filter(|iov| iov.len() == run.len)
                .ok_or_else(|| {
                    ChannelError::Unsupported(
                        "compressed pages have no fixed place in a file: use the method none"
                            .into(),
                    )
                })?;
            self.places.store(block, run, *iov, &mut self.bounce)?;
        }
        for run in batch.zero_runs() {
            self.places.clear(block, run, &mut self.bounce)?;
        }
        Ok(())
    }
}

impl From<FileError> for ChannelError {
    fn from(error: FileError) -> Self {
        let text = error.to_string();
        match error {
            FileError::At { cause, .. } | FileError::Path { cause, .. } => {
                io::Error::new(cause.kind(), text).into()
            }
            FileError::DirectRefused { .. } => Self::Unsupported(text),
            _ => Self::Misconfigured(text),
        }
    }
}

impl SendChannel for FileChannel {
    fn send(&mut self, message: &Message<'_>, _flags: WriteFlags) -> Result<(), ChannelError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(ChannelError::Stopped);
        }
        match message.pages() {
            Some(batch) => self.send_pages(batch, message.payload()),
            None if message.payload().is_empty() => Ok(()),
            None => Err(ChannelError::Unsupported(
                "device state has no place in a mapped-ram file".into(),
            )),
        }
    }

    fn unblock_handle(&self) -> Result<Box<dyn Unblock>, ChannelError> {
        Ok(Box::new(Handle(Arc::clone(&self.stopped))))
    }
}

/// A write to a file cannot be interrupted; the next one is refused.
struct Handle(Arc<AtomicBool>);

impl Unblock for Handle {
    fn unblock(&self) {
        self.0.store(true, Ordering::Release);
    }
}
