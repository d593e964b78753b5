//! Snapshots and the files they lie in.

use crate::failure::Failure;
use crate::options::{Direct, Writing};
use crate::progress::Watch;
use multifd_core::{CancelHandle, Plain, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{Limits, MappedBlock, MappedFile, MappedWriter, Snapshot};
use multifd_transport_file::{
    AtomicFile, Digest, DirectIo, FileError, FileTransport, PlacedBlock, Written, companion,
    descriptor_number, load, load_raw, open_read,
};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Refuses to replace a file that nobody said may be replaced.
pub(crate) fn check_target(path: &Path, force: bool) -> Result<(), Failure> {
    if !force && descriptor_number(path).is_none() && path.symlink_metadata().is_ok() {
        return Err(Failure::Exists { path: path.into() });
    }
    Ok(())
}

/// How many threads read or write a file: as many as there are processors, up to a point.
pub(crate) fn file_threads() -> u8 {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    u8::try_from(processors).unwrap_or(u8::MAX).min(8)
}

pub(crate) fn placed(block: &MappedBlock) -> PlacedBlock {
    PlacedBlock {
        name: block.name.clone(),
        layout: block.layout,
    }
}

/// A snapshot's file while there is nothing in it yet, and it can still be taken back.
pub(crate) struct Target {
    path: PathBuf,
    file: AtomicFile,
    writing: Writing,
}

impl Target {
    /// Makes sure that the file can be written, before anything is received for it.
    pub(crate) fn create(path: &Path, writing: Writing) -> Result<Self, Failure> {
        check_target(path, writing.force)?;
        Ok(Self {
            path: path.into(),
            file: AtomicFile::create(path, writing.force)?,
            writing,
        })
    }

    /// Writes a snapshot, gives the file its name, and says how many pages are stored in it.
    pub(crate) fn write(
        self,
        snapshot: &Snapshot,
        cancel: &CancelHandle,
        quiet: bool,
    ) -> Result<Written, Failure> {
        let Self { path, file, writing } = self;
        let blocks = snapshot.blocks();
        let (writer, mapped) = MappedWriter::start(
            file.file(),
            0,
            &snapshot.configuration,
            snapshot.ram_section,
            &blocks,
        )?;
        let own = file.file().try_clone().map_err(|source| FileError::Path {
            path: path.clone(),
            doing: "opening it again",
            source,
        })?;
        let placed = mapped.iter().map(placed).collect();
        let transport = FileTransport::new(own, placed, writing.direct_io.into())?;
        if writing.preallocate {
            transport.preallocate()?;
        }
        let config = SenderConfig {
            channels: file_threads(),
            cancel: cancel.clone(),
            ..SenderConfig::default()
        };
        let mut sender = Sender::start(snapshot.ram.clone(), &Plain, &transport, &config)?;
        let watch = Watch::new("writing", sender.stats_handle(), snapshot.ram.total_len(), quiet);
        for (index, block) in snapshot.ram.blocks().iter().enumerate() {
            sender.queue_range(index, 0, block.len())?;
        }
        sender.sync(SyncScope::Local)?;
        sender.finish()?;
        drop(watch);
        let written = transport.finish()?;
        writer.finish(snapshot.switchover_start, &snapshot.tail)?;
        let digest = if writing.no_digest || descriptor_number(&path).is_some() {
            None
        } else {
            Some(Digest::of(&snapshot.ram, snapshot.uuid, snapshot.tail.bytes())?)
        };
        // Never a file with another's checksums beside it.
        remove_companion(&path)?;
        file.commit()?;
        if let Some(digest) = digest {
            digest.write(&path)?;
        }
        Ok(written)
    }
}

fn remove_companion(path: &Path) -> Result<(), Failure> {
    let companion = companion(path);
    match std::fs::remove_file(&companion) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Failure::Open {
            path: companion,
            source,
        }),
        _ => Ok(()),
    }
}

/// Opens a mapped-ram file and reads what is in it, apart from the pages.
pub(crate) fn inspect(path: &Path) -> Result<(File, MappedFile), Failure> {
    let file = open_read(path)?;
    let mapped =
        MappedFile::read(&file, 0, &Limits::default(), false).map_err(|source| Failure::NotASnapshot {
            path: path.into(),
            source,
        })?;
    Ok((file, mapped))
}

/// Reads a whole snapshot into memory.
pub(crate) fn read(path: &Path, direct: Direct) -> Result<Snapshot, Failure> {
    let (file, mapped) = inspect(path)?;
    let uuid = match mapped.configuration.uuid() {
        Some(uuid) => uuid,
        // The companion is for checking; one that can not be used does not stop a file from being read.
        None => Digest::read(path)
            .ok()
            .flatten()
            .map(|digest| digest.uuid)
            .unwrap_or_default(),
    };
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        let page_size = mapped.configuration.page_size();
        let block = RamBlock::anonymous(&block.name, block.layout.used_length(), page_size)?;
        ram.add(block.with_known_zeros())?;
    }
    let blocks: Vec<PlacedBlock> = mapped.blocks.iter().map(placed).collect();
    load(
        &file,
        &blocks,
        &ram,
        file_threads().into(),
        DirectIo::from(direct),
    )?;
    Ok(Snapshot {
        uuid,
        configuration: mapped.configuration.with_mapped_ram(false),
        ram,
        ram_section: mapped.ram_section,
        switchover_start: mapped.switchover_start,
        tail: mapped.tail,
    })
}

/// Reads a raw RAM image into memory, as the one block of a VM without devices.
pub(crate) fn read_raw(path: &Path, block: &str) -> Result<Snapshot, Failure> {
    const PAGE_SIZE: u32 = 4096;
    let file = open_read(path)?;
    let data = file.metadata().map_err(|source| Failure::Open {
        path: path.into(),
        source,
    })?;
    let len = data.len();
    if len == 0 || !len.is_multiple_of(PAGE_SIZE.into()) {
        return Err(Failure::RawLength {
            path: path.into(),
            len,
            page_size: PAGE_SIZE,
        });
    }
    let mut ram = RamMap::new();
    let index = ram.add(RamBlock::anonymous(block, len, PAGE_SIZE)?)?;
    if let Some(block) = ram.get(index) {
        load_raw(&file, block, file_threads().into())?;
    }
    Ok(Snapshot::of_ram(ram))
}
