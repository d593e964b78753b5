//! A snapshot's file while it is being written.

use super::default_threads;
use crate::{CheckBlocks, Error, MappedWriter, PhysicalMap, PhysicalRange, Snapshot};
use multifd_core::{
    BoxError, CancelHandle, Plain, Sender, SenderConfig, StatsHandle, SyncScope, config,
};
use multifd_transport_file::{
    BlockDigest, Digest, DirectIo, FileError, FileTransport, FileWithCompanion, GuestRange, Written,
};
use std::fs::File;
use std::path::{Path, PathBuf};

config! {
    /// How a snapshot's file is written.
    pub struct SaveOptions {
        /// Whether a file of that name, and its companion, are replaced. Only regular files are.
        replace: bool = false,
        /// Whether a companion with checksums of the memory is written (`FILE.crc`).
        digest: bool = true,
        /// Whether page data bypasses the page cache.
        direct: DirectIo = DirectIo::Off,
        /// Whether disk space for all pages is reserved first; zero pages take space then.
        preallocate: bool = false,
        /// Threads that write. Default: one for each processor, up to 8.
        threads: u8 = default_threads(),
        /// Ends the writing from elsewhere; nothing is left behind.
        cancel: CancelHandle = CancelHandle::default(),
        /// Called once, when the writing begins, with what reads the counts, and the bytes of all
        /// RAM.
        on_start: Option<Box<dyn FnOnce(StatsHandle, u64) + Send>> = None,
    }
}

impl std::fmt::Debug for SaveOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SaveOptions")
            .field("replace", &self.replace)
            .field("digest", &self.digest)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// A file that has no contents yet, and not its name: dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: FileWithCompanion,
}

/// A snapshot that has been written.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Saved {
    /// The pages stored.
    pub written: Written,
    /// Whether the companion says where memory lies.
    pub has_layout: bool,
}

impl Target {
    /// Makes sure that the file can be written, before anything is received for it.
    ///
    /// # Errors
    /// [`Error::SnapshotFile`]: a file of that name exists and is not to be replaced, or cannot be.
    pub fn create(path: &Path, options: &SaveOptions) -> Result<Self, Error> {
        let file = FileWithCompanion::create(path, options.replace, options.digest)?;
        Ok(Self {
            path: path.into(),
            file,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the disk has space for a guest's RAM, in bytes. Zero pages take none: a guest
    /// may fit that is refused here.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn check_space(&self, ram: u64) -> Result<(), Error> {
        check_space(&self.path, self.file.file(), ram)
    }

    /// The same check, for [`ReceiveOptions::check`](crate::ReceiveOptions::check).
    pub fn space_check(&self) -> CheckBlocks {
        let (path, file) = (self.path.clone(), self.file.file().try_clone());
        Box::new(move |blocks| match file {
            Ok(file) => {
                let ram = blocks.iter().map(|block| block.used_length).sum();
                check_space(&path, &file, ram).map_err(BoxError::from)
            }
            Err(_) => Ok(()),
        })
    }

    /// Writes a snapshot, syncs it, and gives the file its name and its companion. `layout` says
    /// where memory lies, if that is known.
    ///
    /// # Errors
    /// [`Error`]; then neither file nor companion has appeared.
    pub fn save(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        options: SaveOptions,
    ) -> Result<Saved, Error> {
        let path = self.path.clone();
        self.write(snapshot, layout, options)
            .map_err(|error| match error {
                Error::Engine(multifd_core::Error::Cancelled) => error,
                Error::SnapshotFile(FileError::At { .. } | FileError::Short { .. })
                | Error::File { .. }
                | Error::Engine(multifd_core::Error::Channel { .. }) => Error::InFile {
                    path,
                    cause: Box::new(error),
                },
                other => other,
            })
    }

    fn write(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        options: SaveOptions,
    ) -> Result<Saved, Error> {
        let Self { path, file } = self;
        let (writer, placed) = MappedWriter::start(
            file.file(),
            0,
            &snapshot.configuration,
            snapshot.page_size(),
            snapshot.ram_section,
            &snapshot.blocks(),
        )?;
        let own = file.file().try_clone().map_err(|cause| FileError::Path {
            path,
            doing: "opening it again",
            cause,
        })?;
        let transport = FileTransport::new(own, placed, options.direct)?;
        if options.preallocate {
            transport.preallocate()?;
        }
        let config = SenderConfig::default()
            .channels(options.threads.max(1))
            .cancel(options.cancel);
        let mut sender = Sender::start(snapshot.ram.clone(), &Plain, &transport, &config)?;
        if let Some(on_start) = options.on_start {
            on_start(sender.stats_handle(), snapshot.ram.total_len());
        }
        for (index, block) in snapshot.ram.blocks().iter().enumerate() {
            sender.queue_range(index, 0, block.len())?;
        }
        sender.sync(SyncScope::Local)?;
        sender.finish()?;
        let written = transport.finish()?;
        writer.finish(snapshot.switchover_start, &snapshot.tail)?;
        let mut digest = None;
        let mut has_layout = false;
        if file.has_companion() {
            let rest = [snapshot.tail.early(), snapshot.tail.bytes()];
            let digest = digest.insert(Digest::of(&snapshot.ram, snapshot.uuid.0, &rest)?);
            if let Some(map) = layout {
                digest.layout = guest_ranges(map, &digest.blocks);
                has_layout = true;
            }
        }
        file.commit(digest.as_ref())?;
        Ok(Saved {
            written,
            has_layout,
        })
    }
}

fn check_space(path: &Path, file: &File, ram: u64) -> Result<(), Error> {
    let Ok(status) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    if ram <= free {
        return Ok(());
    }
    Err(Error::NoSpace {
        path: path.into(),
        needed: ram,
        free,
    })
}

/// A map of memory as it stands in a companion.
fn guest_ranges(map: &PhysicalMap, blocks: &[BlockDigest]) -> Vec<GuestRange> {
    let range = |range: &PhysicalRange| {
        let block = blocks.iter().position(|block| block.name == range.block)?;
        Some(GuestRange {
            address: range.address,
            len: range.len,
            block: u32::try_from(block).ok()?,
            offset: range.offset,
        })
    };
    map.ranges().iter().filter_map(range).collect()
}
