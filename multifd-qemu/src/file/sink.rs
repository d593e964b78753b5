//! A file as the place of a received guest's RAM.

use super::opened::in_file;
use crate::mapped::MappedWriter;
use crate::{Announced, BlockInfo, Configuration, Error, PlacedBlock, RamSink, Snapshot};
use multifd_core::packet::{Geometry, RamPacket};
use multifd_core::sync::lock;
use multifd_core::{BlockError, Destination, Error as EngineError, Fill, Place, RamMap, ZeroPages};
use multifd_transport_file::{
    BlockDigest, DirectIo, FileDestination, FileError, PageWriter, Written, map_all,
};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Puts RAM in its place in a file.
pub(super) struct FileSink {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) direct: DirectIo,
    pub(super) preallocate: bool,
    /// Whether checksums are kept.
    pub(super) digest: bool,
    /// What has been started, for who completes the file.
    pub(super) writing: Arc<Mutex<Option<Writing>>>,
}

/// A file with its head and a place for every page.
pub(super) struct Writing {
    writer: MappedWriter<File>,
    placed: Vec<PlacedBlock>,
    destination: FileDestination,
    /// The main connection's way into it.
    pages: PageWriter,
    /// What is stored, when all has been received.
    written: Written,
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Writing {
    /// Writes what follows the pages, and returns the checksums of the blocks, if they were kept.
    pub(super) fn finish(
        self,
        snapshot: &Snapshot,
    ) -> Result<(Written, Option<Vec<BlockDigest>>), Error> {
        self.writer
            .finish(snapshot.switchover_start, &snapshot.tail)?;
        Ok((self.written, self.destination.digest()))
    }
}

/// Writes a snapshot's head.
pub(super) fn head<'f>(
    file: &'f File,
    snapshot: &Snapshot,
) -> Result<(MappedWriter<&'f File>, Vec<PlacedBlock>), Error> {
    let blocks = snapshot.blocks();
    MappedWriter::start(
        file,
        0,
        &snapshot.configuration,
        snapshot.page_size(),
        snapshot.ram_section,
        &blocks,
    )
}

impl FileSink {
    fn own(&self) -> Result<File, FileError> {
        self.file.try_clone().map_err(|cause| FileError::Path {
            path: self.path.clone(),
            doing: "opening it again",
            cause,
        })
    }

    fn begin(
        &self,
        configuration: &Configuration,
        (page_size, ram_section): (u32, u32),
        blocks: &[BlockInfo],
    ) -> Result<Writing, Error> {
        let (writer, placed) = MappedWriter::start(
            self.own()?,
            0,
            configuration,
            page_size,
            ram_section,
            blocks,
        )?;
        let mut destination = FileDestination::new(self.own()?, placed.clone(), self.direct)?;
        if self.preallocate {
            destination.preallocate()?;
        }
        if self.digest {
            destination = destination.with_digest()?;
        }
        Ok(Writing {
            writer,
            placed,
            pages: destination.writer(),
            destination,
            written: Written::default(),
        })
    }
}

/// A file as a destination whose errors name it.
struct Named<D> {
    destination: D,
    path: PathBuf,
}

impl Destination for Named<FileDestination> {
    fn start(&self) -> Result<Geometry, EngineError> {
        self.destination.start()
    }

    fn place(&self, channel: u8) -> Result<Box<dyn Place>, EngineError> {
        Ok(Box::new(Named {
            destination: self.destination.place(channel)?,
            path: self.path.clone(),
        }))
    }
}

impl Place for Named<Box<dyn Place>> {
    fn take(&mut self, packet: &RamPacket<'_>, fill: &mut Fill<'_>) -> Result<(), EngineError> {
        self.destination
            .take(packet, fill)
            .map_err(|error| match error {
                EngineError::Destination {
                    channel,
                    block,
                    cause,
                } => EngineError::Destination {
                    channel,
                    block,
                    cause: Arc::new(InFile {
                        path: self.path.clone(),
                        cause,
                    }),
                },
                other => other,
            })
    }
}

/// What is wrong in a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}", path = .path.display())]
struct InFile {
    path: PathBuf,
    cause: Arc<dyn std::error::Error + Send + Sync>,
}

fn not_started() -> Error {
    Error::Block(BlockError::Outside {
        block: String::new(),
        offset: 0,
        len: 0,
        block_len: 0,
    })
}

impl RamSink for FileSink {
    fn start(&mut self, announced: &Announced<'_>) -> Result<Arc<dyn Destination>, Error> {
        let numbers = (announced.page_size, announced.ram_section);
        let writing = self.begin(announced.configuration, numbers, announced.blocks)?;
        let destination = Named {
            destination: writing.destination.clone(),
            path: self.path.clone(),
        };
        *lock(&self.writing) = Some(writing);
        Ok(Arc::new(destination))
    }

    fn page(&mut self, block: usize, offset: u64, contents: Option<&[u8]>) -> Result<(), Error> {
        let mut writing = lock(&self.writing);
        let pages = &mut writing.as_mut().ok_or_else(not_started)?.pages;
        let put = pages.put(block, offset, contents);
        put.map_err(|error| in_file(&self.path, error))
    }

    /// The RAM is a mapping of the file: nothing of it is in memory before somebody looks at it.
    fn finish(&mut self) -> Result<(RamMap, ZeroPages), Error> {
        let mut writing = lock(&self.writing);
        let writing = writing.as_mut().ok_or_else(not_started)?;
        writing
            .pages
            .flush()
            .map_err(|error| in_file(&self.path, error))?;
        let written = writing.destination.finish();
        writing.written = written.map_err(|error| in_file(&self.path, error))?;
        // A file that ends in pages that are zero is shorter than its last block.
        let end = writing.placed.iter().map(|block| block.layout.end()).max();
        let len = self.file.metadata().map(|data| data.len());
        if let (Some(end), Ok(len)) = (end, len)
            && len < end
        {
            let extended = self.file.set_len(end);
            extended.map_err(|cause| Error::File { offset: end, cause })?;
        }
        let mapped = map_all(&self.file, &writing.placed)?;
        Ok((mapped.ram, ZeroPages::Told(mapped.zeros)))
    }
}
