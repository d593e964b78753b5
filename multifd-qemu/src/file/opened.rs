//! A snapshot's file that is read.

use super::default_threads;
use crate::{Error, Limits, MappedFile, Snapshot, find_migration};
use multifd_core::packet::Uuid;
use multifd_core::{RamBlock, RamMap, ZeroPages, config};
use multifd_transport_file::{
    Digest, DirectIo, FileError, MakeWriter, load, map, map_all, open_read,
};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Largest companion read: enough for 60 TiB of RAM.
const MAX_COMPANION: u64 = 256 << 20;
/// Bytes of a page of a raw image.
const RAW_PAGE: u32 = 4096;

config! {
    /// How a snapshot is read into memory.
    #[derive(Debug, Clone)]
    pub struct LoadOptions {
        /// Whether page data bypasses the page cache.
        direct: DirectIo = DirectIo::Off,
        /// Threads that read. Default: one for each processor, up to 8.
        threads: u8 = default_threads(),
        /// Whether the memory may get huge pages (feature `residency`).
        huge_pages: bool = true,
    }
}

/// An opened mapped-ram file, with all that is in it but the pages.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: File,
    mapped: MappedFile,
}

impl SnapshotFile {
    /// Opens a mapped-ram file, or a save image of libvirt's with one in it. `offset` is where in
    /// the file the migration begins; `None`: it is looked for.
    ///
    /// # Errors
    /// [`Error::SnapshotFile`] if the file cannot be opened; [`Error::InFile`] if it is not a
    /// snapshot.
    pub fn open(path: &Path, offset: Option<u64>) -> Result<Self, Error> {
        Self::of(open_read(path)?, path, offset)
    }

