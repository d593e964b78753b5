//! A file as the destination of a receiver: pages go from their channel to their place in it.

use crate::direct::{Bounce, DirectIo};
use crate::places::{Block, FixedPlaces, Written};
use crate::{FileError, PlacedBlock};
use multifd_core::packet::{Geometry, RamPacket};
use multifd_core::{
    BlockError, Destination, Error, Fill, IncomingPages, Iov, Place, RamBlock, Run,
};
use std::fs::File;
use std::sync::Arc;

/// Receives pages into their places in one file, in every round. Memory is one packet a channel,
/// whatever the size of the guest.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (file, blocks) = (std::fs::File::create("vm.mapped")?, Vec::new());
/// use multifd_core::{Receiver, ReceiverConfig};
/// use multifd_transport_file::{DirectIo, FileDestination};
///
/// let destination = FileDestination::new(file, blocks, DirectIo::Off)?;
/// let receiver = Receiver::new(destination.clone(), ReceiverConfig::default())?;
/// // ... attach channels, join rounds, and then:
/// receiver.finish()?;
/// let written = destination.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FileDestination {
    places: Arc<FixedPlaces>,
}

impl std::fmt::Debug for FileDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileDestination").finish_non_exhaustive()
    }
}

impl FileDestination {
    /// A destination in `file`, in which `blocks` says where each block's pages go. Direct I/O is
    /// as for a [`FileTransport`](crate::FileTransport).
    ///
    /// # Errors
    /// [`FileError::DirectRefused`] if direct I/O was required and the file system does not do it;
    /// [`FileError::MixedPageSizes`], as packets have pages of one size.
    pub fn new(file: File, blocks: Vec<PlacedBlock>, direct: DirectIo) -> Result<Self, FileError> {
        let size = |block: &PlacedBlock| block.layout.header().page_size;
        let first = blocks.first().map_or(0, size);
        if let Some(other) = blocks.iter().map(size).find(|&other| other != first) {
            return Err(FileError::MixedPageSizes { first, other });
        }
        Ok(Self {
            places: Arc::new(FixedPlaces::new(file, blocks, direct)?),
        })
    }

    /// Also keeps checksums of what it stores, as pages come: reading the file again for them is
    /// not needed. Call it before anything is received. A page that comes a second time is read
    /// back first.
    ///
    /// # Errors
    /// [`FileError::Companion`] if the destination is in use already.
    #[cfg(feature = "digest")]
    pub fn with_digest(mut self) -> Result<Self, FileError> {
        let places = Arc::get_mut(&mut self.places);
        let unused = || FileError::Companion("pages are being received without checksums".into());
        places.ok_or_else(unused)?.keep_sums();
        Ok(self)
    }

    /// The checksums of all blocks, if they were kept.
    #[cfg(feature = "digest")]
    pub fn digest(&self) -> Option<Vec<crate::BlockDigest>> {
        self.places.sums()
    }

    /// A way to put pages in their places that came by no channel, such as those of a main
    /// connection.
    pub fn writer(&self) -> PageWriter {
        PageWriter {
            places: Arc::clone(&self.places),
            bounce: Bounce::default(),
            waiting: Vec::new(),
            at: None,
        }
    }

    /// Reserves disk space for all pages, so that it cannot run out later. Zero pages take space
    /// then, too.
    ///
    /// # Errors
    /// [`FileError::At`], as when the disk is too full or the file system cannot do it.
    pub fn preallocate(&self) -> Result<(), FileError> {
        self.places.preallocate()
    }

    /// Writes the bitmaps: call it when the receiver has finished.
    ///
    /// # Errors
    /// [`FileError::At`], the system's reason.
    pub fn finish(&self) -> Result<Written, FileError> {
        self.places.finish()
    }
}

/// Bytes of adjacent pages that wait to be written at once.
const WAITING: usize = 1 << 20;

/// Puts pages in their places one by one. Adjacent ones are written together, at the latest by
/// [`PageWriter::flush`].
pub struct PageWriter {
    places: Arc<FixedPlaces>,
    bounce: Bounce,
    waiting: Vec<u8>,
    /// The block's number, and where in it the first byte that waits belongs.
    at: Option<(usize, u64)>,
}

