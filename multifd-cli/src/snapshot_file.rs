//! Snapshots and the files they lie in.

use crate::failure::{Failure, open};
use crate::progress::Watch;
use multifd_core::{CancelHandle, Plain, RamBlock, RamMap, Sender, SenderConfig, SyncScope};
use multifd_qemu::{Limits, MappedBlock, MappedFile, MappedWriter, Snapshot};
use multifd_transport_file::{AtomicFile, FileError, FileTransport, PlacedBlock, Written, load, load_raw};
use std::fs::File;
use std::path::Path;

/// Refuses to replace a file that nobody said may be replaced.
pub(crate) fn check_target(path: &Path, force: bool) -> Result<(), Failure> {
    if !force && path.symlink_metadata().is_ok() {
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

/// Writes a snapshot, gives the file its name, and says how many pages are stored in it.
pub(crate) fn write(
    file: AtomicFile,
    snapshot: &Snapshot,
    cancel: &CancelHandle,
    quiet: bool,
) -> Result<Written, Failure> {
    let blocks = snapshot.blocks();
    let (writer, mapped) = MappedWriter::start(
        file.file(),
        0,
        &snapshot.configuration,
        snapshot.ram_section,
        &blocks,
    )?;
    let own = file.file().try_clone().map_err(|source| FileError::Path {
        path: file.partial_path().into(),
        doing: "opening it again",
        source,
    })?;
    let transport = FileTransport::new(own, mapped.iter().map(placed).collect());
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
    file.commit()?;
    Ok(written)
}

/// Opens a mapped-ram file and reads what is in it, apart from the pages.
pub(crate) fn inspect(path: &Path) -> Result<(File, MappedFile), Failure> {
    let file = open(path)?;
    let mapped =
        MappedFile::read(&file, 0, &Limits::default(), false).map_err(|source| Failure::NotASnapshot {
            path: path.into(),
            source,
        })?;
    Ok((file, mapped))
}

/// Reads a whole snapshot into memory.
pub(crate) fn read(path: &Path) -> Result<Snapshot, Failure> {
    let (file, mapped) = inspect(path)?;
    let mut ram = RamMap::new();
    for block in &mapped.blocks {
        let page_size = mapped.configuration.page_size();
        ram.add(RamBlock::anonymous(
            &block.name,
            block.layout.used_length(),
            page_size,
        )?)?;
    }
    let blocks: Vec<PlacedBlock> = mapped.blocks.iter().map(placed).collect();
    load(&file, &blocks, &ram, file_threads().into())?;
    Ok(Snapshot {
        uuid: mapped.configuration.uuid().unwrap_or_default(),
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
    let file = open(path)?;
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
