//! A snapshot's file while it is being written.

use super::default_threads;
use super::sink::{FileSink, Writing};
use crate::{CheckBlocks, Error, MappedFile, PhysicalMap, PhysicalRange, RamSink, Snapshot, Tail};
use multifd_core::packet::Uuid;
use multifd_core::sync::lock;
use multifd_core::{
    BoxError, CancelHandle, Plain, Sender, SenderConfig, StatsHandle, SyncScope, config,
};
use multifd_transport_file::{
    BlockDigest, BlockReader, Digest, DirectIo, FileError, FileTransport, FileWithCompanion,
    GuestRange, WriteBack, Written,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

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
        /// Threads that write a snapshot from memory. Default: one for each processor, up to 8.
        threads: u8 = default_threads(),
        /// Ends the writing from elsewhere; nothing is left behind.
        cancel: CancelHandle = CancelHandle::default(),
        /// Called once, when a snapshot from memory begins to be written, with what reads the
        /// counts, and the bytes of all RAM.
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
///
/// It gets its contents in one of three ways: a VM is received into it ([`Target::sink`], then
/// [`Target::keep`]), a snapshot in memory is written ([`Target::save`]), or QEMU writes it
/// ([`Target::file`], then [`Target::adopt`]).
#[derive(Debug)]
pub struct Target {
    pub(super) path: PathBuf,
    pub(super) file: FileWithCompanion,
    direct: DirectIo,
    preallocate: bool,
    /// What has been received into it.
    writing: Arc<Mutex<Option<Writing>>>,
    write_back: Option<WriteBack>,
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
            direct: options.direct,
            preallocate: options.preallocate,
            writing: Arc::default(),
            write_back: None,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for another to write to.
    pub fn file(&self) -> &File {
        self.file.file()
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

    /// Has the file written to its disk while it grows: there is less to wait for at the end.
    pub fn write_back_early(&mut self) {
        if self.direct == DirectIo::Off {
            self.write_back = Some(WriteBack::start(self.file.file()));
        }
    }

    /// Where a migration's RAM goes that is received into this file: straight to its place, in
    /// every round. For [`ReceiveOptions::sink`](crate::ReceiveOptions::sink);
    /// [`Target::keep`] completes the file.
    ///
    /// # Errors
    /// [`Error::SnapshotFile`] if the file cannot be opened again.
    pub fn sink(&self) -> Result<Box<dyn RamSink>, Error> {
        Ok(Box::new(FileSink {
            path: self.path.clone(),
            file: self.own_file()?,
            direct: self.direct,
            preallocate: self.preallocate,
            digest: self.file.has_companion(),
            writing: Arc::clone(&self.writing),
        }))
    }

    /// Completes a file that `snapshot` has been received into, syncs it, and gives it its name and
    /// its companion. `layout` says where memory lies, if that is known.
    ///
    /// # Errors
    /// [`Error`]; then neither file nor companion has appeared.
    pub fn keep(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        cancel: &CancelHandle,
    ) -> Result<Saved, Error> {
        let path = self.path.clone();
        let kept = || {
            let (written, digest) = self.received(snapshot, layout)?;
            self.commit(written, digest, cancel)
        };
        kept().map_err(|error| in_file(path, error))
    }

    /// Completes a file that `snapshot` has been received into.
    pub(super) fn received(
        &self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
    ) -> Result<(Written, Option<Digest>), Error> {
        let writing = lock(&self.writing).take().ok_or_else(|| {
            let why = "nothing has been received into this file";
            multifd_core::Error::Misconfigured(why.into())
        })?;
        let (written, blocks) = writing.finish(snapshot)?;
        let digest = blocks.map(|blocks| digest(snapshot.uuid, &snapshot.tail, blocks, layout));
        Ok((written, digest))
    }

    /// Takes a file that QEMU has written: checks that it is whole and of the machine `uuid`, syncs
    /// it, and gives it its name and its companion.
    ///
    /// # Errors
    /// [`Error`]; then neither file nor companion has appeared.
    pub fn adopt(
        self,
        mapped: &MappedFile,
        uuid: Uuid,
        layout: Option<&PhysicalMap>,
        cancel: &CancelHandle,
    ) -> Result<Saved, Error> {
        let path = self.path.clone();
        // The disk is busy meanwhile.
        let (synced, found) = std::thread::scope(|scope| {
            let syncing = scope.spawn(|| self.file.sync());
            let found = self.written_by_qemu(mapped, uuid, layout);
            (syncing.join(), found)
        });
        let adopted = || {
            let (written, digest) = found?;
            if let Ok(synced) = synced {
                synced?;
            }
            self.commit(written, digest, cancel)
        };
        adopted().map_err(|error| in_file(path, error))
    }

    /// Reads a file that QEMU has written: what is stored, and its checksums.
    pub(super) fn written_by_qemu(
        &self,
        mapped: &MappedFile,
        uuid: Uuid,
        layout: Option<&PhysicalMap>,
    ) -> Result<(Written, Option<Digest>), Error> {
        let mut written = Written::default();
        let mut blocks = Vec::new();
        let has = self.file.has_companion();
        for block in &mapped.blocks {
            let reader = BlockReader::new(self.file.file(), block)?;
            let pages = reader.stored().count();
            written.pages += pages;
            written.bytes += pages * block.layout.header().page_size;
            if has {
                blocks.push(BlockDigest::of_file(&reader)?);
            }
        }
        let digest = has.then(|| digest(uuid, &mapped.tail, blocks, layout));
        Ok((written, digest))
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
            .map_err(|error| in_file(path, error))
    }

    fn write(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
        options: SaveOptions,
    ) -> Result<Saved, Error> {
        let (writer, placed) = super::sink::head(self.file.file(), snapshot)?;
        let transport = FileTransport::new(self.own_file()?, placed, options.direct)?;
        if options.preallocate {
            transport.preallocate()?;
        }
        let config = SenderConfig::default()
            .channels(options.threads.max(1))
            .zero_pages(snapshot.zero_pages.clone())
            .cancel(options.cancel.clone());
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
        let file = self.file.file();
        let of = |block| BlockDigest::of_file(&BlockReader::new(file, block)?);
        let digest = (self.file.has_companion())
            .then(|| transport.blocks().map(of).collect::<Result<_, _>>())
            .transpose()?
            .map(|blocks| digest(snapshot.uuid, &snapshot.tail, blocks, layout));
        self.commit(written, digest, &options.cancel)
    }

    fn commit(
        self,
        written: Written,
        digest: Option<Digest>,
        cancel: &CancelHandle,
    ) -> Result<Saved, Error> {
        drop(self.write_back);
        if let Some(cancelled) = cancel.error() {
            return Err(cancelled.into());
        }
        self.file.commit(digest.as_ref())?;
        Ok(Saved {
            written,
            has_layout: digest.is_some_and(|digest| !digest.layout.is_empty()),
        })
    }

    pub(super) fn own_file(&self) -> Result<File, FileError> {
        self.file
            .file()
            .try_clone()
            .map_err(|cause| FileError::Path {
                path: self.path.clone(),
                doing: "opening it again",
                cause,
            })
    }
}

/// An error within the file, with its path.
pub(super) fn in_file(path: PathBuf, error: Error) -> Error {
    match error {
        Error::SnapshotFile(FileError::At { .. } | FileError::Short { .. })
        | Error::File { .. }
        | Error::Engine(multifd_core::Error::Channel { .. }) => Error::InFile {
            path,
            cause: Box::new(error),
        },
        other => other,
    }
}

fn digest(
    uuid: Uuid,
    tail: &Tail,
    blocks: Vec<BlockDigest>,
    layout: Option<&PhysicalMap>,
) -> Digest {
    Digest {
        uuid: uuid.0,
        rest: Digest::of_rest(&[tail.early(), tail.bytes()]),
        layout: layout.map_or(Vec::new(), |map| guest_ranges(map, &blocks)),
        blocks,
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