    /// The same of a file that is open: `path` is what it is called in errors, and where its
    /// companion is looked for.
    ///
    /// # Errors
    /// [`Error::InFile`] if it is not a snapshot.
    pub fn of(file: File, path: &Path, offset: Option<u64>) -> Result<Self, Error> {
        let in_file = |cause| Error::InFile {
            path: path.into(),
            cause: Box::new(cause),
        };
        let base = match offset {
            Some(offset) => offset,
            None => find_migration(&file).map_err(in_file)?,
        };
        let mapped = MappedFile::read(&file, base, &Limits::default(), false).map_err(in_file)?;
        Ok(Self {
            path: path.into(),
            file,
            mapped,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its contents, apart from bitmaps and pages.
    pub fn mapped(&self) -> &MappedFile {
        &self.mapped
    }

    /// Reads the companion with checksums; `None` if there is none.
    ///
    /// # Errors
    /// [`FileError`] if there is one and it cannot be used.
    pub fn companion(&self) -> Result<Option<Digest>, FileError> {
        let blocks = self.mapped.blocks.iter();
        let largest =
            Digest::largest(blocks.map(|block| (block.name.len(), block.layout.used_length())));
        Digest::read(&self.path, largest.min(MAX_COMPANION))
    }

    /// Whether a companion is this file's: a file may have been replaced and its companion not.
    pub fn is_own(&self, digest: &Digest) -> bool {
        let rest = Digest::of_rest(&[self.mapped.tail.early(), self.mapped.tail.bytes()]);
        let known = digest
            .blocks
            .iter()
            .map(|block| (&block.name, block.used_length));
        let blocks = self.mapped.blocks.iter();
        let found = blocks.map(|block| (&block.name, block.layout.used_length()));
        digest.rest == rest && known.eq(found)
    }

    /// The VM's UUID: from the file, or else from a companion that is its own; or zeros.
    pub fn uuid(&self) -> Uuid {
        let own = || {
            self.companion()
                .ok()
                .flatten()
                .filter(|digest| self.is_own(digest))
        };
        let kept = self.mapped.configuration.uuid();
        kept.or_else(|| own().map(|digest| Uuid(digest.uuid)))
            .unwrap_or_default()
    }

    /// Maps all of it: nothing is read before it is looked at. The file must not be made shorter
    /// meanwhile: this process would end with `SIGBUS`.
    ///
    /// # Errors
    /// [`Error`], as when the file is not whole.
    pub fn map(self) -> Result<Snapshot, Error> {
        let mapped = map_all(&self.file, &self.mapped.blocks);
        let mapped = mapped.map_err(|error| in_file(&self.path, error))?;
        let zero_pages = ZeroPages::Told(mapped.zeros);
        Ok(self.into_snapshot(mapped.ram, zero_pages))
    }

    /// The same, but pages that are not stored are surely zero in memory, too: those that have
    /// something else in the file take memory. For sending them as data.
    ///
    /// # Errors
    /// As [`SnapshotFile::map`].
    pub fn map_clean(self) -> Result<Snapshot, Error> {
        let mut ram = RamMap::new();
        for block in &self.mapped.blocks {
            let mapped = map(&self.file, block);
            ram.add(mapped.map_err(|error| in_file(&self.path, error))?)?;
        }
        Ok(self.into_snapshot(ram, ZeroPages::Detect))
    }

    /// Reads all of it into memory.
    ///
    /// # Errors
    /// [`Error`], as when the file is not whole, or there is not enough memory.
    pub fn load(self, options: &LoadOptions) -> Result<Snapshot, Error> {
        let mut ram = RamMap::new();
        for block in &self.mapped.blocks {
            let page_size = u32::try_from(block.layout.header().page_size).unwrap_or(u32::MAX);
            ram.add(RamBlock::anonymous(
                &block.name,
                block.layout.used_length(),
                page_size,
            )?)?;
        }
        let (file, blocks) = (&self.file, &self.mapped.blocks);
        let loaded = with_writers(&ram, options, |writer| {
            load(
                file,
                blocks,
                &ram,
                options.threads.into(),
                options.direct,
                writer,
            )
        });
        loaded.map_err(|error| in_file(&self.path, error))?;
        Ok(self.into_snapshot(ram, ZeroPages::Detect))
    }

    fn into_snapshot(self, ram: RamMap, zero_pages: ZeroPages) -> Snapshot {
        let uuid = self.uuid();
        let mapped = self.mapped;
        Snapshot {
            uuid,
            configuration: mapped.configuration.with_mapped_ram(false),
            ram,
            zero_pages,
            ram_section: mapped.ram_section,
            switchover_start: mapped.switchover_start,
            tail: mapped.tail,
        }
    }
}

/// Maps a raw RAM image, pages of 4096 bytes: as the one RAM block, named `block`, of a VM without
/// devices. The file must not be made shorter meanwhile: this process would end with `SIGBUS`.
///
/// # Errors
/// [`Error`], as when the file is empty or its length is not a multiple of a page's.
pub fn map_raw(path: &Path, block: &str) -> Result<Snapshot, Error> {
    let file = open_read(path)?;
    let data = file.metadata().map_err(|cause| FileError::Path {
        path: path.into(),
        doing: "looking at it",
        cause,
    })?;
    let len = data.len();
    if len == 0 || !len.is_multiple_of(RAW_PAGE.into()) {
        return Err(Error::RawLength {
            path: path.into(),
            len,
            page_size: RAW_PAGE,
        });
    }
    let mapped = multifd_transport_file::map_raw(&file, block, RAW_PAGE);
    let mapped = mapped.map_err(|error| in_file(path, error))?;
    let mut snapshot = Snapshot::of_ram(mapped.ram);
    snapshot.zero_pages = ZeroPages::Told(mapped.zeros);
    Ok(snapshot)
}

/// An error at a place in a file, with the file's path.
pub(super) fn in_file(path: &Path, error: FileError) -> Error {
    match error {
        FileError::At { .. } | FileError::Short { .. } => Error::InFile {
            path: path.into(),
            cause: Box::new(error.into()),
        },
        other => other.into(),
    }
}

/// Runs `load` with what prepares new memory for its threads.
#[cfg(feature = "residency")]
fn with_writers<T>(
    ram: &RamMap,
    options: &LoadOptions,
    load: impl FnOnce(MakeWriter<'_>) -> T,
) -> T {
    let residency = multifd_residency::Residency::of_new(ram).huge_pages(options.huge_pages);
    load(&|| Box::new(residency.writer()))
}

/// Runs `load` with nothing of the kind.
#[cfg(not(feature = "residency"))]
fn with_writers<T>(_: &RamMap, _: &LoadOptions, load: impl FnOnce(MakeWriter<'_>) -> T) -> T {
    load(&|| Box::new(multifd_core::memory::PlainWriter))
}