impl std::fmt::Debug for PageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageWriter")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl PageWriter {
    /// Puts the page at `offset` (bytes) of the block of number `block` in its place; without
    /// contents it is zero.
    ///
    /// # Errors
    /// [`FileError::Block`] for a page that does not lie in the block, or contents that are no
    /// page; [`FileError::At`].
    pub fn put(
        &mut self,
        block: usize,
        offset: u64,
        contents: Option<&[u8]>,
    ) -> Result<(), FileError> {
        let places = Arc::clone(&self.places);
        let target = places.blocks().get(block);
        let outside = || BlockError::Outside {
            block: target.map_or("", |block| block.name()).into(),
            offset,
            len: contents.map_or(0, <[u8]>::len) as u64,
            block_len: target.map_or(0, Block::len),
        };
        let target = target.ok_or_else(outside)?;
        let page = target.page_size();
        let fits = offset.is_multiple_of(page)
            && offset
                .checked_add(page)
                .is_some_and(|end| end <= target.len())
            && contents.is_none_or(|contents| contents.len() as u64 == page);
        if !fits {
            return Err(outside().into());
        }
        let next = self
            .at
            .map(|(block, at)| (block, at + self.waiting.len() as u64));
        let Some(contents) = contents else {
            self.flush()?;
            let len = usize::try_from(page).unwrap_or(usize::MAX);
            return places.clear(target, Run { offset, len }, &mut self.bounce);
        };
        if next != Some((block, offset)) || self.waiting.len() >= WAITING {
            self.flush()?;
            self.at = Some((block, offset));
        }
        self.waiting.extend_from_slice(contents);
        Ok(())
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// [`FileError::At`].
    pub fn flush(&mut self) -> Result<(), FileError> {
        if let Some((block, offset)) = self.at.take()
            && let Some(block) = self.places.blocks().get(block)
        {
            let len = self.waiting.len();
            let contents = Iov::from(self.waiting.as_slice());
            self.places
                .store(block, Run { offset, len }, contents, &mut self.bounce)?;
        }
        self.waiting.clear();
        Ok(())
    }
}

impl Destination for FileDestination {
    fn start(&self) -> Result<Geometry, Error> {
        let first = self.places.blocks().first();
        let size = first.map_or(4096, Block::page_size);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Ok(Geometry::new(size).map_err(BlockError::from)?)
    }

    fn place(&self, channel: u8) -> Result<Box<dyn Place>, Error> {
        let geometry = self.start()?;
        let len = u64::from(geometry.page_size()) * u64::from(geometry.pages_per_packet());
        Ok(Box::new(InFile {
            places: Arc::clone(&self.places),
            staging: Arc::new(RamBlock::anonymous("staging", len, geometry.page_size())?),
            bounce: Bounce::default(),
            channel,
        }))
    }
}

/// One channel's way into the file: memory for one packet.
struct InFile {
    places: Arc<FixedPlaces>,
    staging: Arc<RamBlock>,
    bounce: Bounce,
    channel: u8,
}

impl Place for InFile {
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), Error> {
        let Self {
            places,
            staging,
            bounce,
            channel,
        } = self;
        let channel = *channel;
        let name = packet.fields().block;
        let block = places.find(name).ok_or_else(|| Error::UnknownBlock {
            channel,
            block: name.into(),
        })?;
        let (page, len) = (block.page_size(), block.len());
        for offset in packet.normal().iter().chain(packet.zero().iter()) {
            if offset.checked_add(page).is_none_or(|end| end > len) {
                let cause = BlockError::Outside {
                    block: name.into(),
                    offset,
                    len: page,
                    block_len: len,
                };
                return Err(Error::Place { channel, cause });
            }
        }
        fill(&IncomingPages::staged(staging, packet)?)?;
        let size = staging.page_size();
        let failed = |error: FileError| Error::Destination {
            channel,
            block: name.into(),
            cause: Arc::new(error),
        };
        let mut staged = 0;
        for run in multifd_core::runs(packet.normal().iter(), size) {
            let contents = Iov::from(staging.region(staged, run.len)?);
            places.store(block, run, contents, bounce).map_err(failed)?;
            staged += run.len as u64;
        }
        for run in multifd_core::runs(packet.zero().iter(), size) {
            let run: Run = run;
            places.clear(block, run, bounce).map_err(failed)?;
        }
        Ok(())
    }
}
